"""What the folders of images say of their classes."""

from __future__ import annotations

import os.path
import re
import warnings
from collections.abc import Sequence
from pathlib import PurePosixPath

from aa_surgery.errors import InputError

__all__ = ["label_images"]

_INDEX, _WORDNET = r"\d+_.*", r"n\d{8}"


def label_images(names: Sequence[str]) -> tuple[list[str], list[int | None], str]:
    """Label images by the folders that hold them.

    What lies beside the classes (an image among their folders, a folder with another kind of name
    than the most have) is left out, so that it renumbers none of them.

    Args:
        names: Paths of the images, sorted.

    Returns:
        The names kept, the label of each, and how they were read.

    Raises:
        InputError: Folders name classes that ImageNet does not have.

    Warns:
        UserWarning: Images were left out.
    """
    parents = [PurePosixPath(name).parent for name in names]
    around = _around(parents)
    kinds = sorted({parent.name for parent in parents if parent != around})
    for pattern, source in ((_INDEX, "index"), (_WORDNET, "wordnet id")):
        named = {kind for kind in kinds if re.fullmatch(pattern, kind)}
        if 2 * len(named) > len(kinds):
            known = _numbers(named) if source == "index" else _synsets(named)
            return *_labelled(names, parents, known), source
    if len(kinds) < 2:
        return list(names), [None] * len(names), "none"
    classes = [parent if parent != around else None for parent in parents]
    return *_labelled(names, classes, {kind: i for i, kind in enumerate(kinds)}), "folder order"


def _labelled(
    names: Sequence[str], parents: Sequence[PurePosixPath | None], known: dict[str, int]
) -> tuple[list[str], list[int | None]]:
    """Return the names whose folder is a known class, and their labels."""
    kept: list[str] = []
    labels: list[int | None] = []
    strays: list[str] = []
    for name, parent in zip(names, parents, strict=True):
        if parent is not None and parent.name in known:
            kept.append(name)
            labels.append(known[parent.name])
        else:
            strays.append(name)
    if strays:
        warnings.warn(
            f"{len(strays)} of {len(names)} images lie beside the folders of the classes and are "
            f"left out. The first: {strays[0]}.",
            stacklevel=4,
        )
    return kept, labels


def _around(parents: Sequence[PurePosixPath]) -> PurePosixPath | None:
    """Return the folder that holds all others, if there are others."""
    folders = set(parents)
    common = PurePosixPath(os.path.commonpath([folder.as_posix() for folder in folders]) or ".")
    return common if len(folders) > 1 else None


def _numbers(kinds: set[str]) -> dict[str, int]:
    return {kind: int(kind.split("_")[0]) for kind in kinds}


def _synsets(kinds: set[str]) -> dict[str, int]:
    from timm.data import ImageNetInfo

    known = {synset: i for i, synset in enumerate(ImageNetInfo().label_names())}
    unknown = sorted(kind for kind in kinds if kind not in known)
    if unknown:
        raise InputError(
            f"{len(unknown)} folders name no ImageNet-1k class, {unknown[0]} among them. "
            "Take them out, or name folders <index>_<anything> after the model's classes."
        )
    return {kind: known[kind] for kind in kinds}
