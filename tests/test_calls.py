"""A module is treated where it is called: by index, under two names, on any argument."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, plan_antialias


class Taps(nn.Module):
    """Calls the members of a Sequential one by one, and gives every map."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, 2, 1),
            nn.BatchNorm2d(4),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for layer in self.layers:
            x = layer(x)
            taps.append(x)
        return taps


class Whole(Taps):
    """The same, called as a whole."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


@pytest.mark.parametrize("placement", ["auto", "post", "pre"])
@pytest.mark.parametrize("make", [Taps, Whole])
def test_every_tap_keeps_its_size(make: type[nn.Module], placement: str) -> None:
    net, x = make().eval(), torch.randn(2, 3, 17, 16)
    sizes = [tap.shape for tap in net(x)]
    apply_antialias(net, placement=placement)
    assert [tap.shape for tap in net(x)] == sizes
    assert audit(net, x).ok


def test_a_sequential_that_is_called_is_followed() -> None:
    anchors = [str(edit.anchor) for edit in plan_antialias(Whole()).edits]
    assert anchors == ["after layers.1", "after layers.4"]


class TwoNames(nn.Module):
    """Parts that a Sequential holds as well, which alone is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()
        self.all = nn.Sequential(self.conv, self.act)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(x)


@pytest.mark.parametrize("placement", ["auto", "post", "pre"])
def test_a_module_under_two_names_is_treated_once(placement: str) -> None:
    net, x = TwoNames().eval(), torch.randn(2, 3, 16, 16)
    expected = net(x)
    plan = plan_antialias(net, placement=placement)
    assert [edit.site.name for edit in plan.edits] == ["conv"]
    same = apply_antialias(copy.deepcopy(net), filter="identity", placement=placement)
    torch.testing.assert_close(same(x), expected)
    assert audit(apply_antialias(net, plan=plan), x).ok


class Attention(nn.Module):
    """Its map is not its first argument."""

    def forward(self, query: Tensor | None, x: Tensor, y: Tensor | None = None) -> Tensor:
        y = x if y is None else y
        return (x + y).mean((2, 3)) if query is None else query + (x * y).mean((2, 3))


class Reader(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.attention, self.how = nn.Conv2d(3, 4, 3, 2, 1), Attention(), how
        self.query = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        if self.how == "second":
            return self.attention(self.query, x)
        if self.how == "behind nothing":
            return self.attention(None, x)
        return self.attention(None, x, x) if self.how == "twice" else self.attention(x.mean(), x)


@pytest.mark.parametrize("how", ["second", "behind nothing", "twice", "beside its own mean"])
def test_the_blur_is_never_put_before_another_argument(how: str) -> None:
    net, x = Reader(how).double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = net(x)
    for placement in ("auto", "post"):
        same = apply_antialias(copy.deepcopy(net), filter="identity", placement=placement)
        torch.testing.assert_close(same(x), expected)
    (edit,) = plan_antialias(net).edits
    assert "attention" not in str(edit.anchor)
