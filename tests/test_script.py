"""TorchScript: what scripts before the surgery scripts after it, and computes the same."""

from __future__ import annotations

import io

import pytest
import timm
import torch
import torchvision
from test_ops import OPS, make
from torch import Tensor, nn
from zoo import ZOO, DecidingMethod, FlagArgument, GivenShortcut, SliceMerge, Slices, Zoo

from aa_surgery import apply_antialias, layers
from aa_surgery.layers.maps import AverageBlurPool, BlurMaps
from aa_surgery.surgery.classes import Antialiased

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")

MODELS = [
    "resnet18",
    "resnet18d",
    "convnext_atto",
    "regnety_002",
    "tf_efficientnet_lite0",
    "poolformer_s12",
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:swin_t",
    "torchvision:inception_v3",
]


# TorchScript reads no comprehension of two loops, so the first three do not script themselves;
# nor does it know that an argument without a type may be None, or a flag
SCRIPTABLE = [
    cls
    for cls in ZOO
    if cls not in (Slices, SliceMerge, DecidingMethod, FlagArgument, GivenShortcut)
]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "torchvision:inception_v3":
        return torchvision.models.inception_v3(init_weights=False).eval()
    source, _, rest = name.rpartition(":")
    if source:
        return torchvision.models.get_model(rest).eval()
    return timm.create_model(name, scriptable=True).eval()


def image(name: str, size: int = 64) -> Tensor:
    return torch.randn(2, 3, *(128, 131) if "inception" in name else (size, size + 3))


def assert_scripts_alike(net: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    scripted = torch.jit.script(net)
    with torch.no_grad():
        expected, got = net(x), scripted(x)
    expected, got = (y[0] if isinstance(y, tuple) else y for y in (expected, got))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    return scripted


@pytest.mark.parametrize("name", MODELS)
def test_real_models(name: str) -> None:
    assert_scripts_alike(apply_antialias(build(name)), image(name))


@pytest.mark.parametrize(
    "options",
    [{"placement": "post"}, {"placement": "pre"}, {"preset": "zhang2019"}],
    ids=["post", "pre", "zhang2019"],
)
def test_other_placements(options: dict[str, str]) -> None:
    for name in ("resnet18", "torchvision:swin_t"):
        assert_scripts_alike(apply_antialias(build(name), **options), image(name))


@pytest.mark.parametrize("placement", ["auto", "post"])
@pytest.mark.parametrize("cls", SCRIPTABLE, ids=lambda cls: cls.__name__)
def test_nets_with_one_hazard_each(cls: type[Zoo], placement: str) -> None:
    torch.manual_seed(0)
    net = apply_antialias(cls().eval(), placement=placement)
    assert_scripts_alike(net, torch.randn(net.size))


@pytest.mark.parametrize("kind", OPS)
def test_ops_with_a_forward_of_their_own(kind: str) -> None:
    net = apply_antialias(make(kind))
    assert_scripts_alike(net, torch.randn(2, 4, 12, 13, dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.BlurPool("tri-3"), (2, 3, 13, 8)),
        (layers.BlurPool("tri-4", (1, 2), channels_last=True), (2, 13, 8, 3)),
        (layers.BlurPool("identity"), (2, 3, 13, 8)),
        (layers.BlurPool1d("binomial-7", 3, "circular"), (2, 3, 4)),
        (layers.BlurPool2d("tri-3", 2, "zeros"), (2, 3, 2, 1)),
        (layers.BlurPool3d(), (2, 3, 4, 5, 6)),
        (BlurMaps("tri-3", (2, 2), channels_last=True), (2, 3, 9, 8, 3)),
        (BlurMaps("tri-3", (2, 2)), (3, 9, 8)),
        (AverageBlurPool("rect-2", (2, 2), (2, 2), (0, 0)), (2, 3, 9, 8)),
        (AverageBlurPool("tri-3", (3, 3), (2, 2), (1, 1), True), (2, 3, 9, 8)),
        (layers.MaxBlurPool1d(3), (2, 3, 9)),
        (layers.MaxBlurPool2d(3, 2, 1, 1, True), (2, 3, 10, 9)),
        (layers.MaxBlurPool3d(2), (2, 3, 6, 9, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert_scripts_alike(layer, torch.randn(shape))


def test_a_scripted_model_trains_saves_and_loads() -> None:
    model = apply_antialias(build("torchvision:resnet18")).train()
    scripted = torch.jit.script(model)
    scripted(image("")).square().mean().backward()
    assert all(p.grad is not None for p in scripted.parameters())
    file = io.BytesIO()
    torch.jit.save(scripted.eval(), file)
    file.seek(0)
    x = image("", 71)
    torch.testing.assert_close(torch.jit.load(file)(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_scripting_leaves_the_model_as_it_was() -> None:
    model = apply_antialias(build("resnet18"))
    classes = [type(m) for m in model.modules()]
    torch.jit.script(model)
    assert [type(m) for m in model.modules()] == classes
    assert any(issubclass(cls, Antialiased) for cls in classes)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "torchvision:swin_t"])
def test_scripting_after_a_symbolic_trace(name: str) -> None:
    model = apply_antialias(build(name))
    assert_scripts_alike(torch.fx.symbolic_trace(model), image(name, 64))


def test_a_symbolic_trace_records_the_functions_of_a_rewritten_forward() -> None:
    model = apply_antialias(build("torchvision:inception_v3"))
    x = image("inception")
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
