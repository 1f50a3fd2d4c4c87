from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage import data
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aa_surgery.errors import InputError, MethodError
from aa_surgery.layers import PADDING_MODES
from aa_surgery.layers.phase_conv import PhaseConv, PhaseDownsample
from aa_surgery.layers.phases import phase_kernel, split_phases
from aa_surgery.methods import conv3d, group_conv
from aa_surgery.methods.conv3d import Conv3dDownsample, PhaseConv3d
from aa_surgery.methods.group_conv import GroupConvDownsample, PhaseGroupConv
from aa_surgery.sites import find_sites

CONVS = [PhaseGroupConv, PhaseConv3d]
LAYERS = [GroupConvDownsample, Conv3dDownsample]
METHODS = [group_conv.METHOD, conv3d.METHOD]

USUAL: dict[str, Any] = {
    "resnet 3x3": nn.Conv2d(16, 32, 3, 2, 1, bias=False),
    "resnet stem": nn.Conv2d(3, 64, 7, 2, 3, bias=False),
    "shortcut": nn.Conv2d(16, 32, 1, 2),
    "patchify": nn.Conv2d(3, 24, 4, 4),
    "patchify 8": nn.Conv2d(3, 24, 8, 8),
    "2x2": nn.Conv2d(8, 12, 2, 2),
    "depthwise": nn.Conv2d(12, 12, 3, 2, 1, groups=12),
    "depthwise 5x5": nn.Conv2d(12, 12, 5, 2, 2, groups=12, bias=False),
    "multiplied": nn.Conv2d(6, 18, 3, 2, 1, groups=6),
    "grouped": nn.Conv2d(12, 24, 3, 2, 1, groups=3),
    "dilated": nn.Conv2d(6, 8, 3, 2, 2, dilation=2),
    "narrowing": nn.Conv2d(12, 4, 3, 3, 1),
    "1-D": nn.Conv1d(4, 6, 10, 5, 3),
    "1-D dilated": nn.Conv1d(4, 6, 3, 4, 1, dilation=3),
}


def random_map(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def photograph(size: int = 96) -> Tensor:
    return torch.tensor(data.astronaut()[:size, :size]).permute(2, 0, 1)[None] / 255


def sampled(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    return x[(..., *(slice(None, None, s) for s in stride))]


def assert_equal_to(conv: nn.Module, module: PhaseConv, x: Tensor, tolerance: float) -> None:
    expected, got = conv(x), module(x)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def test_phases_are_interleaved_by_channel() -> None:
    x = torch.arange(24.0).view(1, 2, 2, 6)
    phases = split_phases(x, (2, 3))
    assert phases.shape == (1, 2, 6, 1, 2)
    rows = phases.flatten(1, 2)[0].flatten(1).tolist()
    assert rows[:6] == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]
    assert rows[6:] == [[a + 12, b + 12] for a, b in rows[:6]]


def test_phases_of_equal_strides_are_torchs_pixel_unshuffle() -> None:
    x = random_map(2, 3, 12, 8)
    for stride in (2, 4):
        interleaved = split_phases(x, (stride, stride)).flatten(1, 2)
        torch.testing.assert_close(interleaved, nn.functional.pixel_unshuffle(x, stride))


def test_each_phase_is_the_map_sampled_from_another_start() -> None:
    x = random_map(1, 2, 8, 9)
    phases = split_phases(x, (2, 3))
    for p, (i, j) in enumerate(itertools.product(range(2), range(3))):
        assert torch.equal(phases[:, :, p], x[:, :, i::2, j::3])


@pytest.mark.parametrize("module", CONVS)
@pytest.mark.parametrize("name", USUAL)
def test_start_is_the_conv_that_it_replaces(module: type[PhaseConv], name: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        conv = copy.deepcopy(USUAL[name]).to(dtype)
        replaced = module.from_conv(conv)
        assert {p.dtype for p in replaced.parameters()} == {dtype}
        for size in (16, 17, 23):
            sizes = (size, size + 1)[: len(conv.stride)]
            x = random_map(2, conv.in_channels, *sizes, seed=size, dtype=dtype)
            assert_equal_to(conv, replaced, x, tolerance)


@given(
    channels=st.sampled_from([(1, 1), (2, 6), (4, 6), (6, 4)]),
    groups=st.sampled_from([1, 2]),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    mode=st.sampled_from(PADDING_MODES),
    size=st.tuples(st.integers(9, 14), st.integers(9, 14)),
)
@settings(max_examples=60, deadline=None)
def test_start_is_any_strided_conv(
    channels: tuple[int, int],
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: int,
    padding: int,
    mode: str,
    size: tuple[int, int],
) -> None:
    assume(channels[0] % groups == channels[1] % groups == 0)
    conv = nn.Conv2d(
        *channels,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=mode,
        dtype=torch.float64,
    )
    x = random_map(1, channels[0], *size)
    for module in CONVS:
        if module is PhaseGroupConv or math.prod(stride) >= 3:
            assert_equal_to(conv, module.from_conv(conv), x, 1e-12)


@pytest.mark.parametrize("module", CONVS)
def test_start_pads_as_it_runs_where_the_conv_does(module: type[PhaseConv]) -> None:
    for kernel, stride, dilation in ((3, 2, 1), (7, 4, 1), (3, 3, 2), (1, 2, 1), (2, 3, 1)):
        conv = Conv2dSame(4, 6, kernel, stride, dilation=dilation, dtype=torch.float64)
        replaced = module.from_conv(conv, same=True)
        for size in itertools.product((8, 9, 13), (10, 15)):
            assert_equal_to(conv, replaced, random_map(1, 4, *size), 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_record_knows_which_convs_pad_as_they_run(method: Any) -> None:
    conv = Conv2dSame(4, 6, 3, 2)
    assert method.replacement is not None
    x = random_map(1, 4, 9, 10, dtype=torch.float32)
    assert_equal_to(conv, method.replacement(conv, **method.options), x, 1e-5)


@pytest.mark.parametrize("module", CONVS)
def test_start_of_a_photograph_without_a_batch(module: type[PhaseConv]) -> None:
    conv = USUAL["resnet stem"]
    assert_equal_to(conv, module.from_conv(conv), photograph(97)[0], 1e-5)


@pytest.mark.parametrize("module", CONVS)
def test_kernel_of_lower_rank_takes_the_same_shapes(module: type[PhaseConv]) -> None:
    conv = nn.Conv2d(8, 16, 3, 2, 1)
    shapes = [p.shape for p in module.from_conv(conv).parameters()]
    nn.init.zeros_(conv.weight)
    assert [p.shape for p in module.from_conv(conv).parameters()] == shapes


def test_widths() -> None:
    """The paper's where it can hold the kernel; else the smallest multiple that can."""
    expected = {
        "resnet 3x3": (32 * 5, 64),  # 9 taps, 2 filters a channel; 4 phases, 3 a triple
        "resnet stem": (192, 128),
        "shortcut": (32, 32),
        "patchify": (48, 24),  # 9 filters, one a tap and channel, serve all 14 triples
        "depthwise": (12, 24),
        "dilated": (48, 8),  # a kernel of dilation 2 reads one phase
    }
    for name, widths in expected.items():
        assert tuple(m.from_conv(USUAL[name]).width for m in CONVS) == widths
    assert PhaseGroupConv(4, 6, 3, (2, 2)).width == 12
    assert PhaseConv3d(4, 6, 3, (2, 2)).width == 6


def papers_counts(
    module: PhaseConv, c_in: int, c_out: int, groups: int, phases: int, kernel: int
) -> tuple[int, int]:
    """Return the paper's parameters without bias, and multiply-adds an output sample."""
    width = module.width
    if isinstance(module, PhaseGroupConv):
        count = width * phases * kernel**2 + width * c_out
        return count, count
    filters, mix = width * (c_in // groups) * 3 * kernel**2, (phases - 2) * width * c_out
    return filters + mix, filters * (phases - 2) + mix


@pytest.mark.parametrize("module", CONVS)
@pytest.mark.parametrize(
    ("name", "phases", "kernel"),
    [("resnet 3x3", 4, 2), ("shortcut", 4, 1), ("depthwise", 4, 2), ("patchify", 16, 1)],
)
def test_counts_are_the_papers(
    module: type[PhaseConv], name: str, phases: int, kernel: int
) -> None:
    conv = USUAL[name]
    c_in, c_out, groups, k, s = (
        conv.in_channels,
        conv.out_channels,
        conv.groups,
        conv.kernel_size[0],
        conv.stride,
    )
    plain = module(c_in, c_out, k, s, conv.padding, groups=groups)
    assert plain.width == (math.lcm(c_in, c_out) if module is PhaseGroupConv else c_out)
    x = random_map(2, c_in, 16, 16, dtype=torch.float32)
    for made in (plain, module.from_conv(conv)):
        parameters, multiplied = papers_counts(made, c_in, c_out, groups, phases, kernel)
        bias = 0 if made.bias is None else c_out
        assert sum(p.numel() for p in made.parameters()) == parameters + bias
        with FlopCounterMode(display=False) as counter:
            y = made(x)
        assert counter.get_total_flops() == 2 * multiplied * y.numel() // c_out


@pytest.mark.parametrize("module", CONVS)
def test_default_start_is_torchs_own(module: type[PhaseConv]) -> None:
    plain = module(16, 32, 3, (2, 2))
    for weight in (plain.phase_weight, plain.mix_weight):
        bound = weight[0].numel() ** -0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert plain.bias is not None
    assert plain.bias.abs().max() <= plain.mix_weight.shape[1] ** -0.5


def stepped(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the outputs before and after one step, and the step's gradients."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    before = module(x)
    before.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}  # type: ignore[union-attr]
    optimizer.step()
    return before.detach(), module(x).detach(), gradients


@pytest.mark.parametrize("module", CONVS)
@pytest.mark.parametrize("name", ["resnet 3x3", "shortcut", "patchify", "depthwise", "grouped"])
def test_every_weight_learns(module: type[PhaseConv], name: str) -> None:
    conv = USUAL[name]
    replaced = module.from_conv(conv).double()
    x = random_map(2, conv.in_channels, 16, 16)
    before, after, gradients = stepped(replaced, x)
    assert not torch.equal(before, after)
    assert all(g.any() for g in gradients.values())
    _, _, gradients = stepped(replaced, x)
    for name, gradient in gradients.items():
        stuck = (gradient == 0).double().mean()
        assert stuck == 0, f"{name}: {stuck:.0%} have no gradient in the second step"


@pytest.mark.parametrize("module", CONVS)
def test_frozen_conv_stays_frozen_in_its_mode(module: type[PhaseConv]) -> None:
    for weight, bias in ((False, True), (True, False)):
        conv = copy.deepcopy(USUAL["shortcut"]).eval()
        conv.weight.requires_grad_(weight)
        conv.bias.requires_grad_(bias)
        replaced = module.from_conv(conv)
        assert not replaced.training
        learns = {name: p.requires_grad for name, p in replaced.named_parameters()}
        assert learns == {"phase_weight": weight, "mix_weight": weight, "bias": bias}
        assert replaced.bias is not conv.bias


@pytest.mark.parametrize("module", CONVS)
def test_circular_shift_by_the_stride_is_a_shift_of_the_output(module: type[PhaseConv]) -> None:
    trained = module(3, 5, 3, (2, 3), 1, padding_mode="circular", dtype=torch.float64)
    x = random_map(1, 3, 12, 12)
    shifted = trained(x.roll((2, 3), (2, 3)))
    torch.testing.assert_close(shifted, trained(x).roll((1, 1), (2, 3)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("stride", [(2, 2), (3,), (1, 4), (3, 2)])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_layer_starts_as_every_stride_th_sample(
    layer: type[PhaseDownsample], stride: tuple[int, ...], mode: str
) -> None:
    made = layer(stride, padding_mode=mode, channels=4)
    for size in (1, 2, 5, 12, 13):
        x = random_map(2, 4, *(size + i for i in range(len(stride))), dtype=torch.float32)
        assert torch.equal(made(x), sampled(x, stride))
    x = x.movedim(1, -1)
    last = layer(stride, padding_mode=mode, channels_last=True, channels=4)
    assert torch.equal(last(x), sampled(x.movedim(-1, 1), stride).movedim(1, -1))


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_learns_keeps_its_shape_and_starts_again(layer: type[PhaseDownsample]) -> None:
    made = layer((2, 3), channels=4, kernel_size=5, dtype=torch.float64)
    x = random_map(2, 4, 11, 13)
    before, after, gradients = stepped(made, x)
    assert not torch.equal(before, after)
    assert after.shape == before.shape
    assert all(g.any() for g in gradients.values())
    _, _, gradients = stepped(made, x)
    assert all(g.all() for g in gradients.values())
    for module in made.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(made(x), sampled(x, (2, 3)))


@pytest.mark.parametrize("layer", LAYERS)
def test_trained_layer_shifts_with_a_circular_map(layer: type[PhaseDownsample]) -> None:
    made = layer((2, 3), padding_mode="circular", channels=3, dtype=torch.float64)
    x = random_map(1, 3, 12, 12)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(made(x.roll((2, 3), (2, 3))), made(x).roll((1, 1), (2, 3)))
    assert not torch.allclose(made(x.roll(1, 2)), made(x))


MADE = {
    "group-conv": PhaseGroupConv.from_conv(nn.Conv2d(3, 8, 3, 2, 1)),
    "conv3d": PhaseConv3d.from_conv(nn.Conv2d(3, 8, 3, 2, 1)),
    "group-conv, 1-D": PhaseGroupConv.from_conv(nn.Conv1d(3, 8, 3, 3)),
    "conv3d, 1-D": PhaseConv3d.from_conv(nn.Conv1d(3, 8, 3, 3)),
    "group-conv layer": GroupConvDownsample(channels=3),
    "conv3d layer": Conv3dDownsample(channels=3),
}


@pytest.mark.parametrize("name", MADE)
def test_afterlife(name: str) -> None:
    module = MADE[name]
    x = random_map(2, 3, 9, 10, dtype=torch.float32)
    x = x[:, :, 0] if "1-D" in name else x
    expected = module(x)
    exported = torch.export.export(module, (x,), strict=False).module()
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), exported):
        torch.testing.assert_close(copied(x), expected, atol=1e-6, rtol=0)
    again = copy.deepcopy(module)
    again.reset_parameters()
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), expected)
    assert not list(module.buffers())


@pytest.mark.parametrize("name", ["group-conv", "conv3d", "group-conv layer", "conv3d layer"])
def test_export_of_every_size(name: str) -> None:
    height, width = (torch.export.Dim(axis, min=8, max=999) for axis in "hw")
    shapes = ({0: torch.export.Dim("n"), 2: height, 3: width},)
    x = random_map(2, 3, 9, 10, dtype=torch.float32)
    exported = torch.export.export(MADE[name], (x,), dynamic_shapes=shapes, strict=False).module()
    for size in ((9, 10), (10, 13), (31, 16)):
        y = random_map(3, 3, *size, dtype=torch.float32)
        torch.testing.assert_close(exported(y), MADE[name](y), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", MADE)
def test_half_precision(name: str) -> None:
    x = random_map(2, 3, 9, 10, dtype=torch.float32)
    x = x[:, :, 0] if "1-D" in name else x
    expected = MADE[name](x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = MADE[name](x)
    cast = copy.deepcopy(MADE[name]).bfloat16()(x.bfloat16())
    for y in (got, cast):
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("module", CONVS)
@pytest.mark.parametrize("name", ["resnet 3x3", "patchify", "grouped"])
def test_meta_device_gives_the_shapes(module: type[PhaseConv], name: str) -> None:
    conv = USUAL[name]
    shapes = {k: v.shape for k, v in module.from_conv(conv).state_dict().items()}
    replaced = module.from_conv(copy.deepcopy(conv).to("meta"))
    assert {k: v.shape for k, v in replaced.state_dict().items()} == shapes
    assert all(p.is_meta for p in replaced.parameters())


class Downsamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.wide = nn.Conv2d(32, 8, 3, (1, 2), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x))[..., ::2, ::2]
        return self.wide(nn.functional.pixel_unshuffle(x, 2))


def test_refused_sites_are_named_with_the_reason() -> None:
    sites = {site.op + str(site.stride): site for site in find_sites(Downsamples())}
    for method in METHODS:
        assert not method.refuses(sites["conv(2, 2)"])
        assert not method.refuses(sites["max_pool(2, 2)"])
        assert "no dense form" in method.refuses(sites["slice(2, 2)"])
        assert "keeps every phase" in method.refuses(sites["space_to_depth(2, 2)"])
    assert "needs 3 phases, has 2" in conv3d.METHOD.refuses(sites["conv(1, 2)"])
    assert not group_conv.METHOD.refuses(sites["conv(1, 2)"])
    (volume,) = find_sites(nn.Sequential(nn.Conv3d(3, 8, 2, 2)))
    assert all("three axes" in method.refuses(volume) for method in METHODS)


def test_bad_options_say_the_remedy() -> None:
    with pytest.raises(MethodError, match="Give an odd number"):
        GroupConvDownsample(channels=4, kernel_size=2)
    with pytest.raises(MethodError, match="another method"):
        Conv3dDownsample((1, 1), (2, 2), channels=4)
    with pytest.raises(MethodError, match="group-conv"):
        PhaseConv3d(4, 4, 3, (2,))
    with pytest.raises(MethodError, match="group-conv"):
        PhaseConv3d.from_conv(nn.Conv2d(4, 4, 3, (1, 2)))
    with pytest.raises(MethodError, match="multiple of 4"):
        PhaseGroupConv(4, 4, 3, (2, 2), width=6)
    with pytest.raises(MethodError, match="multiple of 2"):
        PhaseConv3d(4, 4, 3, (2, 2), groups=2, width=3)
    with pytest.raises(InputError, match="larger input"):
        PhaseGroupConv(4, 4, 7, (2, 2), 1)(random_map(1, 4, 4, 8, dtype=torch.float32))


def test_kernels_taps_stand_where_the_strided_conv_reads() -> None:
    kernel = phase_kernel(torch.arange(1.0, 10).view(1, 1, 3, 3), (2, 2), (1, 1))[0, 0]
    assert kernel.tolist() == [
        [[1, 3], [7, 9]],
        [[2, 0], [8, 0]],
        [[4, 6], [0, 0]],
        [[5, 0], [0, 0]],
    ]
