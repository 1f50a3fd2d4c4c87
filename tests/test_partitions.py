"""Cutting a map into windows samples it where their samples become channels, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, plan_antialias


class Behind(nn.Module):
    """A conv, and what a function does to its map."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.function = nn.Conv2d(3, 8, 3, 1, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.stem(x))


def windows(x: Tensor, high: int = 4, wide: int = 4) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c, h // high, high, w // wide, wide).permute(0, 2, 4, 3, 5, 1)
    x = x.reshape(-1, high * wide, c).softmax(-1).view(n, h // high, w // wide, high, wide, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def stripes(x: Tensor) -> Tensor:
    """CSWin's, the whole height at once, cut into a batch of maps."""
    n, c, h, w = x.shape
    x = x.view(n, c, 1, h, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.contiguous().reshape(-1, c, h, 2)


def strips(x: Tensor) -> Tensor:
    """The whole height at once, to tokens."""
    n, c, h, w = x.shape
    x = x.view(n, c, 1, h, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, h * 4, c)
    x = x.softmax(-1).view(n, 1, w // 4, h, 4, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def rows(x: Tensor) -> Tensor:
    """Bands as wide as the map."""
    n, c, h, w = x.shape
    return x.view(n, c, h // 4, 4, w).permute(0, 2, 1, 3, 4).reshape(n, h // 4, c, 4 * w)


def columns(x: Tensor) -> Tensor:
    """Windows of one axis, into the batch, under the size of the channels that `shape` gives."""
    x = x.flatten(2).transpose(1, 2)
    n, size, c = x.shape
    x = x.reshape(n, size // 16, 16, c).permute(0, 2, 1, 3)
    return x.reshape(n, 16 * (size // 16), c)


def frames(x: Tensor) -> Tensor:
    """Tubes: patches of each frame, joined with time and put back, as TimeSformer's."""
    n, c, h, w = x.shape
    x = x.reshape(n, 2, h // 2, w, c).permute(0, 2, 1, 3, 4)
    return x.reshape(n, h // 2 * 2 * w, c)


def folded(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    p = F.unfold(x, 2, stride=2).view(n, c, 4, -1).softmax(2)
    return F.fold(p.view(n, c * 4, -1), (h, w), 2, stride=2)


def tiles(x: Tensor) -> Tensor:
    return x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 8, 4, 4)


class FoldedByModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.cut, self.join = nn.Unfold(2, stride=2), nn.Fold((16, 16), 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.cut(self.stem(x)).relu())


KEPT: dict[str, Callable[[], nn.Module]] = {
    f.__name__: lambda f=f: Behind(f)
    for f in (windows, stripes, strips, rows, columns, frames, folded, tiles)
}
KEPT["folded by modules"] = FoldedByModules


@pytest.mark.parametrize("name", KEPT)
def test_windows_that_keep_their_samples_are_no_sites(name: str) -> None:
    net = KEPT[name]().eval()
    plan = plan_antialias(net, max_stride=None)
    assert (plan.decisions, plan.unread) == ((), ())


def merged(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(n, h // 2, w // 2, 4 * c)


def merged_freely(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.contiguous().view(n, -1, h // 2, w // 2)


def merged_rows(x: Tensor) -> Tensor:
    """One axis alone, whose filter shall not run along the other."""
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w).permute(0, 1, 3, 2, 4).flatten(1, 2)


class Merged(Behind):
    """Nets whose own forward calls the function by its name, as people write it."""

    def __init__(self) -> None:
        super().__init__(merged)

    def forward(self, x: Tensor) -> Tensor:
        return merged(self.stem(x))


class MergedFreely(Merged):
    def forward(self, x: Tensor) -> Tensor:
        return merged_freely(self.stem(x))


class MergedRows(Merged):
    def forward(self, x: Tensor) -> Tensor:
        return merged_rows(self.stem(x))


@pytest.mark.parametrize("cls", [Merged, MergedFreely, MergedRows])
def test_samples_that_become_channels_are_filtered(cls: type[Merged]) -> None:
    net = cls().double().eval()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    expected = net(x)
    (edit,) = plan_antialias(net).edits
    assert edit.site.op == "space_to_depth"
    treated = apply_antialias(net, filter="identity")
    torch.testing.assert_close(treated(x), expected)
    treated = apply_antialias(cls().double())
    assert audit(treated, x).ok


def test_only_the_axis_that_is_cut_is_filtered() -> None:
    net = MergedRows().double()
    net.stem = nn.Identity()
    (edit,) = plan_antialias(net).edits
    assert edit.site.stride == (2, 1)
    assert edit.site.dims == (2, 3)
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    x[..., 4] = 1.0  # a column: of the filter along it nothing is seen but ones
    assert torch.equal(apply_antialias(net)(x), merged_rows(x))
