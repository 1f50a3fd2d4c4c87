"""The libraries, and their models by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec

import torch

from aa_surgery.errors import InputError, PatternError
from aa_surgery.sweep.libraries import (
    diffusers,
    doctr,
    effdet,
    kornia,
    monai,
    pytorchcv,
    smp,
    transformers,
    ultralytics,
    vit_pytorch,
)
from aa_surgery.sweep.libraries.specimen import Library, Specimen

__all__ = ["LIBRARIES", "installed", "names", "specimen"]

LIBRARIES: dict[str, Library] = {
    module.LIBRARY.name: module.LIBRARY
    for module in (
        transformers,
        vit_pytorch,
        pytorchcv,
        monai,
        smp,
        ultralytics,
        diffusers,
        effdet,
        kornia,
        doctr,
    )
}


def installed() -> tuple[str, ...]:
    """Return the names of the libraries that can be imported."""
    return tuple(name for name, lib in LIBRARIES.items() if find_spec(lib.module) is not None)


def names(libraries: Iterable[str] | None = None, patterns: Iterable[str] = ()) -> tuple[str, ...]:
    """Return `library:model` of every model, in the order of the libraries.

    Args:
        libraries: Which libraries; None for those that are installed.
        patterns: Shell-style patterns of names; none means all.

    Raises:
        InputError: A library is unknown, or not installed.
        PatternError: A pattern matches no name.
    """
    chosen = installed() if libraries is None else tuple(libraries)
    for name in chosen:
        if name not in LIBRARIES:
            raise InputError(f"library {name!r} is unknown. Use some of {', '.join(LIBRARIES)}.")
        if name not in installed():
            package = LIBRARIES[name].package
            raise InputError(
                f"library {name!r} is not installed. Install it: pip install {package}."
            )
    found = [f"{lib}:{model}" for lib in chosen for model in LIBRARIES[lib].names()]
    return _matching(found, tuple(patterns))


def _matching(found: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise PatternError(
                f"pattern {pattern!r} matches no model. Patterns are shell-style, of the whole "
                "name: 'monai:UNet*', '*swin*'."
            )
    return tuple(n for n in found if not patterns or any(fnmatchcase(n, p) for p in patterns))


def specimen(name: str) -> Specimen:
    """Return one of `names()`, with the same random weights at every call.

    Raises:
        Exception: Whatever its library raises.
    """
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    return LIBRARIES[library].specimen(model)
