"""Every architecture that a sweep goes over: timm's, torchvision's, and other libraries'."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec

from aa_surgery.errors import InputError, PatternError
from aa_surgery.sweep import openmmlab, outside
from aa_surgery.sweep.takes import Takes

__all__ = [
    "EXCLUDED",
    "SOURCES",
    "Subject",
    "Takes",
    "installed_sources",
    "representatives",
    "subjects",
]

SOURCES = ("timm", "torchvision", "mmpretrain", "outside")

EXCLUDED = {
    "torchvision quantization.*": "int8 copies of float models that are in the sweep: anti-alias "
    "the float model, then quantise it",
    **openmmlab.LEFT_OUT,
}
"""What the sweep leaves out, and why."""

_TORCHVISION = "torchvision.models."


@dataclass(frozen=True, order=True)
class Subject:
    """One architecture.

    Attributes:
        source: One of `SOURCES`.
        name: As its library calls it; of an outside model, `library:name`.
        family: The module that defines it.
        takes: What its forward takes.
    """

    source: str
    name: str
    family: str
    takes: Takes = "image"


def installed_sources() -> tuple[str, ...]:
    """Return those of `SOURCES` whose library is installed; `outside` fails row by row."""
    return tuple(s for s in SOURCES if s == "outside" or find_spec(s) is not None)


def subjects(
    sources: Iterable[str] | None = None, patterns: Iterable[str] = ()
) -> tuple[Subject, ...]:
    """Return the architectures of the installed libraries, sorted.

    Args:
        sources: Which of `SOURCES`; None for those that are installed.
        patterns: Shell-style patterns of names; none means all.

    Raises:
        InputError: A source is unknown, or its library is not installed.
        PatternError: A pattern matches no name.

    >>> [s.family for s in subjects(["timm"], ["resnet18"])]
    ['resnet']
    """
    found: list[Subject] = []
    sources = installed_sources() if sources is None else tuple(sources)
    for source in sources:
        if source not in _LISTS:
            raise InputError(f"source {source!r} is unknown. Use some of {', '.join(SOURCES)}.")
        found += _LISTS[source]()
    chosen = tuple(patterns)
    for pattern in chosen:
        if not any(fnmatchcase(s.name, pattern) for s in found):
            raise PatternError(
                f"pattern {pattern!r} matches no architecture of {', '.join(sources)}. "
                "Patterns are shell-style: 'resnet*', 'transformers:*'."
            )
    return tuple(
        sorted(s for s in found if not chosen or any(fnmatchcase(s.name, p) for p in chosen))
    )


def representatives(found: Iterable[Subject]) -> dict[str, Subject]:
    """Return one architecture of each family, cheap to build as far as its name tells.

    The first whose name has a word for a small size, the smallest word first; else the first name.
    """
    chosen: dict[str, Subject] = {}
    for subject in sorted(found, key=lambda s: (s.family, _size_rank(s.name), s.name)):
        chosen.setdefault(subject.family, subject)
    return chosen


_SMALL = ("atto", "femto", "pico", "nano", "xxs", "xs", "xtiny", "tiny", "mini", "s", "small")


def _size_rank(name: str) -> int:
    words = name.replace(":", "_").replace("-", "_").split("_")
    ranks = [_SMALL.index(word) for word in words if word in _SMALL]
    return min(ranks, default=len(_SMALL))


def _timm() -> list[Subject]:
    import timm

    names = timm.list_models(exclude_filters="aa_*")
    return [Subject("timm", n, _last(timm.models.model_entrypoint(n).__module__)) for n in names]


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _torchvision() -> list[Subject]:
    try:
        from torchvision import models
    except ImportError as error:
        raise InputError(
            f"source 'torchvision': torchvision cannot be imported ({error}). "
            'Install it: pip install "aa-surgery[sweep]".'
        ) from error
    found = []
    for name in models.list_models():
        family = models.get_model_builder(name).__module__.removeprefix(_TORCHVISION)
        if not family.startswith("quantization."):
            found.append(Subject("torchvision", name, family, _takes(family)))
    return found


def _takes(family: str) -> Takes:
    kinds: dict[str, Takes] = {
        "video": "video",
        "detection": "detection",
        "optical_flow": "pair",
    }
    return kinds.get(family.partition(".")[0], "image")


def _outside() -> list[Subject]:
    return [Subject("outside", name, outside.family_of(name)) for name in outside.names()]


def _mmpretrain() -> list[Subject]:
    return [
        Subject("mmpretrain", name, openmmlab.family_of(name), openmmlab.takes(name))
        for name in openmmlab.names()
    ]


_LISTS = {
    "timm": _timm,
    "torchvision": _torchvision,
    "mmpretrain": _mmpretrain,
    "outside": _outside,
}
