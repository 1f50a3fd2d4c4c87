"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO
from pathlib import Path

__all__ = ["replacing", "save_tensors", "write_text"]


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
        if target.exists():
            temporary.chmod(target.stat().st_mode)  # who may read it stays so
        temporary.replace(target)
    except OSError as error:
        # by the name that the user knows
        raise OSError(error.errno or EIO, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(save: Callable[[], object]) -> None:
    """Call what writes tensors to a file; its failure is an `OSError`, as that of other files.

    torch and safetensors say "file write failed" of a full disk, each by an error of its own.
    """
    try:
        save()
    except OSError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(EIO, f"the tensors cannot be written ({first.rstrip('.')})") from error
