"""Another forward of a class, set on its instances, is treated like the first (`fuse()`)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, find_sites, remove_antialias
from aa_surgery.errors import HalfTreatedError

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class ConvNormAct(nn.Module):
    """As ultralytics writes it: one activation for all, and `forward_fuse` without the norm."""

    act = nn.SiLU()

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = type(self).act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Net(nn.Module):
    """Its layers are taken one by one, each from where its table says."""

    table = (-1, -1, (0, 1), -1)

    def __init__(self) -> None:
        super().__init__()
        join: Any = Join()
        self.model = nn.Sequential(
            ConvNormAct(3, 8, 2), ConvNormAct(8, 8), join, ConvNormAct(16, 8, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for source, layer in zip(self.table, self.model, strict=True):
            if bool(x.isnan().any()):
                raise ValueError("no number")
            if isinstance(source, tuple):
                x = layer([kept[n] for n in source])
            else:
                x = layer(x)
            kept.append(x)
        return x

    def fuse(self) -> Net:
        for layer in self.model:
            if isinstance(layer, ConvNormAct):
                fused = torch.nn.utils.fuse_conv_bn_weights(
                    *(layer.conv.weight, layer.conv.bias, layer.bn.running_mean),
                    *(layer.bn.running_var, layer.bn.eps, layer.bn.weight, layer.bn.bias),
                )
                layer.conv.weight, layer.conv.bias = fused
                del layer.bn
                layer.forward = layer.forward_fuse  # type: ignore[method-assign]
        return self


class Join(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.cat(xs, 1)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    for _ in range(3):  # so that the norms are no identities
        made(X + torch.randn(1))
    return made.eval()


@pytest.mark.parametrize("placement", ["auto", "pre"])
@torch.no_grad()
def test_fused_after_the_surgery_is_treated_still(net: Net, placement: str) -> None:
    treated = apply_antialias(copy.deepcopy(net), placement=placement)
    expected = treated(X)
    assert not torch.allclose(expected, net(X), rtol=1e-2)
    torch.testing.assert_close(treated.fuse()(X), expected, rtol=1e-4, atol=1e-5)
    assert audit(treated, X).ok
    plain = copy.deepcopy(net).fuse()
    torch.testing.assert_close(remove_antialias(treated)(X), plain(X), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_forward_set_on_one_layer_is_the_treated_one(net: Net) -> None:
    treated = apply_antialias(net)
    layer: Any = treated.model[0]
    wanted = layer(X).shape
    layer.forward = layer.forward_fuse
    assert layer(X).shape == wanted


def test_a_forward_that_does_something_else_is_refused(net: Net) -> None:
    treated = apply_antialias(net)
    layer: Any = treated.model[0]
    layer.forward = lambda x: x
    with pytest.raises(HalfTreatedError, match="given another forward"):
        layer(X)


@torch.no_grad()
def test_layers_taken_one_by_one_are_no_chain(net: Net) -> None:
    assert [site.name for site in find_sites(net)] == ["model.0.conv", "model.3.conv"]
    wanted = net(X).shape
    assert apply_antialias(net)(X).shape == wanted
    assert audit(net, X).ok


class Downsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.common(F.relu(self.conv(x)))

    def common(self, x: Tensor) -> Tensor:
        return F.relu(x)


class SharingAHelper(Downsampling):
    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.common(self.common(self.conv(x)))


class OfAnotherMap(Downsampling):
    def forward_fuse(self, x: Tensor) -> Tensor:
        return F.relu(x)


class InAnotherOrder(Downsampling):
    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(x))


class InALoop(Downsampling):
    def forward_fuse(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for _ in range(2):
            x = F.relu(x - 1)
        return x


class NoMethod(Downsampling):
    forward_fuse = property(lambda self: 1)


class Exiting(Downsampling):
    def forward_service(self, x: Tensor) -> Tensor:
        raise SystemExit("called by nobody")


@pytest.mark.parametrize(
    "cls", [SharingAHelper, OfAnotherMap, InAnotherOrder, InALoop, NoMethod, Exiting]
)
@torch.no_grad()
def test_what_does_something_else_is_left_as_it_is(cls: type[nn.Module]) -> None:
    net: Any = cls().eval()
    other = getattr(net, "forward_fuse", None)
    expected, others = net(X), other(X) if callable(other) and cls is OfAnotherMap else None
    apply_antialias(net, filter="identity")
    torch.testing.assert_close(net(X), expected, rtol=1e-5, atol=1e-6)
    if others is not None:
        assert torch.equal(net.forward_fuse(X), others)


class TakenApart(nn.Module):
    """Calls its body as a whole or by parts; it decides on values, so no trace tells which."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU6())
        self.tail = nn.Conv2d(4, 4, 3, 1, 1)

    def checked(self, x: Tensor) -> Tensor:
        return x if bool(x.isnan().any()) else x + 0


class Whole(TakenApart):
    def forward(self, x: Tensor) -> Tensor:
        for part in (self.body, self.tail):
            x = part(self.checked(x))
        return x


class WholeByForward(TakenApart):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body.forward(self.checked(x)))


class WholeAndAPart(TakenApart):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(self.checked(x))) + self.body[0](x).mean()


@pytest.mark.parametrize("cls", [Whole, WholeByForward, WholeAndAPart])
@torch.no_grad()
def test_a_container_is_a_chain_unless_its_parts_are_called(cls: type[nn.Module]) -> None:
    net = cls().eval()
    (site,) = find_sites(net)
    assert (site.activation is None) == (cls is WholeAndAPart)
    expected = net(X)
    apply_antialias(net, filter="identity")
    torch.testing.assert_close(net(X), expected, rtol=1e-5, atol=1e-6)
