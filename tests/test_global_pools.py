"""A pool over the whole map samples nothing, whatever it is called and however it is read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, plan_antialias

Head = Callable[[Tensor], Tensor]


class Cifar(nn.Module):
    """Three convs, 16 px down to 4, and a head that pools all that is left."""

    def __init__(self, pool: nn.Module | Head, rows: Head, width: int = 8) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)
        )
        self.pool, self.rows = copy.deepcopy(pool), rows
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.rows(self.pool(F.relu(self.convs(x))))))


POOLS = {
    "function": lambda x: F.avg_pool2d(x, 4),
    "maximum": lambda x: F.max_pool2d(x, 4),
    "its size": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "its sides": lambda x: F.max_pool2d(x, (x.size(2), x.size(3))),
    "module": nn.AvgPool2d(4),
    "module of maxima": nn.MaxPool2d(4),
    "larger than the map": nn.AvgPool2d(16, ceil_mode=True),
    "in stages": nn.Sequential(nn.AvgPool2d(4), nn.ReLU(), nn.Conv2d(8, 8, 1)),
}
ROWS = {
    "flatten": lambda x: x.flatten(1),
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "module": nn.Flatten(),
    "view": lambda x: x.view(x.size(0), -1),
    "view of a number": lambda x: x.view(-1, 8),
    "reshape to its head": lambda x: x.reshape(x.shape[:2]),
    "squeeze": lambda x: x.squeeze(-1).squeeze(-1),
    "index": lambda x: x[:, :, 0, 0],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_that_leaves_one_number_a_channel_is_no_site(pool: str, rows: str) -> None:
    net = Cifar(POOLS[pool], ROWS[rows]).eval()
    plan = plan_antialias(net, max_stride=None)
    assert [edit.site.op for edit in plan.edits] == ["conv", "conv"]
    assert not any("pool" in left.site.op for left in plan.left)
    assert audit(apply_antialias(net), torch.randn(2, 3, 16, 16)).ok


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2), lambda x: F.avg_pool2d(x, 2)])
def test_a_pool_that_leaves_a_map_is_one(pool: nn.Module | Head) -> None:
    net = Cifar(pool, nn.Flatten(), width=8 * 4).eval()
    plan = plan_antialias(net)
    ops = [decision.site.op for decision in plan.decisions]
    assert len(ops) == 3
    assert any("pool" in op for op in ops)


def test_rows_of_tokens_are_no_rows_of_the_map() -> None:
    """A linear layer of as many inputs as channels reads each position where these come last."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 8, 3, 1, 1), nn.MaxPool2d(2)
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.pool(self.conv(x)).flatten(2).transpose(1, 2))

    assert [edit.site.name for edit in plan_antialias(Tokens()).edits] == ["pool"]


def test_transformers_pool_of_efficientnet_is_global() -> None:
    import transformers

    config = transformers.EfficientNetConfig(
        image_size=64, depth_coefficient=0.1, width_coefficient=0.2
    )
    with torch.device("meta"):
        net = transformers.EfficientNetForImageClassification(config)
    sites = [edit.site for edit in plan_antialias(net, max_stride=None).edits]
    assert sites
    assert {site.op for site in sites} == {"conv"}
