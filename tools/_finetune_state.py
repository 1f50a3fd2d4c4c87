"""What a run leaves on the disk: each file whole or not at all, whenever the run is killed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aa_surgery.errors import InputError

LAST, BEST, SUMMARY = "last.pth.tar", "model_best.pth.tar", "summary.csv"
Row = dict[str, float]


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint that timm reads, in place of the one before."""
    temporary = path.with_name("tmp.pth.tar")  # one name: what a kill leaves is overwritten
    torch.save(dict(state), temporary)
    temporary.replace(path)


def load(folder: Path, essential: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the state to go on from, or None for a folder without one.

    Raises:
        InputError: The run in that folder had other options.
    """
    path = folder / LAST
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    before = state["args"]
    changed = [
        f"{key} was {before.get(key)}, now {essential.get(key)}"
        for key in sorted(before.keys() | essential.keys())
        if before.get(key) != essential.get(key)
    ]
    if changed:
        raise InputError(
            f"{path}: is of a run with other options ({'; '.join(changed)}). Give the options of "
            "then to resume it, or another --output, or remove the folder."
        )
    return state


def write_summary(folder: Path, rows: Sequence[Row]) -> None:
    """Write the table of all epochs; the checkpoint holds the rows, so that the two agree."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["epoch"])
    writer.writeheader()
    writer.writerows(rows)
    temporary = folder / f"{SUMMARY}.tmp"
    temporary.write_text(text.getvalue())
    temporary.replace(folder / SUMMARY)


class Log:
    """The console, and TensorBoard where it is installed.

    Args:
        folder: Of the run; the events go to `tensorboard/` in it.
        first: The epoch that comes first; events of it and later ones, of a run that was killed,
            are purged.
        tensorboard: Whether to write events.
    """

    def __init__(self, folder: Path, first: int, tensorboard: bool) -> None:
        self._writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                print("no TensorBoard files: pip install 'aa-surgery[finetune]' brings it.")
            else:
                self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def epoch(self, row: Row, epochs: int, seconds: float) -> None:
        """Print one line for the epoch, and write its numbers."""
        numbers = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in row.items())
        print(f"{numbers} (of {epochs} epochs, {seconds:.1f} s)", flush=True)
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, int(row["epoch"]))
            self._writer.flush()
