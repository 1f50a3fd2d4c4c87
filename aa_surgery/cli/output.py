"""What a command hands back to be printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Output"]


@dataclass(frozen=True)
class Output:
    """Hold what a command found.

    Attributes:
        found: For a program, plain values.
        text: For a person; empty where it was printed as the work went on.
        code: Exit code of the command.
    """

    found: dict[str, Any]
    text: str
    code: int = 0
