"""The laws of docs/design.md for every method, over real architectures."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator

import pytest
import torch
from models import build
from torch import Tensor, nn

from aa_surgery import (
    NoEffectWarning,
    Plan,
    apply_antialias,
    plan_antialias,
    remove_antialias,
)
from aa_surgery.adapt import recalibrate
from aa_surgery.errors import MethodError
from aa_surgery.layers.strength import set_strength
from aa_surgery.methods import METHODS

NAMES = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "torchvision:vgg11_bn",
)
SIZES = {"swin_tiny_patch4_window7_224": 112}
NEW = [name for name in METHODS if name != "blur"]
WITH_WEIGHTS = ("learned", "group-conv", "conv3d", "adaptive", "lps")


@pytest.fixture(scope="module", params=NAMES)
def host(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    size = SIZES.get(request.param, 64)
    generator = torch.Generator().manual_seed(0)
    few = {"num_classes": 10} if "vgg" in request.param else {}
    return build(request.param, **few), torch.randn(2, 3, size, size, generator=generator)


@pytest.fixture(params=NEW)
def case(
    request: pytest.FixtureRequest, host: tuple[nn.Module, Tensor]
) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """A method, an untouched model, and an input; the model is put back as it was."""
    model, x = host
    yield request.param, model, x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        remove_antialias(model.eval())
    model.zero_grad()


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def identity(model: nn.Module) -> dict[str, object]:
    """What surgery must leave: modules, parameters, their flags and plain attributes."""
    seen: dict[str, object] = {n: (id(m), type(m)) for n, m in model.named_modules()}
    seen |= {f"{n}@": (id(p), p.requires_grad) for n, p in model.named_parameters()}
    for name, module in model.named_modules():
        plain = (bool, int, float, str, tuple)
        seen |= {f"{name}!{k}": v for k, v in vars(module).items() if isinstance(v, plain)}
    return seen


def test_shapes_keys_and_undo(case: tuple[str, nn.Module, Tensor]) -> None:
    method, model, x = case
    before, expected = identity(model), run(model, x)
    keys = list(model.state_dict())
    state = {k: v.clone() for k, v in model.state_dict().items()}

    apply_antialias(model, method=method)
    plan = model._antialias_plan
    assert plan.edits
    assert run(model, x).shape == expected.shape
    new = [key for key in model.state_dict() if key not in keys]
    assert sorted(new) == sorted(plan.new_keys)
    assert bool(new) == (method in WITH_WEIGHTS)
    assert [key for key in model.state_dict() if key in keys] == keys
    assert not model.load_state_dict(state, strict=False).unexpected_keys

    remove_antialias(model)
    assert identity(model) == before
    assert torch.equal(run(model, x), expected)


def test_gradients_reach_the_methods_weights(case: tuple[str, nn.Module, Tensor]) -> None:
    method, model, x = case
    state = copy.deepcopy(model.state_dict())
    apply_antialias(model, method=method)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    before = run(copy.deepcopy(model).eval(), x)
    model(x).square().mean().backward()
    parameters = dict(model.named_parameters())
    new = [parameters[key] for key in model._antialias_plan.new_keys if key in parameters]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new)
    moved = [p for p in new if p.grad.abs().max() > 0]
    assert len(moved) >= len(new) / 2, "half of a method's weights must learn from the first step"
    optimizer.step()
    assert not torch.equal(run(model.eval(), x), before)
    remove_antialias(model)
    model.load_state_dict(state)


def test_copies_and_saved_plans_do_the_same(case: tuple[str, nn.Module, Tensor], tmp_path) -> None:
    method, model, x = case
    torch.manual_seed(0)
    apply_antialias(model, method=method)
    expected, weights = run(model, x), copy.deepcopy(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, x), expected)
    model._antialias_plan.save(tmp_path / "plan.json")
    remove_antialias(model)
    apply_antialias(model, plan=Plan.load(tmp_path / "plan.json"))
    model.load_state_dict(weights)
    assert torch.equal(run(model, x), expected)


def test_a_failure_leaves_the_model_untouched(
    case: tuple[str, nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, model, x = case
    before, expected = identity(model), run(model, x)
    plan = plan_antialias(model, method=method)
    assert identity(model) == before, "planning changes nothing"
    made = 0
    train = nn.Module.train

    def failing(self: nn.Module, mode: bool = True) -> nn.Module:
        nonlocal made
        made += 1
        if made > len(plan.edits) / 2:
            raise RuntimeError("injected")
        return train(self, mode)

    monkeypatch.setattr(nn.Module, "train", failing)
    with pytest.raises(RuntimeError, match="injected"):
        apply_antialias(model, plan=plan)
    monkeypatch.undo()
    assert identity(model) == before
    assert torch.equal(run(model, x), expected)


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if m.replacement is None])
def test_at_strength_0_the_model_is_the_untouched_one(
    method: str, host: tuple[nn.Module, Tensor]
) -> None:
    model, x = host
    expected = run(model, x)
    apply_antialias(model, method=method)
    try:
        whole = run(model, x)
        assert set_strength(model, 0.0) == len(model._antialias_plan.edits)
        torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)
        set_strength(model, 1.0)
        assert torch.equal(run(model, x), whole)
    finally:
        remove_antialias(model)


@pytest.mark.parametrize("method", ["group-conv", "conv3d"])
def test_learned_phases_start_as_what_they_replace(
    method: str, host: tuple[nn.Module, Tensor]
) -> None:
    model, x = host
    expected = run(model, x)
    apply_antialias(model, method=method)
    try:
        torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)
    finally:
        remove_antialias(model)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
@pytest.mark.parametrize("method", NEW)
def test_exports_compute_the_same(name: str, method: str) -> None:
    model, x = build(name), torch.randn(2, 3, 64, 64)
    apply_antialias(model, method=method)
    expected = run(model, x)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False).module()
        traced = torch.jit.trace(model, x)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="aot_eager")
        for other in (exported, traced, compiled):
            torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_scripting_works_or_names_what_cannot_be_scripted(method: str) -> None:
    model, x = build("resnet18"), torch.randn(2, 3, 64, 64)
    apply_antialias(model, method=method)
    if method in ("blur", "wavelet"):
        scripted = torch.jit.script(model)
        torch.testing.assert_close(run(scripted, x), run(model, x), rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(MethodError, match=r"cannot be scripted\. Use torch\.export"):
        torch.jit.script(model)


def test_residual_branches_share_a_phase_and_choose_anew_behind_it() -> None:
    plan = plan_antialias(build("resnet18"), method="aps")
    leaders = {edit.site.name: edit.leader for edit in plan.edits}
    for stage in (2, 3, 4):
        assert leaders[f"layer{stage}.0.downsample.0"] == f"layer{stage}.0.conv1"
        assert leaders[f"layer{stage}.0.conv1"] == ""


def test_a_plan_leaves_the_random_numbers() -> None:
    model = build("resnet18")
    before = torch.random.get_rng_state()
    plan_antialias(model, method="lps")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_method_that_must_know_the_maps_asks_for_an_example() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(MethodError, match=r"does not run on an input of shape .*example="):
        apply_antialias(model, method="learned")
    assert type(model[0]) is nn.Conv2d
    apply_antialias(model, method="learned", example=torch.zeros(1, 3, 8, 8))
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "apss"}, r"method 'apss' is unknown\. Use one of blur, learned"),
        ({"method": {"name": "adaptive", "group": 4}}, r"no option 'group'. It has: groups"),
        ({"method": "ideal", "filter": "tri-3"}, r"method 'ideal' takes no filter"),
    ],
)
def test_wrong_methods_are_refused(options: dict[str, object], message: str) -> None:
    model = build("resnet18")
    with pytest.raises(MethodError, match=message):
        apply_antialias(model, **options)
    assert type(model.conv1) is nn.Conv2d


def test_methods_are_reached_from_timm_and_by_overrides() -> None:
    import timm

    model = timm.create_model("aa_resnet18", antialias="aps")
    assert {edit.method.name for edit in model._antialias_plan.edits} == {"aps"}
    plan = plan_antialias(build("resnet18"), overrides={"maxpool": {"method": "ideal"}})
    named = {edit.site.name: edit.method.name for edit in plan.edits}
    assert named["maxpool"] == "ideal"
    assert named["conv1"] == "blur"


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_to_three_axes_odd_sizes_and_strides_or_a_reason(method: str, axes: int) -> None:
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1]
    model = nn.Sequential(
        conv(3, 8, 3, stride=2, padding=1), nn.ReLU(), pool(3, 2, 1), conv(8, 8, 3, stride=3)
    ).eval()
    x = torch.randn(2, 3, *[33] * axes)
    expected = run(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        apply_antialias(model, method=method, example=x)
        with torch.autocast("cpu", torch.bfloat16):
            assert run(model, x).shape == expected.shape
        remove_antialias(model)
    plan = plan_antialias(model, method=method, example=x)
    left = {item.site.name for item in plan.left}
    assert all(item.reason.startswith(f"method '{method}': ") for item in plan.left)
    if axes == 2 or method in ("blur", "learned"):
        # levels of a wavelet cannot subsample by 3
        assert left == ({"3"} if method == "wavelet" else set())


@pytest.mark.parametrize("method", list(METHODS))
def test_recalibrates_and_runs_channels_last(method: str) -> None:
    original, x = build("resnet18"), torch.randn(4, 3, 64, 64)
    model = apply_antialias(copy.deepcopy(original), method=method)
    parameters = {name: p.clone() for name, p in model.named_parameters()}
    done = recalibrate(model, original, [x])
    assert len(done.norms) == 20, "the method's own norms are not the original's"
    assert all(torch.equal(p, parameters[name]) for name, p in model.named_parameters())
    expected = run(model, x)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-4)
