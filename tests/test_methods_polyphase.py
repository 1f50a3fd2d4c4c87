"""`aps` and `lps`: a phase that follows the image, one for all layers on a lattice."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aa_surgery.errors import FilterError, InputError, MethodError, UnsupportedModelError
from aa_surgery.layers import PADDING_MODES, BlurPool
from aa_surgery.layers.polyphase import Polyphase, mix_phases, phase_energies, pick_phase
from aa_surgery.methods import aps, lps
from aa_surgery.methods.lps import set_temperature
from aa_surgery.methods.method import Method

METHODS = [aps.METHOD, lps.METHOD]
PHOTOGRAPHS = [data.chelsea, data.astronaut, data.coffee, data.rocket]
SHIFTS = list(itertools.product(range(1, 8), repeat=2))


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def photographs(size: int) -> Tensor:
    maps = [torch.from_numpy(picture()).movedim(-1, 0)[None] for picture in PHOTOGRAPHS]
    return torch.cat([F.interpolate(m.float() / 255, (size, size), mode="area") for m in maps])


def make(method: Method, channels: int = 3, **keywords: Any) -> Polyphase:
    if method.per_channel:
        keywords["channels"] = channels
    return method.layer(**keywords).eval()


def phases_by_definition(x: Tensor, rate: Sequence[int]) -> list[Tensor]:
    starts = itertools.product(*map(range, rate))
    return [
        x[(..., *(slice(k, None, r) for k, r in zip(start, rate, strict=True)))] for start in starts
    ]


def is_rolled(
    a: Tensor, b: Tensor, shift: tuple[int, int], rate: int, step: int = 1, atol: float = 0
) -> bool:
    """Whether each image of `a` is that of `b`, rolled by `shift / rate * step`.

    Whether the quotient is rounded up or down depends on the phase.
    """
    rolls = itertools.product(*({d // rate * step, -(-d // rate) * step} for d in shift))
    rolled = [b.roll(roll, (2, 3)) for roll in rolls]
    return all(
        any(torch.allclose(a[n], r[n], rtol=0, atol=atol) for r in rolled) for n in range(len(a))
    )


@pytest.mark.parametrize("rate", [2, 3, 4])
def test_a_circular_shift_of_the_map_shifts_the_phase(method: Method, rate: int) -> None:
    x = photographs(48)
    layer = make(method, stride=(rate, rate), padding_mode="circular")
    y, sampled, choices = layer(x), x[..., ::rate, ::rate], set()
    plain_follows = []
    for shift in SHIFTS:
        moved = x.roll(shift, (2, 3))
        assert is_rolled(layer(moved), y, shift, rate)
        plain_follows.append(is_rolled(moved[..., ::rate, ::rate], sampled, shift, rate))
        choices.update(layer.phases.choice.tolist())
    assert choices == set(range(rate**2))
    assert sum(plain_follows) == sum(d % rate == e % rate == 0 for d, e in SHIFTS)


def test_a_filter_in_front_keeps_the_law(method: Method) -> None:
    x = photographs(48).double()
    layer = make(method, filter="tri-3", padding_mode="circular", dtype=torch.float64)
    blurred = BlurPool("tri-3", (1, 1), (2, 2), padding_mode="circular", dtype=torch.float64)(x)
    y = layer(x)
    choice = layer.phases.choice
    assert torch.equal(y, pick_phase(blurred, choice, (2, 2), (2, 2), "circular"))
    for shift in SHIFTS:
        assert is_rolled(layer(x.roll(shift, (2, 3))), y, shift, 2, atol=1e-12)


@pytest.mark.parametrize("rate", [2, 3, 4, 16])
def test_a_rolled_map_serves_the_strided_op_behind_it(method: Method, rate: int) -> None:
    x = photographs(96).double()
    layer = make(
        method, stride=(1, 1), rate=(rate, rate), padding_mode="circular", dtype=torch.float64
    )
    embed = nn.Conv2d(3, 8, rate, rate, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
        tokens, plain = embed(y), embed(x)
        for shift in [(1, 0), (0, 3), (2, 5), (7, 1), (31, 17)]:
            moved = x.roll(shift, (2, 3))
            assert is_rolled(layer(moved), y, shift, rate, step=rate)
            assert is_rolled(embed(layer(moved)), tokens, shift, rate, atol=1e-12)
            plain_follows = is_rolled(embed(moved), plain, shift, rate, atol=1e-3)
            assert plain_follows == all(d % rate == 0 for d in shift)


@pytest.mark.parametrize("rate", [(2, 2), (3, 3), (2, 1), (4, 2), (1, 3)])
def test_sampling_the_rolled_map_gives_the_phase(method: Method, rate: tuple[int, int]) -> None:
    x = photographs(48)
    sampling = make(method, stride=rate, padding_mode="circular")
    rolling = make(method, stride=(1, 1), rate=rate, padding_mode="circular")
    rolling.load_state_dict(sampling.state_dict())
    half = make(method, stride=(rate[0], 1), rate=rate, padding_mode="circular")
    half.load_state_dict(sampling.state_dict())
    y = sampling(x)
    assert torch.equal(rolling(x)[..., :: rate[0], :: rate[1]], y)
    assert torch.equal(half(x)[..., :: rate[1]], y)


def test_a_block_and_its_shortcut_are_one_strided_block(method: Method) -> None:
    x = photographs(48)
    main = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
    strided = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular")
    strided.load_state_dict(main.state_dict())
    behind = make(method, channels=8, padding_mode="circular")
    before = make(method, stride=(1, 1), rate=(2, 2), padding_mode="circular")
    before.follow(behind)
    shortcut = make(method, padding_mode="circular")
    shortcut.follow(behind)
    with torch.no_grad():
        y = behind(main(x))
        torch.testing.assert_close(strided(before(x)), y)
        chosen = behind.phases.choice
        expected = torch.stack(
            [phases_by_definition(x, (2, 2))[k][n] for n, k in enumerate(chosen)]
        )
        assert torch.equal(shortcut(x), expected)
    assert not list(shortcut.parameters())


def test_aps_keeps_the_phase_of_largest_norm_of_each_image() -> None:
    x = torch.rand(6, 5, 9, 8)
    for n, k in enumerate([0, 1, 2, 3, 4, 5]):
        x[n, :, k // 2 :: 3, k % 2 :: 2] += 1
    layer = aps.AdaptivePolyphaseSampling(stride=(3, 2))
    expected = torch.stack([phases_by_definition(x, (3, 2))[n][n] for n in range(6)])
    assert torch.equal(layer(x), expected)
    assert layer.phases.choice.tolist() == [0, 1, 2, 3, 4, 5]


def test_energies_are_their_definition() -> None:
    x = torch.randn(3, 4, 12, 6, dtype=torch.float64)
    expected = torch.stack([p.square().sum((1, 2, 3)) for p in phases_by_definition(x, (4, 2))], 1)
    torch.testing.assert_close(phase_energies(x, (4, 2), "reflect"), expected)
    half = phase_energies((200 * x).to(torch.float16), (4, 2), "reflect")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, (4e4 * expected).float(), rtol=1e-2, atol=1)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_no_phase_is_favoured_for_its_length(padding_mode: str) -> None:
    energies = phase_energies(torch.ones(1, 2, 7, 9), (2, 4), padding_mode)
    assert torch.equal(energies, energies[:, :1].expand_as(energies))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_size_gives_its_share_rounded_up(
    method: Method, padding_mode: str, training: bool, axes: int
) -> None:
    for rate in [(2,) * axes, (3, 2, 1)[:axes]]:
        sampling = make(method, stride=rate, padding_mode=padding_mode).train(training)
        rolling = make(
            method, stride=(1,) * axes, rate=rate, padding_mode=padding_mode, filter="tri-3"
        ).train(training)
        for sizes in [(1,) * axes, (2, 1, 5)[:axes], (7, 5, 4)[:axes], (8, 9, 3)[:axes]]:
            x = torch.randn(2, 3, *sizes)
            out = tuple(-(-n // r) for n, r in zip(sizes, rate, strict=True))
            assert sampling(x).shape == (2, 3, *out)
            assert rolling(x).shape == x.shape


def test_odd_maps_are_extended_by_the_border() -> None:
    x = torch.arange(1.0, 6.0).view(1, 1, 5)
    ends = {"reflect": 4, "replicate": 5, "zeros": 0, "circular": 1}
    for padding_mode, end in ends.items():
        y = pick_phase(x, torch.tensor([1]), (2,), (2,), padding_mode)
        assert y.flatten().tolist() == [2, 4, end]
    rolled = pick_phase(x, torch.tensor([1]), (1,), (2,), "reflect")
    assert rolled.flatten().tolist() == [2, 3, 4, 5, 1]


@pytest.mark.parametrize("stride", [(3, 2), (1, 1), (3, 1)])
def test_a_mixture_is_the_weighted_sum_of_what_is_picked(stride: tuple[int, int]) -> None:
    x = torch.randn(4, 5, 7, 9, dtype=torch.float64)
    weights = torch.rand(4, 6, dtype=torch.float64)
    picked = [pick_phase(x, torch.full((4,), k), stride, (3, 2), "reflect") for k in range(6)]
    expected = sum(weights[:, k, None, None, None] * y for k, y in enumerate(picked))
    torch.testing.assert_close(mix_phases(x, weights, stride, (3, 2), "reflect"), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_the_dtype_stays(method: Method, dtype: torch.dtype, training: bool) -> None:
    x = photographs(48).to(dtype)
    layer = make(method, padding_mode="circular", dtype=dtype).train(training)
    y = layer(x)
    assert y.dtype == dtype
    if not training:
        assert is_rolled(layer(x.roll((1, 3), (2, 3))), y, (1, 3), 2)


def test_autocast_keeps_the_law(method: Method) -> None:
    x = photographs(48)
    layer = make(method, padding_mode="circular")
    with torch.autocast("cpu", torch.bfloat16):
        assert is_rolled(layer(x.roll((1, 3), (2, 3))), layer(x), (1, 3), 2)


def test_memory_format_stays(method: Method) -> None:
    x = torch.randn(2, 8, 12, 12).contiguous(memory_format=torch.channels_last)
    for keywords in [dict(stride=(2, 2)), dict(stride=(1, 1), rate=(2, 2))]:
        layer = make(method, channels=8, **keywords)
        y = layer(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y, layer(x.contiguous()))
        assert layer(x.contiguous()).is_contiguous()
        assert layer.train()(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("rate", [2, 3])
def test_tokens_are_maps_of_another_layout(method: Method, rate: int) -> None:
    x = torch.randn(2, 3, 12, 6, 8)  # (N, T, H, W, C)
    tokens = make(method, channels=8, stride=(rate, rate), channels_last=True)
    maps = make(method, channels=8, stride=(rate, rate))
    maps.load_state_dict(tokens.state_dict())
    expected = maps(x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).unflatten(0, (2, 3))
    assert torch.equal(tokens(x), expected)
    assert len(set(tokens.phases.choice.tolist())) > 1


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
