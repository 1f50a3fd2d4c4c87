"""Forwards that people write: what they keep, draw, ask and leave behind."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import own_helpers as helpers
import torch
import torch.nn.functional as F
from own_calls import Net
from torch import Tensor, nn


class Counts(Net):
    calls = 0
    names: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        Counts.calls += 1
        self.names.append(self.__class__.__name__)
        assert type(self) is Counts
        return F.max_pool2d(self.conv(x), 2) * self.calls


class CountsElsewhere(Net):
    def forward(self, x: Tensor) -> Tensor:
        return helpers.counted_pool(self.conv(x))


class Draws(Net):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.numbers = random.Random(1), np.random.RandomState(1)
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        x = helpers.drawn_pool(self.conv(x)) * self.own.random() * self.numbers.rand()
        if random.random() < 0.5 or np.random.rand() < 0.5:  # noqa: NPY002
            x = x * torch.rand(1).item()
        return x + torch.rand(1, generator=self.generator)


class Keeps(Net):
    """Writes to containers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.counter, self.lists = (
            deque[Any](maxlen=3),
            Counter[str](),
            defaultdict(list),
        )
        self.config, self.slotted = helpers.Config(size=2, seen=[0]), helpers.Slotted(2)
        self.table, self.sums = np.zeros(2), [torch.zeros(1)]
        self.record = SimpleNamespace(runs=0)
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.last.append(y.detach())
        self.counter["runs"] += 1
        self.lists["shape"].append(y.shape)
        self.config.seen[0] += 1
        self.slotted.seen += 1
        self.record.runs += helpers.cached(1)
        self.table[0] += 1
        self.sums[0] += 1
        self.average = 0.9 * self.average + y.detach().mean() if self.training else self.average
        return F.max_pool2d(y, self.config.size)


class KeepsAMap(Net):
    """What it keeps is the map between a conv and its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.strided, self.maps = nn.Conv2d(4, 4, 3, 2, 1), {"last": [None]}

    def forward(self, x: Tensor) -> Tensor:
        y = self.strided(self.conv(x))
        self.maps["last"][0] = y
        return F.relu(y)


class KeepsASize(KeepsAMap):
    def forward(self, x: Tensor) -> Tensor:
        y = self.strided(self.conv(x))
        self.size = y.shape
        return F.relu(y)


class Hooks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        handle = self.conv.register_forward_hook(lambda *seen: self.seen.append(seen[-1].shape))
        y = self.conv(x)
        handle.remove()
        if y.requires_grad:
            y.register_hook(lambda grad: self.seen.append(grad.shape))
        return F.max_pool2d(y, 2)


class Contexts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad(), helpers.noted(self.notes) as notes:
            first = F.max_pool2d(self.conv(x), 2)
            notes.append("in between")
        with torch.autocast("cpu", torch.bfloat16):
            second = F.max_pool2d(self.conv(x), 2)
        with torch.set_grad_enabled(self.training):
            third = self.head(F.max_pool2d(second.float(), 2).mean((2, 3)))
        return first, second, third


class Asks(Net):
    size, scale, mode = 2, 1.0, "max"

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.conv(x), 0.5, self.act.training)
        match self.mode:
            case "max":
                x = F.max_pool2d(x, self.size)
            case _:
                x = F.avg_pool2d(x, self.size)
        if torch.is_grad_enabled() and not isinstance(self.act, nn.Identity):
            x = self.act(x)
        return x * self.scale if self.conv.weight.dtype is torch.float32 else x


class Loops(Net):
    def __init__(self) -> None:
        super().__init__()
        self.strides, self.blocks = [2, 4], nn.ModuleList([nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for stride in self.strides:
            x = F.max_pool2d(x, 3, stride, 1)
        for block in self.blocks:
            x = block(x)
        return x


class LooksUp(Net):
    def __getattr__(self, name: str) -> Any:
        return 2 if name == "size" else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value + 1 if name == "noted" else value)

    @property
    def stored(self) -> Any:
        return self._stored

    @stored.setter
    def stored(self, value: Any) -> None:
        self._stored = value

    def forward(self, x: Tensor) -> Tensor:
        self.noted = 1
        self.stored = F.max_pool2d(self.conv(x), self.size)
        return self.stored * self.noted


STATES = (Counts, CountsElsewhere, Draws, Keeps, KeepsAMap, KeepsASize, Hooks, Contexts, Asks)
STATES += (Loops, LooksUp)


def _set(**values: Any) -> Any:
    def change(net: Any) -> None:
        for name, value in values.items():
            setattr(net, name, value)

    return change


def _grow(net: Any) -> None:
    net.strides[0] = 1
    net.strides.append(2)
    net.blocks.append(nn.Hardtanh(0, 0.1))


CHANGES: dict[str, tuple[type[Net], Any]] = {
    "size": (Asks, _set(size=4)),
    "scale": (Asks, _set(scale=3.0)),
    "branch": (Asks, _set(mode="avg")),
    "child": (Asks, lambda net: setattr(net, "act", nn.Identity())),
    "mode of a child": (Asks, lambda net: net.act.train()),
    "precision": (Asks, lambda net: net.double()),
    "lists": (Loops, _grow),
    "globals": (CountsElsewhere, lambda net: setattr(helpers, "SCALE", 2.0)),
}
