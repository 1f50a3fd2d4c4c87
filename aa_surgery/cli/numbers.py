"""Numbers on the command line, refused where they are out of range."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["number_above_0", "whole_number"]

_LONGEST = 1e6  # minutes or seconds: what the system's clocks can wait for


def whole_number(least: int = 1, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Return what reads a whole number from `least` to `most`.

    >>> whole_number()("12")
    12
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not a whole number above {least - 1}, at most {most}"
            )
        return number

    return read


def number_above_0(text: str) -> float:
    """Read a finite number above 0.

    >>> number_above_0("0.5")
    0.5
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not a number above 0, at most {_LONGEST:g}"
        )
    return number
