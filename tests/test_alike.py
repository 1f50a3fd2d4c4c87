"""Two modules share a trace only if their forwards do the same: each shows its own sites."""

from __future__ import annotations

from enum import Enum
from functools import cached_property, lru_cache, partial
from operator import attrgetter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery import find_sites


class Pooling(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, self.step)


class MethodOfAPart(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.part = Pooling(step)

    def forward(self, x: Tensor) -> Tensor:
        return self.part.pooled(x)


class MethodOfAPartInAList(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Identity(), Pooling(step)])

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[1].pooled(x)


class Counting(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def __len__(self) -> int:
        return self.step

    def __getitem__(self, number: int) -> int:
        return self.step + number


class LengthOfAPart(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.part = Counting(step)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: len(self.part), :: len(self.part)]


class IndexOfAPart(LengthOfAPart):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, self.part[0])


class CachedProperty(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.given = step

    @cached_property
    def step(self) -> int:
        return self.given

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, self.step)


class SuperOfTorch(nn.Conv2d):
    def __init__(self, step: int) -> None:
        super().__init__(3, 3, 3, step, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class ConvForward(SuperOfTorch):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * 2, self.bias)


class Unregistered(nn.Module):
    """Holds a part where torch does not see it."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.held = [Pooling(step)]

    def forward(self, x: Tensor) -> Tensor:
        return self.held[0].pooled(x)


class Options:
    def __init__(self, step: int) -> None:
        self.given = step

    @property
    def step(self) -> int:
        return self.given


class ObjectOfOptions(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.options = Options(step)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, self.options.step)


class OrderOfParts(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        parts: list[tuple[str, nn.Module]] = [("a", nn.Identity()), ("b", Pooling(2))]
        self.parts = nn.ModuleDict(dict(parts if step == 1 else parts[::-1]))

    def forward(self, x: Tensor) -> Tensor:
        first: Any = next(iter(self.parts.values()))
        return first.pooled(x) if isinstance(first, Pooling) else first(x)


def pooled(module: Any, x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, module.step)


class Helper:
    def __call__(self, module: Any, x: Tensor) -> Tensor:
        return pooled(module, x)

    def pool(self, module: Any, x: Tensor) -> Tensor:
        return pooled(module, x)


class Given:
    """A descriptor."""

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        return owner.given


TABLE = {"pool": pooled}
PARTIAL = partial(pooled)
HELPER = Helper()
READ_STEP = attrgetter("step")


class Stepping(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step


class CachedMethod(Stepping):
    @lru_cache  # noqa: B019
    def stride(self) -> int:
        return self.step

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, self.stride())


class Descriptor(nn.Module):
    stride: Any = Given()

    def __init__(self, step: int) -> None:
        super().__init__()
        self.given = step

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, self.stride)


class FromATable(Stepping):
    def forward(self, x: Tensor) -> Tensor:
        return TABLE["pool"](self, x)


class ByAPartial(Stepping):
    def forward(self, x: Tensor) -> Tensor:
        return PARTIAL(self, x)


class ByADefault(Stepping):
    def pooling(self, x: Tensor, function: Any = pooled) -> Tensor:
        return function(self, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooling(x)


class ByAnAttribute(Stepping):
    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.function = pooled

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class ByAnObject(Stepping):
    def forward(self, x: Tensor) -> Tensor:
        return HELPER.pool(self, x)


class Kind(Enum):
    """Its members are attributes of its class."""

    MAX = "max"

    def pool(self, module: Any, x: Tensor) -> Tensor:
        return pooled(module, x)


class ByAnEnum(Stepping):
    def forward(self, x: Tensor) -> Tensor:
        return Kind.MAX.pool(self, x)


class ByACallableObject(Stepping):
    def forward(self, x: Tensor) -> Tensor:
        return HELPER(self, x)


class ByASharedObject(Stepping):
    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.helper = HELPER

    def forward(self, x: Tensor) -> Tensor:
        return self.helper.pool(self, x)


class ByAnAttrgetter(Stepping):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, READ_STEP(self))


class Parameters(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(3, 3, 3, 3)] * (step - 1))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = F.conv2d(x, weight, stride=2, padding=1)
        return x


class ForwardOfAPart(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, step)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool.forward(x)


class NumberInATensor(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.held = [torch.tensor(step)]

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, int(self.held[0]))


class Matching(Stepping):
    def forward(self, x: Tensor) -> Tensor:
        match self:
            case Stepping(step=2):
                return F.max_pool2d(x, 2)
        return x


ALIKE = (
    *(CachedMethod, Descriptor, FromATable, ByAPartial, ByADefault, ByAnAttribute, ByAnObject),
    *(ByACallableObject, ByASharedObject, ByAnAttrgetter, ByAnEnum, Parameters, ForwardOfAPart),
    *(NumberInATensor, Matching),
    *(MethodOfAPart, MethodOfAPartInAList, LengthOfAPart, IndexOfAPart, CachedProperty),
    *(SuperOfTorch, ConvForward, Unregistered, ObjectOfOptions, OrderOfParts),
)


@pytest.mark.parametrize("steps", [(1, 2), (2, 1), (2, 1, 2)], ids=str)
@pytest.mark.parametrize("cls", ALIKE, ids=lambda cls: cls.__name__)
def test_each_of_two_modules_shows_its_own_sites(
    cls: type[nn.Module], steps: tuple[int, ...]
) -> None:
    net = nn.Sequential(*(cls(step) for step in steps))  # type: ignore[call-arg]
    net(torch.randn(1, 3, 16, 16))
    found = {site.name.partition(".")[0].partition(":")[0] for site in find_sites(net)}
    assert found == {str(number) for number, step in enumerate(steps) if step == 2}
