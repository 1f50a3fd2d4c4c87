"""Forwards that people write: the ways in which they call what samples."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import own_helpers as helpers
import torch
import torch.nn.functional as F
from own_helpers import pool, recursive, twice
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


class Net(nn.Module):
    """A conv; what samples is written in the forwards of those that derive from it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Linear(4, 2)
        self.runs = 0

    def _down(self, x: Tensor) -> Tensor:
        self.runs += 1
        return F.max_pool2d(x, 2)

    down = _down

    @staticmethod
    def fixed(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def forward(self, x: Tensor) -> Any:
        return self._down(self.conv(x))


class OfAModule(Net):
    def forward(self, x: Tensor) -> Tensor:
        return helpers.pool(pool(self.conv(x), size=2))


class Decorated(Net):
    def forward(self, x: Tensor) -> Tensor:
        return helpers.wrapped_pool(self.conv(x))


class DecoratedForward(Net):
    @helpers.counting()
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2)


class AliasOfAMethod(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.conv(x)) + self._down(self.conv(x))


class AliasOfAForward(Net):
    def _run(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2)

    forward = _run


class Private(Net):
    def __pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.__pool(self.conv(x))


class Static(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(self.conv(x))


class KeptMethod(Net):
    def forward(self, x: Tensor) -> Tensor:
        down = self.down
        return getattr(self, "_" + "down")(down(self.conv(x)))


class BoundBefore(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bound = self._down

    def forward(self, x: Tensor) -> Tensor:
        return self.bound(self.conv(x))


class HandedOn(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(list(map(self.down, [self.conv(x), x])), 1)


class Checkpointed(Net):
    def _part(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2)

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self._part, x, use_reentrant=False)


class Partial(Net):
    def forward(self, x: Tensor) -> Tensor:
        average = functools.partial(F.avg_pool2d, stride=2, kernel_size=3)
        return average(twice(helpers.PARTIAL, self.conv(x)))


class Super(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + super().forward(x)


class Named(Net):
    def forward(self, x: Tensor) -> Any:
        return Net.forward(self, x) * 2


class Mixin:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(super().forward(x), 2)  # type: ignore[misc]


class Mixed(Mixin, Net):  # type: ignore[misc]
    pass


class Abstract(Net, ABC, Generic[T]):
    @abstractmethod
    def sampled(self, x: T) -> T: ...

    def forward(self, x: T) -> T:
        return self.sampled(self.conv(x))


class Concrete(Abstract[Tensor]):
    def sampled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


class Nested(Net):
    def forward(self, x: Tensor) -> Tensor:
        runs = 0

        def inner(y: Tensor, size: int = 2) -> Tensor:
            nonlocal runs
            runs += 1
            return F.max_pool2d(y, size)

        return (lambda y: F.avg_pool2d(y, 2))(inner(self.conv(x))) * runs


class Generated(Net):
    def _steps(self, x: Tensor) -> Any:
        for _ in range(2):
            x = F.max_pool2d(x, 2)
            yield x

    def forward(self, x: Tensor) -> Any:
        return [*self._steps(self.conv(x)), *(F.avg_pool2d(x, k) for k in (1, 2, 4))]


class OneExpression(Net):
    def forward(self, x: Tensor) -> Any:
        ü = F.avg_pool2d(F.max_pool2d(self.conv(x), 2), 2); return {"größe": F.max_pool2d(ü, 2), "→": ü}  # fmt: skip  # noqa


class Chosen(Net):
    def forward(self, x: Tensor) -> Tensor:
        table = {"max": F.max_pool2d, "avg": F.avg_pool2d}
        first = F.max_pool2d if self.head is not None else F.avg_pool2d
        return table["avg"](first(getattr(F, "max_pool2d")(self.conv(x), 2), 2), 2)  # noqa: B009


class Starred(Net):
    def forward(self, x: Tensor, /, *rest: float, scale: float = 1.0, **more: Any) -> Tensor:
        where = (self.conv(x), 2)
        options = dict(kernel_size=2, input=F.max_pool2d(*where))
        return F.max_pool2d(**options) * scale  # type: ignore[arg-type]


class Gathered(Net):
    def forward(self, *maps: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(maps[0]), 2)


class Guarded(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        try:
            raise KeyError
        except KeyError:
            if (y := F.max_pool2d(self.conv(x), 2)) is not None and mask is None:
                return y
        finally:
            self.runs += 1
        return y * F.max_pool2d(mask, 2)


class Called(Net):
    def __call__(self, x: Tensor) -> Any:
        self.runs += 1
        return super().__call__(x) + 1

    def forward(me, x: Tensor) -> Tensor:
        self = F.max_pool2d(me.conv(x), 2)
        return self


TREATED = (
    *(OfAModule, Decorated, DecoratedForward, AliasOfAMethod, AliasOfAForward, Private, Static),
    *(
        KeptMethod,
        BoundBefore,
        HandedOn,
        Checkpointed,
        Partial,
        Super,
        Named,
        Mixed,
        Concrete,
        Nested,
    ),
    *(Nested, Generated, OneExpression, Chosen, Starred, Gathered, Guarded, Called),
)


class Recursive(Net):
    def forward(self, x: Tensor) -> Tensor:
        return recursive(self.conv(x), 2)


class HelperHandedOn(Net):
    def forward(self, x: Tensor) -> Tensor:
        return twice(pool, self.conv(x))


class PartialMethod(Net):
    half = functools.partialmethod(Net._down)

    def forward(self, x: Tensor) -> Tensor:
        return self.half(self.conv(x))


class Hidden(Net):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(2)]

    def forward(self, x: Tensor) -> Any:
        return self.hidden[1](F.relu(self.hidden[0](self.conv(x))))


class ListOfMethods(Net):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self._down, functools.partial(self._down)]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self.conv(x))[:, :3]
        return x


class MadeInside(Net):
    def forward(self, x: Tensor) -> Any:
        return nn.MaxPool2d(2)(self.conv(x))


class DefaultFunction(Net):
    def forward(self, x: Tensor, sample: Any = lambda y: F.max_pool2d(y, 2)) -> Any:
        return sample(self.conv(x))


class Lambda(Net):
    forward = lambda self, x: F.max_pool2d(self.conv(x), 2)  # noqa: E731


exec("class Typed(Net):\n    def forward(self, x):\n        return F.max_pool2d(self.conv(x), 2)")

LEFT = (
    *(
        Recursive,
        HelperHandedOn,
        PartialMethod,
        Hidden,
        ListOfMethods,
        MadeInside,
        DefaultFunction,
        Lambda,
    ),
    globals()["Typed"],
)
