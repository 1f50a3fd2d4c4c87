"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write_text"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes `path`'s place if the block succeeds.

    Of a symbolic link the file that it names is replaced. What is no file (a device, a pipe) is
    written to as it is.

    Raises:
        OSError: The file cannot be written; the one that was there is as it was.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        yield target
        return
    # short, as the file's own name may be as long as names can be
    temporary = target.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
