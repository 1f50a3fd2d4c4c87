"""Let today's torch read what MMEngine's Runner saved.

`torch.load` reads plain tensors only since torch 2.6 (`weights_only=True`), and MMEngine 0.10.7
calls it without an argument; but the Runner stores its log history in every checkpoint, so that
neither `resume` nor `load_from` could read one. The few types of that history are declared safe
here; a file with anything else is refused as before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch.serialization import add_safe_globals

__all__ = ["trust_runner_checkpoints"]

_STATISTICS = ("current", "max", "mean", "min")


def trust_runner_checkpoints() -> None:
    """Declare the types in a Runner's log history safe for `torch.load`.

    >>> import io
    >>> file = io.BytesIO()
    >>> torch.save({"loss": HistoryBuffer([0.5], [1])}, file)
    >>> trust_runner_checkpoints()
    >>> float(torch.load(io.BytesIO(file.getvalue()))["loss"].current())
    0.5
    """
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return  # torch < 2.6 loads anything by default, and cannot take names for what it trusts
    arrays: Any = np.array(0).__reduce__()[0]
    scalars: Any = np.float64(0).__reduce__()[0]
    types: list[Any] = [HistoryBuffer, np.ndarray, np.dtype]
    types += {type(np.dtype(kind)) for kind in (bool, int, float, np.int32, np.float32)}
    named = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")  # numpy 1 and 2
        for name, function in (("_reconstruct", arrays), ("scalar", scalars))
    ]
    # pickle spells a method as `getattr(HistoryBuffer, "mean")`; this one reads nothing else
    add_safe_globals([*types, *named, (_statistic, "builtins.getattr")])


def _statistic(owner: Any, name: str) -> Any:
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise AttributeError(f"a checkpoint asks for {name!r} of {owner!r}, which is not trusted.")
    return getattr(HistoryBuffer, name)
