"""Standard streams that a command can write to whoever reads them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

__all__ = ["Kept", "kept_streams"]


class Kept:
    """A text stream whose reader may leave, or whose disk may be full, while the work goes on.

    Attributes:
        lost: Why text was lost; None if all was written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or note why that is no longer possible."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or note why that is not possible."""
        self._attempt(self._stream.flush)

    def _attempt(self, work: Any) -> None:
        if self.lost is None:
            try:
                work()
            except OSError as error:
                self.lost = error
                _to_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _to_nowhere(stream: TextIO) -> None:
    """Let what the stream still holds go nowhere, or Python fails over it when it ends."""
    try:
        number = stream.fileno()
    except (io.UnsupportedOperation, ValueError):
        return  # not of the system, or closed
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def kept_streams() -> Iterator[Kept | None]:
    """Make both standard streams `Kept` ones inside, and yield that of the output.

    A character that the terminal's encoding lacks is written as its code.
    """
    own = sys.stdout, sys.stderr
    kept = [None if stream is None else Kept(stream) for stream in own]
    for stream in own:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in kept)
    try:
        yield kept[0]
    finally:
        for each in kept:
            if each is not None:
                each.flush()
        sys.stdout, sys.stderr = own
