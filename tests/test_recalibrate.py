"""Laws of the paired correction: what it matches, what it leaves, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from models import MODELS, build
from skimage import data
from timm.layers import GroupNormAct, freeze_batch_norm_2d
from torch import Tensor, nn

from aa_surgery import apply_antialias
from aa_surgery.adapt.matching import on_grid
from aa_surgery.adapt.norms import RunningNorm, find_norms
from aa_surgery.adapt.recalibrate import Recalibration, recalibrate
from aa_surgery.demo.weights import load_efficientnet_lite0
from aa_surgery.errors import InputError, UnsupportedModelError

Pairs = Callable[..., tuple[nn.Module, nn.Module]]
SOURCES = (data.chelsea, data.astronaut, data.coffee, data.rocket)
BATCH_NORMS = ["resnet18", "tf_efficientnet_lite0", "torchvision:googlenet"]
OTHERS = ["convnext_atto"]  # layer norms


def photographs(size: int = 64, copies: int = 2) -> Tensor:
    """Parts of photographs, normalised, `(4 * copies, 3, size, size)`, one photograph in turn."""
    views = []
    for part in range(copies):
        for source in SOURCES:
            image = torch.from_numpy(source().copy()).movedim(-1, 0)[None].float() / 127.5 - 1
            top, left = (part * (n - 200) // copies for n in image.shape[-2:])
            crop = image[..., top : top + 200, left : left + 200]
            views.append(F.interpolate(crop, (size, size), mode="area"))
    return torch.cat(views)


@pytest.fixture(scope="module")
def real() -> Pairs:
    """Models whose norms were settled on photographs, anti-aliased and not."""
    kept: dict[str, nn.Module] = {}

    def pair(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
        if name not in kept:
            kept[name] = settled(build(name))
        original = copy.deepcopy(kept[name])
        options = {"filter": "tri-3", **options}
        return apply_antialias(copy.deepcopy(original), **options), original

    return pair


def settled(model: nn.Module) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train()(photographs())
    return model.eval()


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def taps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return what each norm was last seen at."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, norm in find_norms(model).items():
            hooks.enter_context(norm.tap(partial(keep, found, name)))
        run(model, x)
    return found


def keep(found: dict[str, Tensor], name: str, tap: Tensor) -> None:
    found[name] = tap.detach().clone()


def outputs(model: nn.Module, original: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean and standard deviation a channel of the outputs of a model's norms.

    Of maps that are dense in the model, those at the original's samples.
    """
    found, like, norms = taps(model, x), taps(original, x), find_norms(model)
    moments = {}
    for name, tap in found.items():
        values = on_grid(tap, like[name].shape).double()
        axes = norms[name].other_axes(values)
        var, mean = torch.var_mean(values, axes, correction=0)
        mean, var = norms[name].output_moments(mean.flatten(), var.flatten())
        moments[name] = (mean, var.sqrt())
    return moments


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- what it matches ------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["auto", "pre"])
@pytest.mark.parametrize("name", BATCH_NORMS + OTHERS)
def test_afterwards_every_norm_gives_what_it_gave(real: Pairs, name: str, placement: str) -> None:
    model, original = real(name, placement=placement)
    x = photographs(copies=8)
    target = outputs(original, original, x)
    result = recalibrate(model, original, [x])
    assert result.corrected
    for norm, (mean, std) in outputs(model, original, x).items():
        mean_o, std_o = target[norm]
        scale = std_o + 0.03 * std_o.mean()  # silent channels are not to be blown up
        assert ((mean - mean_o) / scale).abs().max() < 0.02, norm
        assert (std - std_o).abs().mean() < 0.05 * std_o.mean(), norm


@pytest.mark.parametrize("placement", ["auto", "pre"])
def test_real_weights_predict_again_what_they_did(placement: str) -> None:
    original = load_efficientnet_lite0()
    model = apply_antialias(copy.deepcopy(original), filter="tri-3", placement=placement)
    views = photographs(size=160, copies=16)
    seen, unseen = views[::2], views[1::2]
    target = run(original, unseen).log_softmax(1)

    def divergence() -> Tensor:
        found = run(model, unseen).log_softmax(1)
        return F.kl_div(found, target, reduction="batchmean", log_target=True)

    before = divergence()
    recalibrate(model, original, seen.split(8))
    assert divergence() < 0.5 * before


@pytest.mark.parametrize("name", BATCH_NORMS + OTHERS)
def test_a_second_time_changes_little(real: Pairs, name: str) -> None:
    model, original = real(name)
    untreated, x = state(model), photographs(copies=8)
    recalibrate(model, original, [x])
    once = state(model)
    recalibrate(model, original, [x])
    keys = [k for k in once if once[k].is_floating_point()]
    moved = sum((once[k] - untreated[k]).norm() for k in keys)
    assert sum((state(model)[k] - once[k]).norm() for k in keys) < 0.05 * moved


def test_small_batches_give_nearly_what_one_batch_gives(real: Pairs) -> None:
    x = photographs(copies=4)
    results = []
    for size in (len(x), 2):
        model, original = real("resnet18")
        before = run(model, x) - run(original, x)
        recalibrate(model, original, x.split(size))
        results.append((run(model, x) - run(original, x)).norm() / before.norm())
    assert results[1] < 1.25 * results[0]


def test_norms_called_several_times_are_corrected_over_all_calls() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, 2, 1) for c in (3, 8))
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = self.norm(conv(x)).relu()
            return x

    torch.manual_seed(0)
    original = Shared().eval()
    model = apply_antialias(copy.deepcopy(original), filter="tri-3")
    before = (run(model, photographs()) - run(original, photographs())).norm()
    assert recalibrate(model, original, [photographs()]).corrected == ("norm",)
    assert (run(model, photographs()) - run(original, photographs())).norm() < before
    same = apply_antialias(copy.deepcopy(original), filter="identity")
    assert recalibrate(same, original, [photographs()]).corrected == ()


# --- what it leaves -------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["auto", "pre"])
@pytest.mark.parametrize(
    "name", [*BATCH_NORMS, *OTHERS, "poolformer_s12", "torchvision:swin_t", "coatnet_pico_rw_224"]
)
def test_the_identity_filter_leaves_every_bit(real: Pairs, name: str, placement: str) -> None:
    model, original = real(name, filter="identity", placement=placement)
    before = state(model)
    result = recalibrate(model, original, photographs().split(4))
    assert result.corrected == ()
    assert result.largest_shift == 0
    assert equal(state(model), before)


def test_norms_before_the_first_blur_keep_every_bit(real: Pairs) -> None:
    model, original = real("resnet18", include="layer3.*")
    result = recalibrate(model, original, [photographs()])
    assert set(result.norms) == set(find_norms(model))
    assert result.corrected
    changed = {k for k, v in state(original).items() if not torch.equal(v, state(model)[k])}
    assert {k.rpartition(".")[0] for k in changed} == set(result.corrected)
    assert all(k.startswith(("layer3.", "layer4.")) for k in changed)


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_of_batch_norms_only_the_statistics_change(real: Pairs, name: str) -> None:
    model, original = real(name)
    recalibrate(model, original, [photographs()])
    theirs = original.state_dict()
    changed = {k.split(".")[-1] for k, v in state(model).items() if not torch.equal(v, theirs[k])}
    assert changed == {"running_mean", "running_var"}


def test_of_layer_norms_only_weight_and_bias_change(real: Pairs) -> None:
    model, original = real("convnext_atto")
    result = recalibrate(model, original, [photographs()])
    theirs = original.state_dict()
    changed = {
        k.rpartition(".")[0] for k, v in state(model).items() if not torch.equal(v, theirs[k])
    }
    assert changed == set(result.corrected)


def test_modes_hooks_gradients_and_random_numbers_are_left(real: Pairs) -> None:
    model, original = real("resnet18")
    model.train()
    model.layer2.eval()
    x = photographs()
    F.cross_entropy(model(x), torch.arange(len(x))).backward()
    model.layer1.register_forward_hook(lambda *_: None)

    def surroundings() -> list[object]:
        seen: list[object] = [torch.get_rng_state().tolist(), torch.is_grad_enabled()]
        for net in (model, original):
            seen += [m.training for m in net.modules()]
            seen += [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
            seen += [(p.requires_grad, p.grad is None) for p in net.parameters()]
            seen += [getattr(m, "momentum", None) for m in net.modules()]
        return seen

    before, gradient = surroundings(), model.conv1.weight.grad.clone()
    theirs = state(original)
    recalibrate(model, original, [x])
    assert surroundings() == before
    assert torch.equal(model.conv1.weight.grad, gradient)
    assert equal(state(original), theirs)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_failure_half_way_leaves_every_bit(real: Pairs, at: int) -> None:
    model, original = real("resnet18")
    before, modes = state(model), [m.training for m in model.modules()]

    def images() -> Iterator[Tensor]:
        for batch in range(3):
            if batch == at:
                raise OSError("the disk is gone")
            yield photographs()

    with pytest.raises(OSError, match="the disk is gone"):
        recalibrate(model, original, images())
    assert equal(state(model), before)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_silent_channels_stay_silent() -> None:
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
    original = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.BatchNorm2d(8)).eval()
    with torch.no_grad():
        original[2].weight[:4] = 0
    model = apply_antialias(copy.deepcopy(original), filter="tri-3")
    recalibrate(model, original, [photographs()])
    for key in ("running_mean", "running_var"):
        assert torch.equal(getattr(model[3], key)[:4], getattr(original[3], key)[:4])
        assert not torch.equal(getattr(model[3], key)[4:], getattr(original[3], key)[4:])


# --- norms of every kind --------------------------------------------------------------------


def frozen(model: nn.Module) -> nn.Module:
    return freeze_batch_norm_2d(model)


def frozen_by_torchvision(model: nn.Module) -> nn.Module:
    net = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    net.load_state_dict(model.state_dict(), strict=False)
    return net.eval()


@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (nn.SyncBatchNorm.convert_sync_batchnorm, "SyncBatchNorm"),
        (frozen, "FrozenBatchNorm2d"),
        (frozen_by_torchvision, "FrozenBatchNorm2d"),
    ],
)
def test_other_batch_norms_get_the_same_statistics(
    real: Pairs, convert: Callable[[nn.Module], nn.Module], kind: str
) -> None:
    model, original = real("torchvision:resnet18")
    expected = copy.deepcopy(model)
    recalibrate(expected, original, [photographs()])
    theirs = convert(copy.deepcopy(original))
    mine = apply_antialias(copy.deepcopy(theirs), filter="tri-3")
    assert recalibrate(mine, theirs, [photographs()]).kinds == (kind,)
    for name, norm in find_norms(mine).items():
        wanted = expected.get_submodule(name)
        torch.testing.assert_close(norm.module.running_mean, wanted.running_mean)
        torch.testing.assert_close(
            norm.module.running_var, wanted.running_var, rtol=1e-5, atol=1e-5
        )


def test_group_norms_with_an_activation_inside_are_matched_before_it() -> None:
    torch.manual_seed(0)
    original = timm.create_model("resnetv2_18", norm_layer=GroupNormAct).eval()
    model = apply_antialias(copy.deepcopy(original), filter="tri-3")
    x = photographs()
    before, target = outputs(model, original, x), outputs(original, original, x)
    result = recalibrate(model, original, [x])
    after = outputs(model, original, x)
    assert result.kinds == ("GroupNormAct",)
    for norm in result.corrected:
        gaps = [(seen[norm][0] - target[norm][0]).abs().mean() for seen in (before, after)]
        assert gaps[1] < 0.05 * gaps[0] + 1e-3, norm


@pytest.mark.parametrize(
    "name", ["convnext_atto", "torchvision:swin_t", "coatnet_pico_rw_224", "poolformer_s12"]
)
def test_the_channels_of_every_layer_norm_are_found(name: str) -> None:
    model = build(name)
    norms, found = find_norms(model), taps(model, photographs(MODELS[name].sizes[0], copies=1))
    assert found
    for key, tap in found.items():
        axes = norms[key].other_axes(tap)
        assert tuple(n for i, n in enumerate(tap.shape) if i not in axes) == norms[key].shape


def test_running_statistics_absorb_a_scale_and_a_shift() -> None:
    torch.manual_seed(0)
    net = nn.BatchNorm2d(5, affine=False, eps=0.1).eval().double()
    net.running_mean.normal_()
    net.running_var.uniform_(0.5, 2)
    x, scale, shift = torch.randn(2, 5, 4, 4).double(), torch.rand(5).double() + 0.5, torch.rand(5)
    expected = net(x) * scale.view(5, 1, 1) + shift.double().view(5, 1, 1)
    norm = find_norms(net)[""]
    assert isinstance(norm, RunningNorm)
    on_input = [v.view(5, 1, 1) for v in norm.on_tap(scale, shift.double())]
    torch.testing.assert_close(net(x * on_input[0] + on_input[1]), expected)
    norm.absorb(scale, shift.double())
    torch.testing.assert_close(net(x), expected)


# --- what it refuses ------------------------------------------------------------------------


def test_batches_may_be_tuples_and_progress_counts_images(real: Pairs) -> None:
    model, original = real("resnet18")
    counts: list[int] = []
    x = photographs()
    batches = [(x[:5], torch.zeros(5), [0]), (x[5:], None, None)]
    result = recalibrate(model, original, batches, progress=counts.append)
    assert counts == [5, 3]
    assert isinstance(result, Recalibration)
    assert str(result).startswith(
        f"{len(result.corrected)} of 20 norms (BatchNorm2d) corrected on 8"
    )
    assert result.worst in str(result)


def test_wrapped_and_compiled_models_are_recalibrated_inside(real: Pairs) -> None:
    plain, original = real("resnet18")
    wrapped = nn.DataParallel(copy.deepcopy(plain))
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    for model in (plain, wrapped, compiled):
        recalibrate(model, original, [photographs()])
    assert equal(state(wrapped.module), state(plain))
    assert equal(state(compiled._orig_mod), state(plain))


@pytest.mark.parametrize("images", [[], [[]], [torch.zeros(3)], [["a.jpg"]]])
def test_no_images_are_refused(real: Pairs, images: list[object]) -> None:
    model, original = real("resnet18")
    with pytest.raises(InputError, match=r"(no image|a batch of type)"):
        recalibrate(model, original, images)
    assert equal(state(model), state(original))


def test_nan_is_named_and_changes_nothing(real: Pairs) -> None:
    model, original = real("resnet18")
    x = photographs()
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"bn1: its statistics on these images are not finite"):
        recalibrate(model, original, [x])
    assert equal(state(model), state(original))


def test_models_without_norms_have_nothing_to_correct() -> None:
    for net in (
        nn.Conv2d(3, 8, 3, 2),
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.LayerNorm(8, elementwise_affine=False)),
    ):
        with pytest.raises(UnsupportedModelError, match=r"nothing to recalibrate.*Distill"):
            recalibrate(copy.deepcopy(net), net, [photographs()])


def test_another_architecture_is_refused(real: Pairs) -> None:
    model, original = real("resnet18")
    with pytest.raises(UnsupportedModelError, match=r"differ in \d+ norms; .* alone"):
        recalibrate(model, build("resnet50d"), [photographs()])
    other = copy.deepcopy(original)
    other.bn1 = nn.BatchNorm2d(32)
    with pytest.raises(UnsupportedModelError, match=r"bn1: BatchNorm2d of \(64,\) channels"):
        recalibrate(model, other, [photographs()])
    other.bn1 = nn.Identity()  # fused
    with pytest.raises(UnsupportedModelError, match=r"bn1 is in the model alone.*before fusing"):
        recalibrate(model, other, [photographs()])


def test_norms_that_are_used_differently_are_refused(real: Pairs) -> None:
    model, original = real("resnet18")
    original.layer4 = nn.Sequential(original.layer4[0], original.layer4[1])
    original.layer4.forward = lambda x: original.layer4[0](x)
    with pytest.raises(UnsupportedModelError, match=r"layer4\.1\.bn1: ran 1 times.* 0 times"):
        recalibrate(model, original, [photographs()])
