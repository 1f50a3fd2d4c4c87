"""Modules that rebuild themselves from their weights: the blurs come along, or nothing is done."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import timm
import torch
from mmpretrain.models.backbones import MobileOne, RepVGG
from models import _settle_statistics, _spread_norms
from timm.models.byobnet import MobileOneBlock
from timm.utils import reparameterize_model
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, remove_antialias
from aa_surgery.errors import UnsupportedModelError
from aa_surgery.surgery.classes import Antialiased

# branches in parallel, kernels of two sizes, convs that become another module, a rewritten forward
NAMES = ["mobileone_s0", "fastvit_t8", "repvgg_a0", "repvit_m0_9", "lcnetv2_small"]
MORE = ["ghostnetv3_050", "levit_128s", "shvit_s1", "efficientvim_m1"]
MM = {
    "MMPretrain MobileOne": lambda: MobileOne("s0", out_indices=(3,)),
    "MMPretrain RepVGG": lambda: RepVGG("A0", out_indices=(3,)),
}
MERGED = {
    "MMPretrain MobileOne": lambda: MobileOne("s0", out_indices=(3,), deploy=True),
    "MMPretrain RepVGG": lambda: RepVGG("A0", out_indices=(3,), deploy=True),
}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)  # hosts make the merged convolution in the default
    yield
    torch.set_default_dtype(torch.float32)


def settled(model: nn.Module, size: int = 64) -> nn.Module:
    _spread_norms(model)
    _settle_statistics(model, size)
    return model.eval()


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return settled(timm.create_model(name, num_classes=10), size_of(name))


def size_of(name: str) -> int:
    return 224 if name == "levit_128s" else 64


def image(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, size_of(name), size_of(name), generator=generator)


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = model(x)
    return y[-1] if isinstance(y, tuple) else y


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def treated_convs(model: nn.Module) -> int:
    return sum(isinstance(m, Antialiased) and isinstance(m, nn.Conv2d) for m in model.modules())


@pytest.mark.parametrize(
    ("name", "placement"),
    [(name, placement) for name in NAMES for placement in ("auto", "post", "pre")]
    + [(name, "auto") for name in MORE],
)
def test_a_rebuilt_model_computes_the_same(name: str, placement: str) -> None:
    model, x = build(name), image(name)
    plain = run(reparameterize_model(model), x)
    expected = run(apply_antialias(model, placement=placement), x)
    assert (expected - plain).abs().max() > 1e-3 * plain.abs().max()

    rebuilt = reparameterize_model(model)
    assert_close(run(rebuilt, x), expected)
    assert 0 < treated_convs(rebuilt) <= treated_convs(model)
    assert audit(rebuilt, x).untreated == ()
    assert torch.equal(run(model, x), expected)

    assert torch.equal(run(remove_antialias(rebuilt), x), plain)
    assert not any(isinstance(m, Antialiased) for m in rebuilt.modules())


@pytest.mark.parametrize("kind", MM)
def test_switch_to_deploy(kind: str) -> None:
    torch.manual_seed(0)
    model, x = settled(nn.Sequential(MM[kind]())), image("")
    expected = run(apply_antialias(model), x)
    model[0].switch_to_deploy()
    assert not any("branch_norm" in name for name, _ in model.named_modules())
    assert_close(run(model, x), expected)
    assert audit(model, x).untreated == ()


@pytest.mark.parametrize("kind", MM)
def test_a_model_built_in_its_merged_form_takes_the_weights(kind: str) -> None:
    model, x = settled(nn.Sequential(MM[kind]())), image("")
    expected = run(apply_antialias(model), x)
    model[0].switch_to_deploy()
    merged = nn.Sequential(MERGED[kind]()).eval()
    merged.load_state_dict(model.state_dict())
    assert_close(run(apply_antialias(merged), x), expected)


def test_a_timm_model_built_in_its_merged_form_takes_the_weights() -> None:
    model = apply_antialias(build("fastvit_t8"))
    expected = run(model, image("fastvit_t8"))
    merged = timm.create_model("fastvit_t8", num_classes=10, inference_mode=True).eval()
    merged.load_state_dict(reparameterize_model(model).state_dict())
    assert_close(run(apply_antialias(merged), image("fastvit_t8")), expected)


def test_a_model_that_fuses_itself() -> None:
    model, x = build("repvit_m0_9"), image("")
    expected = run(apply_antialias(model), x)
    assert model.fuse() is model
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert_close(run(model, x), expected)


@pytest.mark.parametrize("name", ["mobileone_s0", "repvit_m0_9"])
def test_a_model_rebuilt_before_is_treated_as_any_other(name: str) -> None:
    model, x = reparameterize_model(build(name)), image(name)
    expected = run(model, x)
    apply_antialias(model)
    assert audit(model, x).untreated == ()
    assert torch.equal(run(remove_antialias(model), x), expected)


def test_a_rebuilt_model_copies_pickles_and_scripts() -> None:
    model, x = apply_antialias(build("mobileone_s0")), image("")
    rebuilt = reparameterize_model(model)
    expected = run(rebuilt, x)
    for twin in (copy.deepcopy(rebuilt), pickle.loads(pickle.dumps(rebuilt))):
        assert torch.equal(run(twin, x), expected)
    with pytest.warns(FutureWarning, match="deprecated"):
        assert_close(run(torch.jit.script(rebuilt), x), expected)


def test_rebuilding_twice_does_nothing_more() -> None:
    model, x = apply_antialias(build("mobileone_s0")), image("")
    once = reparameterize_model(model)
    expected = run(once, x)
    assert torch.equal(run(reparameterize_model(once), x), expected)


def block() -> MobileOneBlock:
    torch.manual_seed(0)
    return timm.create_model("mobileone_s0").stages[0][0]


def strided_net() -> nn.Sequential:
    return settled(nn.Sequential(nn.Conv2d(3, 48, 1), block()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "*conv_scale*"}, "conv_scale.conv is filtered otherwise"),
        ({"overrides": {"*kxk.2*": {"filter": "tri-4"}}}, "conv_kxk.2.conv is filtered otherwise"),
        ({"placement": "post", "padding_mode": "zeros"}, "conv_scale.conv is filtered otherwise"),
    ],
)
def test_what_has_no_equal_is_refused(options: dict[str, object], message: str) -> None:
    net, x = apply_antialias(strided_net(), **options), image("")
    expected, keys = run(net, x), list(net.state_dict())
    classes = [type(m) for m in net.modules()]
    with pytest.raises(UnsupportedModelError, match=message) as error:
        net[1].reparameterize()
    assert "remove_antialias" in str(error.value)
    assert list(net.state_dict()) == keys
    assert [type(m) for m in net.modules()] == classes
    assert torch.equal(run(net, x), expected)
    rebuilt = reparameterize_model(remove_antialias(net))
    apply_antialias(rebuilt)
    assert audit(rebuilt, x).untreated == ()


def test_what_was_left_stays_as_it_was() -> None:
    model, x = build("mobileone_s0"), image("")
    expected = run(apply_antialias(model, exclude="stages.1.*"), x)
    rebuilt = reparameterize_model(model)
    assert type(rebuilt.stages[1][0].reparam_conv) is nn.Conv2d
    assert_close(run(rebuilt, x), expected)


class Scaled(nn.Conv2d):
    """A convolution whose `fuse` gives another module for its place."""

    def fuse(self) -> nn.Module:
        merged = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size)
        merged.load_state_dict(self.state_dict())
        return merged


class SharedActivation(nn.Module):
    """The activation is called twice, so the blur behind it stands before the fused module."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.fused, self.relu = nn.Conv2d(3, 4, 3, 2, 1), Scaled(4, 4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.fused(self.relu(self.down(x))))


def test_a_blur_around_the_module_goes_to_the_one_in_its_place() -> None:
    torch.manual_seed(0)
    model, x = apply_antialias(settled(SharedActivation())), image("")
    assert model.fused.aa_before is not None
    expected = run(model, x)
    model.fused = model.fused.fuse()
    assert isinstance(model.fused, Antialiased)
    assert isinstance(model.fused, nn.Conv2d)
    assert_close(run(model, x), expected)
    remove_antialias(model)
    assert type(model.fused) is nn.Conv2d


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
@pytest.mark.parametrize(
    "options",
    [{"method": "aps"}, {"method": "learned"}, {"method": "group-conv"}, {"circular": True}],
)
def test_what_a_merged_convolution_cannot_carry_is_refused(
    name: str, options: dict[str, object]
) -> None:
    model, x = build(name), torch.randn(1, 3, 64, 64)
    apply_antialias(model, **options)
    with torch.no_grad():
        expected = model(x)
        with pytest.raises(UnsupportedModelError, match=r"Call remove_antialias\(model\), then"):
            reparameterize_model(model, inplace=True)
        assert torch.equal(model(x), expected)
