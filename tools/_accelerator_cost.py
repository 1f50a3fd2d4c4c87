"""What anti-aliasing costs on an accelerator: time and peak memory, as ratios to the untouched."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from _bench_timing import Ratio, summarise
from torch import Tensor, nn

ROUNDS, CALLS = 11, 5
Contenders = dict[str, nn.Module]


@dataclass(frozen=True)
class Cost:
    """One way to run a network: the untouched one's ms, and the others' ratios to it."""

    name: str
    way: str
    milliseconds: float
    time: dict[str, Ratio]
    memory: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return {**vars(self), "time": {name: str(ratio) for name, ratio in self.time.items()}}


def costs(name: str, networks: Contenders, x: Tensor) -> Iterator[Cost]:
    """Measure inference and training steps; the first of `networks` is the untouched one."""
    for way, layout, dtype in (
        ("float32", torch.contiguous_format, torch.float32),
        ("channels_last, bfloat16", torch.channels_last, torch.bfloat16),
    ):
        for train in (False, True):
            models = {k: copy.deepcopy(m).to(memory_format=layout) for k, m in networks.items()}
            given = x.to(memory_format=layout)
            calls = {k: _call(m.train(train), given, dtype, train) for k, m in models.items()}
            yield _measured(name, f"{'training' if train else 'inference'}, {way}", calls)


def _call(model: nn.Module, x: Tensor, dtype: torch.dtype, train: bool) -> Callable[[], Any]:
    autocast = torch.autocast("cuda", dtype, enabled=dtype is not torch.float32)

    def infer() -> None:
        with torch.no_grad(), autocast:
            model(x)

    def step() -> None:
        with autocast:
            loss = model(x).float().square().mean()
        loss.backward()
        model.zero_grad()

    return step if train else infer


def _measured(name: str, way: str, calls: dict[str, Callable[[], Any]]) -> Cost:
    order, shuffle = list(calls), random.Random(0).shuffle
    times: dict[str, list[float]] = {key: [] for key in calls}
    peak = {}
    for key, call in calls.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak[key] = torch.cuda.max_memory_allocated() - before
    for _ in range(ROUNDS):
        shuffle(order)
        for key in order:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(CALLS):
                calls[key]()
            end.record()
            end.synchronize()
            times[key].append(begin.elapsed_time(end) / CALLS)
    base, *others = calls
    ratios = {
        k: summarise([t / b for t, b in zip(times[k], times[base], strict=True)]) for k in others
    }
    return Cost(
        name, way, summarise(times[base]).median, ratios, {k: peak[k] / peak[base] for k in others}
    )
