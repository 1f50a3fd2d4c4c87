"""`aps` and `lps` in networks: the choice is shared, trained, copied and exported."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from polyphases import METHODS, make, phases_by_definition, photographs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aa_surgery.errors import FilterError, InputError, MethodError, UnsupportedModelError
from aa_surgery.layers import BlurPool
from aa_surgery.layers.polyphase import mix_phases, pick_phase
from aa_surgery.methods import aps, lps
from aa_surgery.methods.lps import set_temperature
from aa_surgery.methods.method import Method


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


class Toy(nn.Module):
    """Convolution, ReLU, the layer, convolution, mean: all on a circle."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
        self.layer = layer
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(F.relu(self.conv1(x)))
        return F.relu(self.conv2(y)).mean((2, 3))


def largest_change(net: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        y = net(x)
        shifts = [(d, 31 * d % 32) for d in range(1, 32)]
        return max(
            ((net(x.roll(s, (2, 3))) - y).abs().max() / y.abs().max()).item() for s in shifts
        )


def test_logits_do_not_change_under_any_shift(method: Method) -> None:
    x = photographs(64)
    assert largest_change(Toy(make(method, channels=8, padding_mode="circular")), x) < 1e-5
    assert largest_change(Toy(BlurPool("tri-3", padding_mode="circular")), x) > 1e-4


@pytest.mark.parametrize(
    "keywords", [dict(), dict(stride=(1, 1), rate=(2, 2))], ids=["post", "pre"]
)
@pytest.mark.parametrize("hard", [False, True])
def test_gradients_reach_the_map_and_the_network(keywords: dict[str, Any], hard: bool) -> None:
    x = photographs(16).requires_grad_()
    layer = lps.LearnablePolyphaseSampling(**keywords, channels=3, hard=hard)
    layer(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "keywords", [dict(), dict(stride=(1, 1), rate=(2, 2))], ids=["post", "pre"]
)
def test_the_gradient_of_a_choice_stays_in_the_phase(
    method: Method, keywords: dict[str, Any]
) -> None:
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    layer = make(method, dtype=torch.float64, **keywords)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    # adjoint of a selection: what is gathered back is what was given
    index = layer.phases.choice
    again = pick_phase(x.grad, index, layer.stride, layer.rate, "reflect")
    assert torch.equal(again, g)
    torch.testing.assert_close(x.grad.square().sum(), g.square().sum())


def test_training_draws_and_eval_decides() -> None:
    x = photographs(32)
    layer = lps.LearnablePolyphaseSampling(channels=3, tau=0.5)
    soft, again = layer(x), layer(x)
    assert not torch.equal(soft, again)
    weights = layer.phases.choice
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    torch.testing.assert_close(again, mix_phases(x, weights, (2, 2), (2, 2), "reflect"))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert layer.phases.choice.dtype == torch.int64


def test_many_rolled_maps_are_drawn_not_mixed() -> None:
    x = photographs(40).requires_grad_()
    layer = lps.LearnablePolyphaseSampling(stride=(1, 1), rate=(5, 5), channels=3)
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.phases.choice.amax(1), torch.ones(4))
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_the_network_has_the_parameters_that_the_formula_says() -> None:
    for channels, hidden in [(64, 8), (128, 16), (512, 64), (16, 8)]:
        layer = lps.LearnablePolyphaseSampling(channels=channels)
        expected = 9 * channels * hidden + hidden + 9 * hidden**2
        assert sum(p.numel() for p in layer.parameters()) == expected
    assert sum(p.numel() for p in make(aps.METHOD).parameters()) == 0


def test_a_phase_is_scored_alike_wherever_it_stands() -> None:
    x = photographs(24)
    layer = lps.LearnablePolyphaseSampling(channels=3, padding_mode="circular", hidden=4)
    score = layer.score
    by_hand = []
    for phase in phases_by_definition(x, (2, 2)):
        y = F.relu(score.conv1(F.pad(phase, (1,) * 4, mode="circular")))
        by_hand.append(score.conv2(F.pad(y, (1,) * 4, mode="circular")).mean((1, 2, 3)))
    expected = torch.stack(by_hand, 1).argmax(1)
    assert torch.equal(layer.eval().choose(x), expected)


def test_the_temperature_is_set_for_all_layers() -> None:
    net = nn.Sequential(make(lps.METHOD), make(lps.METHOD, tau=3.0))
    assert set_temperature(net, 0.025) == 2
    assert [layer.tau for layer in net] == [0.025, 0.025]
    x = photographs(16)
    net.train()(x)
    assert (net[0].phases.choice.amax(1) > 0.99).any()
    with pytest.raises(MethodError, match="above 0"):
        set_temperature(net, 0.0)
    with pytest.raises(UnsupportedModelError, match="no learnable polyphase layer"):
        set_temperature(nn.Conv2d(3, 3, 1), 1.0)


class Block(nn.Module):
    """A leader behind a convolution, and a follower on the shortcut."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.lead = make(method)
        self.down = make(method, **({"leads": False} if method.per_channel else {}))
        self.down.follow(self.lead)

    def forward(self, x: Tensor) -> Tensor:
        return self.lead(F.relu(self.conv(x))) + self.down(x)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_share_among_themselves_and_hold_no_tensor(method: Method, way: Any) -> None:
    x = photographs(16)
    block = Block(method).train()
    block(x)
    twin = way(block).eval()
    assert twin.down.phases is twin.lead.phases
    assert twin.lead.phases is not block.lead.phases
    assert twin.lead.phases.choice is None
    assert torch.equal(twin(x), block.eval()(x))


def test_a_follower_says_what_it_misses(method: Method) -> None:
    block = Block(method)
    x = photographs(16)
    with pytest.raises(InputError, match="has not run"):
        block.down(x)
    block(x)
    with pytest.raises(InputError, match="4 images, not on these 2"):
        block.down(x[:2])


def test_a_layer_that_led_gives_its_network_up() -> None:
    leader, layer = make(lps.METHOD), make(lps.METHOD)
    layer.follow(leader)
    assert not list(layer.parameters())
    assert "leads=False" in repr(layer)
    assert layer.phases is leader.phases


def test_gradient_checkpointing_changes_nothing(method: Method) -> None:
    block = Block(method).train()
    grads = []
    for use_reentrant in [None, False, True]:
        torch.manual_seed(3)
        x = photographs(16).requires_grad_()
        y = block(x) if use_reentrant is None else checkpoint(block, x, use_reentrant=use_reentrant)
        block.zero_grad()
        y.square().sum().backward()
        grads.append([x.grad, *(p.grad.clone() for p in block.parameters() if p.grad is not None)])
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_compiled_equals_eager(method: Method) -> None:
    block = Block(method).eval()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for x in [photographs(16), photographs(16).flip(0), photographs(20)[:3]]:
            torch.testing.assert_close(compiled(x), block(x))


def test_the_network_trains_compiled() -> None:
    block = Block(lps.METHOD).train()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    compiled(photographs(16)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters())


@pytest.mark.parametrize(
    "keywords", [dict(), dict(stride=(1, 1), rate=(2, 2))], ids=["post", "pre"]
)
def test_exported_equals_eager(method: Method, keywords: dict[str, Any]) -> None:
    x = photographs(16)
    sizes = {0: "batch", 2: "rows", 3: "columns"}
    shapes = {dim: torch.export.Dim(name, min=1 + dim, max=512) for dim, name in sizes.items()}
    for module in [make(method, **keywords), Block(method).eval()]:
        program = torch.export.export(module, (x,), dynamic_shapes=(shapes,), strict=False)
        for images in [x, torch.randn(3, 3, 21, 34)]:
            torch.testing.assert_close(program.module()(images), module(images))


def test_a_block_that_was_exported_runs_and_copies(method: Method) -> None:
    block = Block(method).eval()
    x = photographs(16)
    expected = block(x)
    torch.export.export(block, (x,), strict=False)
    assert torch.equal(copy.deepcopy(block)(x), expected)
    assert torch.equal(block(x), expected)


def test_parameters_are_drawn_anew() -> None:
    layer = make(lps.METHOD, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert math.isfinite(sum(p.sum().item() for p in layer.parameters()))
    before = layer.score.conv1.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.score.conv1.weight)


def test_strength_fades_from_plain_subsampling(method: Method) -> None:
    x = photographs(16)
    layer = make(method)
    y = layer(x)
    layer.set_strength(0.25)
    torch.testing.assert_close(layer(x), 0.75 * x[..., ::2, ::2] + 0.25 * y)


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        (dict(stride=(2, 2), rate=(4, 4)), MethodError, "Give stride=rate, or stride 1"),
        (dict(filter="no-such"), FilterError, "unknown"),
        (dict(padding_mode="mirror"), FilterError, "padding_mode"),
    ],
)
def test_bad_options_are_refused(
    method: Method, keywords: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make(method, **keywords)


def test_bad_values_are_refused() -> None:
    with pytest.raises(MethodError, match="hidden=0"):
        make(lps.METHOD, hidden=0)
    with pytest.raises(MethodError, match="tau=-1"):
        make(lps.METHOD, tau=-1)
    with pytest.raises(MethodError, match=r"rate \(3, 3\) cannot take .* \(2, 2\)"):
        make(aps.METHOD, stride=(3, 3)).follow(make(aps.METHOD))
