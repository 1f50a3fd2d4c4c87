"""A window as large as the map samples nothing: told by who reads it, or by an example."""

from __future__ import annotations

import copy
from collections.abc import Callable

import einops
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery import apply_antialias, plan_antialias

MODELS: dict[str, type[Net]] = {}


class Net(nn.Module):
    """One strided conv: 16 px to 8, or 8 to 4."""

    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 8, 3, 2, 1), nn.Dropout(0.1)
        self.fc, self.head, self.norm = (
            nn.Linear(self.width, 3),
            nn.Conv2d(8, 3, 1),
            nn.LayerNorm(8),
        )


def net(name: str) -> Callable[[type[Net]], type[Net]]:
    def keep(cls: type[Net]) -> type[Net]:
        MODELS[name] = cls
        return cls

    return keep


@net("dropout as a function")
class _Dropout(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(F.avg_pool2d(self.conv(x), 4), 0.5, self.training).flatten(1))


@net("index behind an ellipsis")
class _Ellipsis(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(self.conv(x), 4)[..., 0, 0])


@net("flatten from behind")
class _Flatten(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(self.conv(x), 4).flatten(-3))


@net("positions, then the only one")
class _Positions(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(self.conv(x), 4).flatten(2).squeeze(-1))


@net("linear as a function")
class _Linear(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.avg_pool2d(self.conv(x), 4).flatten(1), self.fc.weight, self.fc.bias)


@net("matrix product")
class _Matrix(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(F.avg_pool2d(self.conv(x), 4).flatten(1)) @ self.fc.weight.t()


@net("read twice, and returned")
class _Twice(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = F.avg_pool2d(self.conv(x), 4).flatten(1)
        return self.fc(rows), self.norm(rows), rows


@net("mean and maximum added")
class _Added(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc((F.avg_pool2d(x, 4) + F.max_pool2d(x, 4)).flatten(1))


@net("mean and maximum joined as maps")
class _JoinedMaps(Net):
    width = 16

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(torch.cat([F.avg_pool2d(x, 4), F.max_pool2d(x, 4)], 1).flatten(1))


@net("mean and maximum joined as rows")
class _JoinedRows(Net):
    width = 16

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(torch.cat([F.avg_pool2d(x, 4).flatten(1), F.max_pool2d(x, 4).flatten(1)], 1))


@net("gate")
class _Gate(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(F.avg_pool2d(x, 4))


@net("einops")
class _Einops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(einops.rearrange(F.avg_pool2d(self.conv(x), 4), "b c 1 1 -> b c"))


@pytest.mark.parametrize("name", MODELS)
def test_one_reader_that_needs_a_number_a_channel_is_enough(name: str) -> None:
    model = MODELS[name]().eval()
    assert [edit.site.op for edit in plan_antialias(model, max_stride=None).edits] == ["conv"]
    model(torch.randn(1, 3, 8, 8))


WITH_ROOM = [
    "dropout as a function",
    "flatten from behind",
    "linear as a function",
    "matrix product",
    "mean and maximum added",
    "mean and maximum joined as maps",
    "mean and maximum joined as rows",
]


@pytest.mark.parametrize("name", WITH_ROOM)
def test_a_head_with_room_for_more_is_given_a_map(name: str) -> None:
    """A linear layer that takes the 4 positions of a larger map: these pools sample."""
    wide = type("Wide", (MODELS[name],), {"width": 4 * MODELS[name].width})
    plan = plan_antialias(wide().eval(), max_stride=None)
    assert any("pool" in decision.site.op for decision in plan.decisions)


class Features(Net):
    """What reads the pool does not say how large its map is."""

    def __init__(self, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            F.avg_pool2d(self.conv(x), 4) if self.pool is None else self.pool(self.conv(x))
        )


@pytest.mark.parametrize("pool", [None, nn.AvgPool2d(4), nn.MaxPool2d(4), nn.AvgPool2d((4, 1))])
@pytest.mark.parametrize("max_stride", [4, None])
def test_an_example_shows_that_a_window_is_the_whole_map(
    pool: nn.Module | None, max_stride: int | None
) -> None:
    model = Features(copy.deepcopy(pool)).eval()
    small, large = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 16, 16)
    plan = plan_antialias(model, max_stride=max_stride, example=small)
    assert [edit.site.op for edit in plan.edits] == ["conv"]
    assert "whole map" in next(left.reason for left in plan.left)
    assert len(plan_antialias(model, max_stride=max_stride, example=large).edits) == 2
    assert len(plan_antialias(model, max_stride=max_stride).edits) == 2
    wanted = model.pool(model.conv(small)) if model.pool else F.avg_pool2d(model.conv(small), 4)
    apply_antialias(model, filter="identity", max_stride=max_stride, example=small)
    assert torch.allclose(model(small), model.head(wanted), atol=1e-6)


def test_a_small_example_does_not_take_padded_ops_for_whole_maps() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).eval()
    assert len(plan_antialias(model, example=torch.randn(1, 3, 4, 4)).edits) == 2


def test_a_size_that_the_model_declares_is_an_example() -> None:
    model = Features()
    model.pretrained_cfg = {"input_size": (3, 8, 8)}  # type: ignore[assignment]
    assert [edit.site.op for edit in plan_antialias(model.eval()).edits] == ["conv"]
    model.pretrained_cfg = {"input_size": (3, 32, 32)}  # type: ignore[assignment]
    assert len(plan_antialias(model).edits) == 2
