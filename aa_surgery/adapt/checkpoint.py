"""The state of an interrupted run in a file that is whole at every moment."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aa_surgery.errors import CheckpointMismatchError, InputError
from aa_surgery.writing import replacing, save_tensors

__all__ = ["Checkpoint"]

_UNREADABLE = (
    *(AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError, TypeError),
    ValueError,
)
_SECONDS = 30.0  # between two writes


class Checkpoint:
    """Save a run's state from time to time, and read it again.

    Args:
        path: The file; its folder must exist. None: nothing is saved.
        settings: What a run must have in common with the one it goes on from.

    Raises:
        InputError: The folder does not exist.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = dict(settings)
        self._saved = time.monotonic()
        if self.path is not None and not self.path.parent.is_dir():
            raise InputError(f"checkpoint {self.path}: its folder does not exist. Create it.")

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None where there is none.

        Raises:
            InputError: The file cannot be read.
            CheckpointMismatchError: It is of a run with other settings.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            settings, state = dict(saved["settings"]), dict(saved["state"])
        # what torch's reader and a file of another kind lead to
        except (*_UNREADABLE, pickle.UnpicklingError) as e:
            raise InputError(
                f"checkpoint {self.path}: not one of distill's ({type(e).__name__}). "
                "Delete it to start anew, or name another file."
            ) from e
        other = {k: (settings.get(k), v) for k, v in self.settings.items() if settings.get(k) != v}
        if other:
            found = "; ".join(f"{k} {was!r} there, {now!r} now" for k, (was, now) in other.items())
            raise CheckpointMismatchError(
                f"checkpoint {self.path} is of another run: {found}. "
                "Use that run's options, or delete the file to start anew."
            )
        return dict(state)

    def due(self) -> bool:
        """Tell whether it is time to save."""
        return self.path is not None and time.monotonic() - self._saved >= _SECONDS

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the file by one with this state; killed in between, the old one stays."""
        if self.path is None:
            return
        whole = {"settings": self.settings, "state": dict(state)}
        with replacing(self.path) as partial:
            save_tensors(lambda: torch.save(whole, partial))
        self._saved = time.monotonic()
