"""What tells one training run from another: its weights, its surgery and its photographs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from aa_surgery.treated import PLAN

__all__ = ["run_identity"]


def run_identity(
    model: nn.Module, teacher: nn.Module, images: Sequence[Tensor] | Tensor
) -> dict[str, str]:
    """Return a digest of the teacher's weights, of the surgery, and of the photographs.

    The model's own weights are not in it: they follow from these, up to rounding.
    """
    plan = vars(model).get(PLAN)
    words = "" if plan is None else json.dumps(plan.to_dict(), sort_keys=True, default=str)
    return {
        "weights": _digest(teacher.state_dict().values()),
        "surgery": hashlib.sha256(f"{words}{model}".encode()).hexdigest()[:16],
        "photographs": _digest(images),
    }


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        plain = tensor.detach().cpu().contiguous()
        digest.update(plain.flatten().view(torch.uint8).numpy().data if plain.numel() else b"")
    return digest.hexdigest()[:16]
