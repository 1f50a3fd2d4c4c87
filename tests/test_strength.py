"""A blur's strength: the untouched network at 0, the filter at 1, a mixture between."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from models import MODELS, build
from skimage import data
from torch import Tensor, nn
from zoo import ZOO, Zoo

from aa_surgery import apply_antialias, find_sites
from aa_surgery.errors import FilterError, UnsupportedModelError
from aa_surgery.filters import alias_gain
from aa_surgery.layers import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d
from aa_surgery.layers.maps import AverageBlurPool, BlurMaps
from aa_surgery.layers.strength import get_strength, set_strength

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")

FILTERS = ["tri-3", "tri-4", "binomial-5", [0.1, 0.2, 0.3, 0.4]]
REAL = [
    "resnet18",
    "resnet50d",
    "densenet121",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "vgg16_bn",
]


def photograph(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    rows = torch.from_numpy(data.chelsea()).movedim(-1, 0)[None].to(dtype) / 255
    return F.interpolate(rows, (size, size), mode="area")


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@contextmanager
def compilations() -> Iterator[list[int]]:
    """Count the graphs that torch.compile makes inside."""
    made: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        made.append(1)
        return graph.forward

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f, c=torch.compile: c(f, backend=backend))
        yield made


# --- the two ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", FILTERS, ids=str)
@pytest.mark.parametrize("cls", ZOO, ids=lambda cls: cls.__name__)
def test_at_0_every_small_net_is_the_untouched_one(cls: type[Zoo], filter: object) -> None:
    torch.manual_seed(0)
    net = cls().eval().double()
    left = [s.name for s in find_sites(net) if s.op == "interpolate" and s.mode != "nearest"]
    x = torch.randn(net.size, dtype=torch.float64)
    expected = run(net, x)
    apply_antialias(net, filter=filter, exclude=left)
    if not any(isinstance(m, BlurPool) for m in net.modules()):
        with pytest.raises(UnsupportedModelError, match="no blur"):
            set_strength(net, 0)
        return
    full = run(net, x)
    set_strength(net, 0)
    torch.testing.assert_close(run(net, x), expected, rtol=1e-10, atol=1e-10)
    set_strength(net, 1)
    assert torch.equal(run(net, x), full)


@pytest.mark.parametrize("name", REAL)
def test_at_0_a_real_model_is_the_untouched_one_and_at_1_the_blurred_one(name: str) -> None:
    model = build(name).double()
    sizes = MODELS[name].sizes
    expected = [run(model, photograph(n, torch.float64)) for n in sizes]
    state = list(model.state_dict())
    apply_antialias(model)
    buffers = [b.shape for b in model.buffers()]
    full = [run(model, photograph(n, torch.float64)) for n in sizes]
    distance = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        blurs = set_strength(model, strength)
        assert get_strength(model) == strength
        assert blurs == sum(isinstance(m, BlurPool) for m in model.modules())
        assert list(model.state_dict()) == state
        assert [b.shape for b in model.buffers()] == buffers  # EMA copies pair them in order
        outputs = [run(model, photograph(n, torch.float64)) for n in sizes]
        if strength == 0:
            for output, untouched in zip(outputs, expected, strict=True):
                torch.testing.assert_close(output, untouched, rtol=1e-9, atol=1e-9)
        if strength == 1:
            assert all(map(torch.equal, outputs, full))
        distance.append((outputs[0] - full[0]).norm().item())
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] == 0 < distance[-2]


# --- between ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("filter", ["tri-3", "binomial-5", "halfband-7"])
def test_what_folds_onto_a_flat_map_shrinks_with_the_strength(filter: str, stride: int) -> None:
    blur = BlurPool(filter, (stride, stride))
    for strength in (0.0, 0.3, 0.8, 1.0):
        set_strength(blur, strength)
        assert sum(blur.taps[0]) == pytest.approx(1, abs=1e-12)
        assert alias_gain(blur.taps[0], stride) == pytest.approx(1 - strength, abs=1e-6)


@pytest.mark.parametrize(
    "blur",
    [
        BlurPool1d("tri-3", 2),
        BlurPool2d("tri-4", (2, 1)),
        BlurPool2d("binomial-5", 4, "zeros"),
        BlurPool3d("tri-3", (1, 2, 2)),
        BlurPool("tri-3", (1, 1), (2, 2), "circular"),
        BlurMaps("tri-3", (2, 2), channels_last=True),
    ],
    ids=repr,
)
def test_taps_and_kernel_agree_and_give_the_mixture_of_each_axis(blur: BlurPool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *(11,) * len(blur.stride), dtype=torch.float64)
    blur = copy.deepcopy(blur).double()
    set_strength(blur, 0.3)
    explicit = []
    for rate in blur.rate:
        taps = torch.tensor(blur.filter.taps(rate), dtype=torch.float64) * 0.3
        taps[(len(taps) - 1) // 2] += 0.7
        explicit.append(taps)
    kernel = explicit[0]
    for taps in explicit[1:]:
        kernel = kernel[..., None] * taps
    torch.testing.assert_close(blur.kernel[0, 0], kernel)
    torch.testing.assert_close(
        torch.tensor(blur.taps[-1]).double(), explicit[-1], rtol=1e-6, atol=0
    )
    scripted = torch.jit.script(blur)  # reads the kernel alone
    torch.testing.assert_close(scripted(x), blur(x))


def test_large_maps_on_the_cpu_take_the_new_taps_too() -> None:
    """There the fast forms read the taps, not the kernel."""
    x = photograph(1100)
    for needs_gradient in (False, True):
        blur = BlurPool("tri-3")
        set_strength(blur, 0.4)
        plain = F.conv2d(
            F.pad(x, (1, 1, 1, 1), mode="reflect"),
            blur.kernel.expand(3, -1, -1, -1),
            stride=2,
            groups=3,
        )
        torch.testing.assert_close(blur(x.clone().requires_grad_(needs_gradient)), plain)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (nn.AvgPool1d, dict(kernel_size=2)),
        (nn.AvgPool2d, dict(kernel_size=3, stride=2, padding=1)),
        (nn.AvgPool2d, dict(kernel_size=2, ceil_mode=True, count_include_pad=False)),
        (nn.AvgPool3d, dict(kernel_size=2, ceil_mode=True)),
    ],
)
def test_average_pools_are_mixed_with_their_blur(
    cls: type[nn.Module], arguments: dict[str, object]
) -> None:
    for size in (8, 9):
        net = nn.Sequential(cls(**arguments)).double()
        x = torch.randn(2, 3, *(size,) * int(cls.__name__[-2]), dtype=torch.float64)
        average = run(net, x)
        apply_antialias(net, filter="binomial-5")
        assert isinstance(net[0].aa_blur, AverageBlurPool)
        blurred = run(net, x)
        for strength in (0.0, 0.25, 1.0):
            set_strength(net, strength)
            mixed = (1 - strength) * average + strength * blurred
            torch.testing.assert_close(run(net, x), mixed)
            torch.testing.assert_close(torch.jit.script(net)(x), mixed)
        assert torch.equal(run(net, x), blurred)


@pytest.mark.parametrize("arguments", [dict(count_include_pad=False), dict(divisor_override=5)])
def test_the_average_is_the_one_that_the_arguments_say(arguments: dict[str, int]) -> None:
    x = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    blur = AverageBlurPool("tri-3", (3, 3), (2, 2), (1, 1)).double()
    set_strength(blur, 0)
    torch.testing.assert_close(blur(x, **arguments), F.avg_pool2d(x, 3, 2, 1, **arguments))


# --- after-life ---------------------------------------------------------------------------------


def test_copies_pickles_and_moves_keep_the_strength() -> None:
    model = apply_antialias(build("resnet50d"))
    x = photograph(64)
    full = run(model, x)
    set_strength(model, 0.3)
    expected = run(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert get_strength(other) == 0.3
        assert torch.equal(run(other, x), expected)
        other.half().float()
        set_strength(other, 1)
        set_strength(other, 0.3)  # in the precision that the layer has now
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(run(other, x), expected)
        set_strength(other, 1)
        assert torch.equal(run(other, x), full)
    assert get_strength(model) == 0.3
    assert torch.equal(run(model, x), expected)


def test_a_model_that_leaves_the_meta_device_keeps_the_strength() -> None:
    model = apply_antialias(build("resnet50d"))
    set_strength(model, 0.3)
    expected = run(model, photograph(64))
    other = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    for module in other.modules():
        if isinstance(module, BlurPool):
            module.init_non_persistent_buffers()
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other.eval(), photograph(64)), expected)


def test_compiled_models_are_not_compiled_again_for_each_strength() -> None:
    model = apply_antialias(build("resnet18"))
    averaging = apply_antialias(nn.Sequential(nn.AvgPool2d(2)))
    x = photograph(64)
    for net, graphs in ((model, 1), (averaging, 2)):
        with compilations() as made:
            compiled = torch.compile(net)
            for strength in (1.0, 0.0, 0.1, 0.2, 0.55, 0.9, 1.0):
                set_strength(compiled, strength)
                torch.testing.assert_close(run(compiled, x), run(net, x), rtol=1e-5, atol=1e-5)
        assert len(made) == graphs


def test_a_net_learns_at_every_strength() -> None:
    model = apply_antialias(build("resnet18")).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.cat([photograph(64), photograph(64).flip(-1)])
    for strength in (0.0, 0.5, 1.0):
        set_strength(model, strength)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_a_strength_outside_of_0_to_1_is_refused(strength: float) -> None:
    blur = BlurPool()
    with pytest.raises(FilterError, match="from 0 to 1"):
        set_strength(blur, strength)
    assert get_strength(blur) == 1


def test_a_model_without_blurs_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    for call in (lambda: set_strength(net, 0.5), lambda: get_strength(net)):
        with pytest.raises(UnsupportedModelError, match=r"no blur.*apply_antialias"):
            call()


def test_parts_may_differ_but_then_have_no_common_strength() -> None:
    model = apply_antialias(build("resnet18"))
    set_strength(model.layer4, 0.5)
    assert get_strength(model.layer4) == 0.5
    with pytest.raises(UnsupportedModelError, match=r"0\.5 to 1"):
        get_strength(model)
