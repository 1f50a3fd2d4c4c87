"""Cost: floating-point operations, parameters, and the time of one model against another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aa_surgery.errors import InputError
from aa_surgery.evaluation.running import evaluating

__all__ = ["TimeRatio", "count_flops", "count_parameters", "measure_time_ratio"]


@dataclass(frozen=True)
class TimeRatio:
    """Hold the times of two models, measured in turns.

    Attributes:
        first_ms: Median time of the first model, ms.
        second_ms: Median time of the second model, ms.
        ratio: `second_ms / first_ms`.
        repeats: Runs of each.
        threads: Of the CPU, that torch was allowed.
    """

    first_ms: float
    second_ms: float
    ratio: float
    repeats: int
    threads: int


def count_flops(model: nn.Module, *inputs: Tensor) -> int:
    """Count the floating-point operations of one forward: 2 x multiply-accumulates.

    Counts convolutions, matrix products and attention, as `FlopCounterMode` does; additions,
    norms and activations are not counted.

    >>> count_flops(nn.Conv2d(3, 8, 3, bias=False), torch.rand(1, 3, 5, 5))
    3888
    """
    with torch.no_grad(), evaluating(model), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops())


def count_parameters(model: nn.Module) -> int:
    """Count the parameters, tied ones once.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


def measure_time_ratio(
    first: nn.Module, second: nn.Module, *inputs: Tensor, repeats: int = 20, warmup: int = 3
) -> TimeRatio:
    """Time two models' forward in turns, and compare the medians.

    Turns make both feel the same disturbance of a shared machine; the order within a turn
    alternates.

    Args:
        first: The reference.
        second: The model to compare with it.
        inputs: What both forwards take.
        repeats: Timed runs of each.
        warmup: Runs of each before these.

    Raises:
        InputError: `repeats` is below 1.

    >>> measure_time_ratio(nn.ReLU(), nn.ReLU(), torch.rand(8), repeats=3).repeats
    3
    """
    if repeats < 1:
        raise InputError(f"repeats {repeats}: at least one run is needed.")
    models = (first, second)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode(), evaluating(first), evaluating(second):
        for turn in range(-warmup, repeats):
            for which in (0, 1) if turn % 2 else (1, 0):
                elapsed = _seconds(models[which], inputs)
                if turn >= 0:
                    seconds[which].append(elapsed)
    a, b = (1000 * median(times) for times in seconds)
    return TimeRatio(a, b, b / a, repeats, torch.get_num_threads())


def _seconds(run: Callable[..., object], inputs: tuple[Tensor, ...]) -> float:
    synchronise = torch.cuda.synchronize if any(i.is_cuda for i in inputs) else _nothing
    synchronise()
    start = perf_counter()
    run(*inputs)
    synchronise()
    return perf_counter() - start


def _nothing() -> None:
    """Wait for nothing: the CPU runs in order."""
