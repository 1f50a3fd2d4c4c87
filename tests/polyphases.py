"""The layers that choose phases, photographs, and phases by their definition."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from aa_surgery.layers.polyphase import Polyphase
from aa_surgery.methods import aps, lps
from aa_surgery.methods.method import Method

METHODS = [aps.METHOD, lps.METHOD]
PHOTOGRAPHS = [data.chelsea, data.astronaut, data.coffee, data.rocket]


def photographs(size: int) -> Tensor:
    maps = [torch.from_numpy(picture()).movedim(-1, 0)[None] for picture in PHOTOGRAPHS]
    return torch.cat([F.interpolate(m.float() / 255, (size, size), mode="area") for m in maps])


def make(method: Method, channels: int = 3, **keywords: Any) -> Polyphase:
    if method.per_channel:
        keywords["channels"] = channels
    return method.layer(**keywords).eval()


def phases_by_definition(x: Tensor, rate: Sequence[int]) -> list[Tensor]:
    starts = itertools.product(*map(range, rate))
    return [
        x[(..., *(slice(k, None, r) for k, r in zip(start, rate, strict=True)))] for start in starts
    ]
