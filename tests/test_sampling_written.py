"""Samplings written by hand: each is an edit, or left with its reason; none stops the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, plan_antialias
from aa_surgery.errors import InputError
from aa_surgery.layers import BlurPool2d

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TREATED: dict[str, type[Net]] = {}
NAMED: dict[str, type[Net]] = {}
KEPT: dict[str, type[Net]] = {}


class Net(nn.Module):
    """A convolution of stride 1, and what a forward makes of its map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4, 4)

    def maps(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


def among(table: dict[str, type[Net]]) -> Callable[[type[Net]], type[Net]]:
    def keep(cls: type[Net]) -> type[Net]:
        table[cls.__name__] = cls
        return cls

    return keep


@among(TREATED)
class MaximaByName(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        n, c, h, w = x.shape
        return x.view(n, c, h // 2, 2, w // 2, 2).max(5).values.max(3).values


@among(TREATED)
class Minima(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        n, c, h, w = x.shape
        return x.view(n, c, h // 2, 2, w // 2, 2).amin((3, 5))


@among(TREATED)
class KeptAxes(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        n, c, h, w = x.shape
        means = x.view(n, c, h // 2, 2, w // 2, 2).mean((3, 5), keepdim=True)
        return means.reshape(n, c, h // 2, w // 2)


@among(TREATED)
class Unflattened(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))


@among(TREATED)
class RatiosOfOneLine(Net):
    """As CoaT writes it: one line resizes by several ratios."""

    def resized(self, x: Tensor, ratio: float) -> Tensor:
        return F.interpolate(x, scale_factor=ratio, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        return self.resized(x, 0.5) + self.resized(self.resized(x, 0.25), 2.0)


class RatiosOfOneLineNearest(RatiosOfOneLine):
    """What precedes a nearest resizing is made for one ratio."""

    def resized(self, x: Tensor, ratio: float) -> Tensor:
        return F.interpolate(x, scale_factor=ratio)


class RatiosOfOneLineBicubic(RatiosOfOneLine):
    """torch enlarges a map with other weights where it may low-pass."""

    def resized(self, x: Tensor, ratio: float) -> Tensor:
        return F.interpolate(x, scale_factor=ratio, mode="bicubic")


NAMED.update({cls.__name__: cls for cls in (RatiosOfOneLineNearest, RatiosOfOneLineBicubic)})


@among(NAMED)
class Deviation(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        n, c, h, w = x.shape
        return x.view(n, c, h // 2, 2, w // 2, 2).std((3, 5))


@among(NAMED)
class PhasePicked(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        n, c, h, w = x.shape
        return x.view(n, c, h // 2, 2, w // 2, 2)[:, :, :, 0, :, 0]


@among(NAMED)
class StepComputed(Net):
    def forward(self, x: Tensor) -> Tensor:
        step = x.shape[-1] // 16
        return self.maps(x)[:, :, ::step, ::step]


@among(NAMED)
class RowsStacked(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        return torch.stack([x[:, :, i] for i in range(0, 32, 2)], 2)


@among(NAMED)
class RowsNarrowed(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        return torch.cat([x.narrow(2, i, 1) for i in range(0, 32, 2)], 2)


@among(NAMED)
class RowsListed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[:, :, [0, 2, 4, 6]]


@among(NAMED)
class RowsMasked(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[:, :, torch.arange(32) % 2 == 0]


@among(NAMED)
class Strided(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).as_strided((x.shape[0], 4, 16, 16), (4096, 1024, 64, 2))


@among(NAMED)
class SizeOfItsOwnPool(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        y = F.max_pool2d(x, 2)
        return y + F.interpolate(x, y.shape[-2:])


@among(KEPT)
class ShuffledBack(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(torch.relu(F.pixel_unshuffle(self.maps(x), 2)), 2)


@among(KEPT)
class WindowsOfUnfold(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        n, c, h, w = x.shape
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, c)
        back = self.mix(patches).view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
        return back.reshape(n, c, h, w)


@among(KEPT)
class EveryOtherChannel(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        return torch.cat([x[:, i : i + 1] for i in range(0, 4, 2)], 1)


@among(KEPT)
class GroupsOfChannelsSummed(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        n, c, h, w = x.size()
        return x.view(n, c // 2, 2, h, w).sum(2)


@among(KEPT)
class GroupsOfChannelsCompared(Net):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.tile(1, 2, 1, 1).shape
        return x.tile(1, 2, 1, 1).view(n, c // 2, 2, h, w).amax(2)


@among(KEPT)
class RadixSummed(Net):
    """As ResNeSt's split attention writes it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        n, c, h, w = x.shape
        return x.reshape((n, 2, c // 2, h, w)).sum(dim=1)


@among(KEPT)
class GroupsOfFeaturesCompared(Net):
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.maps(x).flatten(2).transpose(1, 2)
        n, length, c = tokens.shape
        return tokens.view(n, length, 2, c // 2).amax(2)


@among(NAMED)
class WindowOrder(Net):
    """Tokens whose phases stand in front, as Hiera's queries."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.maps(x).flatten(2).transpose(1, 2)
        n, length, c = tokens.shape
        pooled = tokens.view(n, 4, length // 4, c).max(dim=1).values
        return pooled.transpose(1, 2).reshape(n, c, 16, 16)


@pytest.mark.parametrize("name", TREATED)
def test_what_samples_a_plain_map_is_treated(name: str) -> None:
    plain = TREATED[name]().eval()
    assert not audit(plain, X).ok
    treated = apply_antialias(copy.deepcopy(plain))
    assert not torch.equal(treated(X), plain(X))
    same = apply_antialias(copy.deepcopy(plain), filter="identity")
    torch.testing.assert_close(same(X), plain(X))


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_be_treated_is_named_and_stops_nothing(name: str) -> None:
    model = nn.Sequential(NAMED[name](), nn.Conv2d(4, 4, 3, 2, 1)).eval()
    plan = plan_antialias(model)
    assert any(left.site.name.startswith("0") for left in plan.left)
    assert "1" in [edit.site.name for edit in plan.edits]
    wanted = model(X).shape
    assert apply_antialias(model)(X).shape == wanted


@pytest.mark.parametrize("name", KEPT)
def test_what_loses_no_sample_is_no_site(name: str) -> None:
    plan = plan_antialias(KEPT[name]().eval(), max_stride=None)
    assert (plan.edits, plan.left) == ((), ())


def test_groups_of_channels_are_no_map() -> None:
    import einops.layers.torch as layers

    maxout = layers.Reduce("b (c k) h w -> b c h w", "max", k=2)
    assert not plan_antialias(nn.Sequential(nn.Conv2d(3, 4, 1), maxout)).edits


@pytest.mark.parametrize("method", ["aps", "learned", "wavelet"])
def test_a_layer_of_known_axes_stands_before_no_unknown_ones(method: str) -> None:
    """One scale factor serves lines, maps and volumes; a fixed blur does too, other layers not."""
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Upsample(scale_factor=0.5)).eval()
    x = torch.randn(1, 3, 32)
    wanted = model(x)
    plan = plan_antialias(model, method=method, example=x)
    assert [left.site.name for left in plan.left] == ["1"]
    assert torch.equal(apply_antialias(model, plan=plan)(x), wanted)


@pytest.mark.parametrize("stride", [None, 0, (2, 2, 2), 2.0])
def test_a_stride_that_is_none_is_refused(stride: object) -> None:
    with pytest.raises(InputError, match="stride="):
        BlurPool2d(stride=stride)  # type: ignore[arg-type]


def test_a_resizing_made_on_the_meta_device_has_its_filter() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=0.5)).eval()

    source = apply_antialias(make())
    with torch.device("meta"):
        model = make()
    apply_antialias(model).load_state_dict(source.state_dict(), assign=True)
    torch.testing.assert_close(model(X), source(X))


def test_the_audit_follows_attention_that_compiles_itself() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    class Attention(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.maps(x)[:, :, :8, :8].repeat(1, 4, 1, 1)
            tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
            mixed = flex.flex_attention(tokens, tokens, tokens)[:, 0].transpose(1, 2).view_as(x)
            return F.conv2d(mixed, torch.ones(4, 16, 3, 3), stride=2)

    report = audit(Attention().eval(), X)
    assert [row.op for row in report.untreated] == ["conv"]
