"""Distillation: what it may change, what it must leave, and that an interruption costs nothing."""

import copy
import math

import pytest
import skimage
import timm
import torch
from torch import nn

from aa_surgery import apply_antialias, find_sites
from aa_surgery.adapt import checkpoint as checkpoint_module
from aa_surgery.adapt import distill
from aa_surgery.adapt.features import Blocks
from aa_surgery.adapt.views import Views
from aa_surgery.demo import load_efficientnet_lite0
from aa_surgery.errors import CheckpointMismatchError, InputError

MARGIN = 16
SHORT = {"batch_size": 4, "margin": MARGIN}


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Twelve normalised squares of 80 px, of three photographs."""
    squares = []
    for picture in (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()):
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1
        squares += [
            pixels[:, top : top + 80, left : left + 80] for top in (20, 140) for left in (60, 200)
        ]
    return torch.stack(squares)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return load_efficientnet_lite0()


@pytest.fixture
def model(teacher: nn.Module) -> nn.Module:
    return apply_antialias(copy.deepcopy(teacher), filter="tri-3", placement="post")


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def test_brings_the_model_nearer_to_its_original(model, teacher, photographs):
    done = distill(model, teacher, photographs, steps=8, lr=3e-4, **SHORT)
    assert done.kept
    assert done.after < 0.8 * done.before


def test_leaves_everything_but_the_parameters_as_it_was(model, teacher, photographs):
    model.train()
    model.blocks[0].eval()
    model.classifier.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    before, taught = state_of(model), state_of(teacher)
    rng = torch.get_rng_state()
    distill(model, teacher, photographs, steps=2, **SHORT)
    parameters = {name for name, _ in model.named_parameters()}
    assert changed(model, before) <= parameters
    assert not changed(teacher, taught)
    assert modes == [m.training for m in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert all(p.is_contiguous() for p in [*model.parameters(), *teacher.parameters()])
    assert torch.equal(rng, torch.get_rng_state())


def test_a_model_equal_to_its_original_keeps_its_weights(teacher, photographs):
    model = apply_antialias(copy.deepcopy(teacher), filter="identity", placement="pre")
    before = state_of(model)
    done = distill(model, teacher, photographs[:5], steps=1, lr=0.05, **SHORT)
    assert not done.kept
    assert done.after == done.before
    assert "no better" in str(done)
    assert not changed(model, before)


@pytest.mark.parametrize("train", ["norms", "treated"])
def test_trains_what_was_chosen(train, model, teacher, photographs):
    before = state_of(model)
    done = distill(model, teacher, photographs, steps=3, lr=1e-3, train=train, **SHORT)
    parts = {name.rpartition(".")[0] for name in changed(model, before)}
    kinds = {type(model.get_submodule(name)).__name__ for name in parts}
    assert done.kept
    assert kinds == ({"BatchNormAct2d"} if train == "norms" else {"AntialiasedConv2dSame"})


class Killed(Exception):
    pass


def test_an_interrupted_run_ends_at_the_same_weights(
    model, teacher, photographs, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint_module, "_SECONDS", 0.0)
    start, other = state_of(model), copy.deepcopy(model)
    options = {"steps": 4, "lr": 1e-3, "checkpoint": tmp_path / "run.pt", **SHORT}

    def kill(percent: int, seen: list[int] = []) -> None:  # noqa: B006 - counts its calls
        seen.append(percent)
        if len(seen) == 3:
            raise Killed

    with pytest.raises(Killed):
        distill(model, teacher, photographs, progress=kill, **options)
    assert not changed(model, start)
    resumed = distill(model, teacher, photographs, **options)
    unbroken = distill(other, teacher, photographs, **{**options, "checkpoint": None})
    assert resumed.steps == unbroken.steps == 4
    assert not changed(model, state_of(other))
    assert resumed.after == unbroken.after


def test_a_checkpoint_of_other_options_is_refused(model, teacher, photographs, tmp_path):
    path = tmp_path / "run.pt"
    distill(model, teacher, photographs, steps=1, checkpoint=path, **SHORT)
    before = state_of(model)
    with pytest.raises(CheckpointMismatchError, match=r"lr 0\.0002 there, 0\.001 now"):
        distill(model, teacher, photographs, steps=1, checkpoint=path, lr=1e-3, **SHORT)
    path.write_text("no checkpoint")
    with pytest.raises(InputError, match="not one of distill's"):
        distill(model, teacher, photographs, steps=1, checkpoint=path, **SHORT)
    assert not changed(model, before)


def test_divergence_of_the_loss_is_an_error_and_changes_nothing(model, teacher, photographs):
    before = state_of(model)
    with pytest.raises(InputError, match="Lower lr"):
        distill(model, teacher, photographs, steps=4, lr=math.inf, **SHORT)
    assert not changed(model, before)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "give one of the two"),
        ({"steps": 1, "minutes": 1.0}, "give one of the two"),
        ({"steps": 0}, "above 0"),
        ({"minutes": math.nan}, "above 0"),
        ({"steps": 1, "train": "head"}, "unknown"),
        ({"steps": 1, "batch_size": 0}, "at least one image"),
        ({"steps": 1, "margin": 80}, "larger than the margin"),
    ],
)
def test_unusable_arguments_are_refused(options, what, model, teacher, photographs):
    before = state_of(model)
    with pytest.raises(InputError, match=what):
        distill(model, teacher, photographs, **options)
    with pytest.raises(InputError, match="two or more"):
        distill(model, teacher, photographs[:1], steps=1)
    with pytest.raises(InputError, match="needs logits"):
        distill(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), photographs, steps=1)
    assert not changed(model, before)


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "vgg11_bn"]
)
def test_blocks_are_those_behind_the_surgery(name):
    torch.manual_seed(0)
    options = {"img_size": 64, "window_size": 2} if name.startswith("swin") else {}
    original = timm.create_model(name, num_classes=7, **options).eval()
    untreated, treated = find_sites(original)[0].name, find_sites(original)[-1].name
    model = apply_antialias(copy.deepcopy(original), filter="tri-3", include=treated)
    blocks = Blocks(model, original, torch.randn(2, 3, 64, 64))
    order = [n for n, _ in original.named_modules()]
    last_stage = treated.partition(":")[0]
    assert blocks.names
    assert untreated.partition(":")[0] not in blocks.names
    # The block that holds the site is the first that differs, or the site itself is.
    first = min(blocks.names, key=order.index)
    assert last_stage.startswith(first) or order.index(first) >= order.index(last_stage)
    with blocks.recorded() as (mine, theirs), torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        model(x), original(x)
    assert blocks.error(mine, theirs) > 0
    assert blocks.error(theirs, theirs) == 0


def test_views_are_a_function_of_seed_and_step_and_take_every_photograph():
    images = torch.arange(10.0)[:, None, None, None].expand(10, 1, 6, 6)
    views = Views(images, batch_size=4, margin=2, seed=3)
    again = Views(images, batch_size=4, margin=2, seed=3)
    for step in (7, 0, 3):
        assert all(torch.equal(a, b) for a, b in zip(views(step), again(step), strict=True))
    drawn = torch.cat([views(step)[0][:, 0, 0, 0] for step in range(5)])
    assert sorted(drawn.tolist()) == sorted([*range(10), *range(10)])
    other = Views(images, batch_size=4, margin=2, seed=4)
    assert not torch.equal(drawn[:4], other(0)[0][:, 0, 0, 0])


def test_both_views_show_the_same_photograph_the_same_way_round():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    views = Views(image, batch_size=1, margin=3)
    steps = []
    for step in range(20):
        first, second = (view[0, 0] for view in views(step))
        rising = {bool(view[0, 1] > view[0, 0]) for view in (first, second)}
        assert len(rising) == 1
        steps.append((rising.pop(), int((second - first)[0, 0])))
    assert {flip for flip, _ in steps} == {True, False}
    assert len({shift for _, shift in steps}) > 5
