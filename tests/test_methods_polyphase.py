"""`aps` and `lps`: a phase that follows the image wherever it is shifted."""

from __future__ import annotations

import itertools

import pytest
import torch
from polyphases import METHODS, make, phases_by_definition, photographs
from torch import Tensor, nn

from aa_surgery.layers import PADDING_MODES, BlurPool
from aa_surgery.layers.polyphase import mix_phases, phase_energies, pick_phase
from aa_surgery.methods import aps
from aa_surgery.methods.method import Method

SHIFTS = list(itertools.product(range(1, 8), repeat=2))


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


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
