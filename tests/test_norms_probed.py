"""What stands between an op and its activation is found by what it does, never by its name."""

from __future__ import annotations

import copy

import pytest
import timm.layers as tl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery import apply_antialias, plan_antialias
from aa_surgery.sites.roles import role_of_module


class MyNorm(nn.Module):
    """Divides by a maximum over the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax((2, 3), keepdim=True)


class Swish(nn.Module):
    """A gate over the whole map, under the name of an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


class BatchNorm2d(nn.Module):
    """Takes its statistics from the batch at hand, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


class Neighbours(nn.Module):
    """An activation that looks one sample aside."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, x.roll(1, -1))


class Positions(nn.Module):
    """Adds what depends on the place."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[-1], dtype=x.dtype)


OVER_THE_MAP = {
    "own": MyNorm,
    "gate": Swish,
    "batch": BatchNorm2d,
    "neighbours": Neighbours,
    "positions": Positions,
    "untracked": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "group": lambda: nn.GroupNorm(2, 4),
    "layer norm of the map": lambda: nn.LayerNorm([4, 8, 8]),
    "layer norm of rows": lambda: nn.LayerNorm(8),
    "gated along rows": lambda: nn.GLU(-1),
    "timm's evo norm": lambda: tl.EvoNorm2dS0(4, groups=2),
    "timm's group norm": lambda: tl.GroupNormAct(4, 2),
    "timm's filter response": lambda: tl.FilterResponseNormAct2d(4),
}


@pytest.mark.parametrize("placement", ["auto", "post"])
@pytest.mark.parametrize("name", OVER_THE_MAP)
def test_what_looks_at_the_map_is_never_crossed(name: str, placement: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), OVER_THE_MAP[name](), nn.ReLU()).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = net(x)
    treated = apply_antialias(copy.deepcopy(net), filter="identity", placement=placement)
    torch.testing.assert_close(treated(x), expected)
    assert role_of_module(net[1]) == ""


class Shifted(nn.Module):
    """A frozen batch norm, its numbers in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None] + self.shift[:, None, None]


class OverChannels(nn.Module):
    """A layer norm of each position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        return x / (x.var(1, keepdim=True) + 1e-6).sqrt() * self.weight[:, None, None]


class Hard(nn.Module):
    """A hard sigmoid times its input, of parts without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.relu6(x + 3) / 6


class Silent(nn.Module):
    """Does nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(()) if self.training else x


ROLES = {
    "frozen norm": (Shifted, "norm"),
    "norm over channels": (OverChannels, "norm"),
    "composite": (Hard, "activation"),
    "nothing": (Silent, "transparent"),
    "torch's norm": (lambda: nn.BatchNorm2d(4), "norm"),
    "torch's activation": (nn.Hardswish, "activation"),
    "gated channels": (lambda: nn.GLU(1), "activation"),
    "timm's norm": (lambda: tl.LayerNorm2d(4), "norm"),
    "timm's activation": (tl.HardMish, "activation"),
    "timm's drop path": (lambda: tl.DropPath(0.1), "transparent"),
    "torchvision's frozen norm": (lambda: tl.FrozenBatchNormAct2d(4, apply_act=False), ""),
}


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_acts_at_each_position_has_a_role(name: str, device: str) -> None:
    make, role = ROLES[name]
    module = make().to(device)
    assert role_of_module(module) == role


@pytest.mark.parametrize("act", [Hard, nn.Hardswish, tl.HardMish])
def test_the_blur_stands_behind_the_activation_that_was_found(act: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), OverChannels(), act())
    assert [str(edit.anchor) for edit in plan_antialias(net).edits] == ["after 2"]


def test_probing_touches_neither_the_module_nor_the_random_numbers() -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[int, ...]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(tuple(x.shape))
            return F.dropout(F.relu(x), 0.5, self.training) + torch.rand(()) * 0

    module = Noting()
    module.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    state = torch.get_rng_state()
    assert role_of_module(module) == "activation"
    assert module.calls == []
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
