"""The laws of docs/design.md, over real architectures."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import MODELS, build
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, find_sites, plan_antialias, remove_antialias
from aa_surgery.layers import BlurPool


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, build(request.param)


def image(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def attributes(model: nn.Module) -> dict[str, object]:
    """Everything that surgery must leave, by the identity of objects where that matters."""
    seen: dict[str, object] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if "aa_" in name.rpartition(".")[2] or ".aa_" in name:
            continue
        seen[name] = (id(module), module.training, len(module._forward_hooks))
        for key, value in vars(module).items():
            if isinstance(value, (bool, int, float, str, tuple)):
                seen[f"{name}!{key}"] = value
    for name, parameter in model.named_parameters():
        seen[f"{name}@"] = (id(parameter), parameter.requires_grad, parameter.dtype)
    return seen


@pytest.mark.parametrize("placement", ["auto", "pre", "post"])
def test_identity_filter_changes_nothing(case: tuple[str, nn.Module], placement: str) -> None:
    name, model = case
    model = model.double()
    try:
        for size in MODELS[name].sizes:
            x = image(size, torch.float64)
            expected = run(model, x)
            apply_antialias(model, filter="identity", placement=placement, max_stride=None)
            assert any(isinstance(m, BlurPool) for m in model.modules())
            torch.testing.assert_close(run(model, x), expected, rtol=1e-9, atol=1e-9)
            remove_antialias(model)
    finally:
        model.float()


def test_shapes_keys_and_self_are_kept_and_undo_is_exact(case: tuple[str, nn.Module]) -> None:
    name, model = case
    before, state = attributes(model), {k: v.clone() for k, v in model.state_dict().items()}
    expected = {size: run(model, image(size)) for size in MODELS[name].sizes}
    cls, modules = type(model), dict(model.named_modules())

    assert apply_antialias(model, max_stride=None) is model
    assert isinstance(model, cls)
    assert all(isinstance(model.get_submodule(n), type(m)) for n, m in modules.items())
    assert attributes(model) == before
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[k], state[k]) for k in state)
    model.load_state_dict(state, strict=True)
    for size, output in expected.items():
        blurred = run(model, image(size))
        assert blurred.shape == output.shape
        assert not torch.allclose(blurred, output, rtol=1e-2, atol=0)

    remove_antialias(model)
    assert attributes(model) == before
    assert {n: type(m) for n, m in model.named_modules()} == {
        n: type(m) for n, m in modules.items()
    }
    assert not hasattr(model, "_antialias_plan")
    for size, output in expected.items():
        assert torch.equal(run(model, image(size)), output)


def test_audit_finds_nothing_that_the_plan_does_not_name(case: tuple[str, nn.Module]) -> None:
    name, model = case
    x = image(MODELS[name].sizes[-1])
    plan = plan_antialias(model)
    before = audit(model, x)
    apply_antialias(model, plan=plan)
    report = audit(model, x)
    remove_antialias(model)
    assert report.untreated == (), str(report)
    assert before.untreated, "the untouched model must have something to treat"
    named = {item.site.name for item in plan.left}
    assert len(report.left) <= len(named)


def test_audit_sees_through_the_identity_filter(case: tuple[str, nn.Module]) -> None:
    name, model = case
    x = image(MODELS[name].sizes[-1])
    untouched = {row.name.split(".aa_")[0] for row in audit(model, x).untreated}
    apply_antialias(model, filter="identity", max_stride=None)
    assert len(audit(model, x).untreated) >= len(untouched) / 2
    remove_antialias(model)


def test_twice_does_nothing_and_says_so(case: tuple[str, nn.Module]) -> None:
    name, model = case
    apply_antialias(model)
    expected = run(model, image(MODELS[name].sizes[0]))
    with pytest.warns(UserWarning, match="anti-aliased already"):
        apply_antialias(model, filter="binomial-5")
    assert torch.equal(run(model, image(MODELS[name].sizes[0])), expected)
    remove_antialias(model)


def test_a_failure_leaves_the_model_untouched(
    case: tuple[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model = case
    before = {n: type(m) for n, m in model.named_modules()}
    expected = run(model, image(MODELS[name].sizes[0]))
    edits = len(plan_antialias(model).edits)
    made = 0
    original = BlurPool.train

    def failing(self: BlurPool, mode: bool = True) -> BlurPool:
        nonlocal made
        made += 1
        if made >= edits:
            raise RuntimeError("injected")
        return original(self, mode)

    monkeypatch.setattr(BlurPool, "train", failing)
    with pytest.raises(RuntimeError, match="injected"):
        apply_antialias(model)
    assert {n: type(m) for n, m in model.named_modules()} == before
    assert torch.equal(run(model, image(MODELS[name].sizes[0])), expected)


def test_a_saved_plan_does_the_same(case: tuple[str, nn.Module], tmp_path) -> None:
    name, model = case
    plan = plan_antialias(model, filter="halfband-7", overrides={find_sites(model)[0].name: False})
    plan.save(tmp_path / "plan.json")
    x = image(MODELS[name].sizes[0])
    apply_antialias(model, plan=plan)
    expected = run(model, x)
    remove_antialias(model)
    apply_antialias(model, plan=type(plan).load(tmp_path / "plan.json"))
    assert torch.equal(run(model, x), expected)
    remove_antialias(model)


def test_training_step_reaches_every_parameter_that_it_reached(
    case: tuple[str, nn.Module],
) -> None:
    name, model = case

    def reached() -> set[str]:
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(image(MODELS[name].sizes[0])).square().mean().backward()
        return {n for n, p in model.named_parameters() if p.grad is not None}

    expected = reached()
    apply_antialias(model)
    assert reached() == expected
    model.zero_grad()
    remove_antialias(model)
