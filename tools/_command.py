"""The command line that a table is committed with, without paths of one machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

__all__ = ["said"]

_PHOTOGRAPHS = "PHOTOS.zip"


def said(words: Sequence[str]) -> str:
    """Return a command line, photographs as `PHOTOS.zip`, other absolute paths by their name."""
    shown: list[str] = []
    for word in words:
        if shown and shown[-1] == "--images" and "/" in word:
            shown.append(_PHOTOGRAPHS)
        else:
            shown.append(Path(word).name if word.startswith("/") else word)
    return shlex.join(shown)
