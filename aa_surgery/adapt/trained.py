"""What distillation trains of a model, and with which step size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from aa_surgery.adapt.norms import find_norms
from aa_surgery.errors import InputError

__all__ = ["Trained", "only_trained", "parameter_groups", "restore", "trained_parameters"]

Trained = Literal["all", "norms", "treated"]

_LEAST_RMS = 1e-3  # a tensor of zeros would never move


def trained_parameters(
    model: nn.Module, teacher: nn.Module, train: Trained = "all"
) -> dict[str, nn.Parameter]:
    """Return the parameters to train, by name.

    Args:
        model: The anti-aliased model.
        teacher: The original; a treated module is one whose class differs from it.
        train: `"all"`; `"norms"`, the affine parameters of the norms; `"treated"`, the parameters
            of the treated modules.

    Raises:
        InputError: `train` is none of the three, or the model has no such parameter.

    >>> list(trained_parameters(nn.BatchNorm2d(2), nn.BatchNorm2d(2), "norms"))
    ['weight', 'bias']
    """
    everything = dict(model.named_parameters())
    if train == "all":
        chosen = set(everything)
    elif train == "norms":
        chosen = {
            _join(name, own)
            for name, norm in find_norms(model).items()
            for own, _ in norm.module.named_parameters(recurse=False)
        }
    elif train == "treated":
        theirs = dict(teacher.named_modules())
        chosen = {
            _join(name, own)
            for name, module in model.named_modules()
            if name in theirs and name and type(theirs[name]) is not type(module)
            for own, _ in module.named_parameters()
        }
    else:
        raise InputError(f"train={train!r} is unknown. Use one of {get_args(Trained)}.")
    found = {name: p for name, p in everything.items() if name in chosen}
    if not found:
        raise InputError(
            f"train={train!r}: {type(model).__name__} has no such parameter. Use 'all'."
        )
    return found


def _join(module: str, own: str) -> str:
    return f"{module}.{own}" if module else own


def parameter_groups(parameters: dict[str, nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """Return one group a tensor, its step `lr` times the tensor's root mean square.

    Adam moves every weight by about its step size whatever the gradient. The tensors of a
    pretrained network differ in scale by orders, so that no common step suits them; a relative one
    does (Shazeer and Stern 2018, arXiv:1804.04235, section 8).
    """
    return [
        {"params": [p], "base": lr * max(float(p.detach().square().mean().sqrt()), _LEAST_RMS)}
        for p in parameters.values()
    ]


@contextmanager
def only_trained(
    model: nn.Module, parameters: dict[str, nn.Parameter]
) -> Iterator[dict[str, Tensor]]:
    """Let only `parameters` have gradients inside; give their values back on an error."""
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for p, _, _ in flags:
        p.requires_grad_(False)
    for p in parameters.values():
        p.requires_grad_(True)
    try:
        yield before
    except BaseException:  # an interrupt too must leave nothing half-trained
        restore(parameters, before)
        raise
    finally:
        for p, flag, grad in flags:
            p.requires_grad_(flag)
            p.grad = grad


@torch.no_grad()
def restore(parameters: dict[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters of the same names."""
    for name, p in parameters.items():
        p.copy_(values[name])
