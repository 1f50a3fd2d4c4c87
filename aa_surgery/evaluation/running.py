"""Running a classifier for a measurement and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from aa_surgery.errors import InputError

__all__ = ["device_of", "evaluating", "logits_of"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode inside, and give every module its own mode back after.

    >>> model = nn.Sequential(nn.Dropout()).train()
    >>> with evaluating(model):
    ...     model[0].training
    False
    >>> model[0].training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU where it has none.

    >>> device_of(nn.ReLU())
    device(type='cpu')
    """
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model and check that logits `(N, classes)` come back.

    Raises:
        InputError: Something else came back.

    >>> logits_of(nn.Flatten(), torch.rand(2, 3, 1, 1)).shape
    torch.Size([2, 3])
    """
    out = model(images)
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(images):
        what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"{type(model).__name__} returned {what} for {len(images)} images: needs logits "
            "(N, classes). Measure a classifier, or wrap the model so that it returns logits."
        )
    return out
