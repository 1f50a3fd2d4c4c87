"""Helpers of forwards that people write, in a module of their own."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CALLS: list[Any] = []
COUNT = 0
SCALE = 1.0
DRAWS, NUMBERS, GENERATOR = random.Random(1), np.random.RandomState(1), torch.Generator()
TOTAL = torch.zeros(1)


class Shared:
    """What a program keeps once for all of its models."""

    calls = 0
    names: list[str] = []

    def __init__(self) -> None:
        self.seen = 0


SHARED = Shared()


class Slotted:
    __slots__ = ("__size", "seen")

    def __init__(self, size: int) -> None:
        self.__size, self.seen = size, 0

    def pool(self, x: Tensor) -> Tensor:
        self.seen += 1
        return F.max_pool2d(x, self.__size)


def pool(x: Tensor, size: int = 2) -> Tensor:
    return F.max_pool2d(x, size)


def counted_pool(x: Tensor) -> Tensor:
    global COUNT
    COUNT += 1
    CALLS.append(x.shape)
    Shared.calls += 1
    Shared.names.append("pool")
    SHARED.seen += 1
    TOTAL.add_(1)
    return F.max_pool2d(x, 2) * SCALE


def drawn_pool(x: Tensor) -> Tensor:
    drawn = DRAWS.random() * NUMBERS.rand() * torch.rand(1, generator=GENERATOR)
    return F.max_pool2d(x, 2) * drawn


def counting() -> Callable[[Callable[..., Any]], Any]:
    calls, log = 0, []

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            log.append(calls)
            return function(*args, **kwargs)

        inner.calls = lambda: (calls, list(log))  # type: ignore[attr-defined]
        return inner

    return decorate


@counting()
def wrapped_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


@contextlib.contextmanager
def noted(where: list[str]) -> Iterator[list[str]]:
    where.append("in")
    try:
        yield where
    finally:
        where.append("out")


def twice(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(function(x))


def recursive(x: Tensor, depth: int) -> Tensor:
    return recursive(F.max_pool2d(x, 2), depth - 1) if depth else x


@functools.lru_cache
def cached(number: int) -> int:
    return number


def reset() -> None:
    """Put everything back that the helpers count and draw."""
    global COUNT
    COUNT = Shared.calls = SHARED.seen = 0
    for held in (CALLS, Shared.names):
        held.clear()
    TOTAL.zero_()
    cached.cache_clear()
    DRAWS.seed(1)
    NUMBERS.seed(1)
    GENERATOR.manual_seed(1)


PARTIAL = functools.partial(F.max_pool2d, kernel_size=2)


class Config(dict[str, Any]):
    """A dict whose keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    __setattr__ = dict.__setitem__
