"""AntialiasWarmup in plain training loops: the ramp, EMA copies, resuming, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import build
from skimage import data
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from aa_surgery import apply_antialias
from aa_surgery.adapt.warmup import AntialiasWarmup, ramp
from aa_surgery.errors import InputError, UnsupportedModelError
from aa_surgery.layers import BlurPool
from aa_surgery.layers.strength import get_strength


def photographs() -> Tensor:
    images = [torch.from_numpy(d()).movedim(-1, 0)[None].float() / 255 for d in SOURCES]
    return torch.cat([F.interpolate(x, (32, 32), mode="area") for x in images])


SOURCES = (data.chelsea, data.astronaut, data.coffee, data.rocket)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def treated() -> nn.Module:
    return apply_antialias(small_net(), filter="tri-3")


class Loop:
    """A training loop that can be saved and resumed."""

    def __init__(self, **options: Any) -> None:
        self.model = treated()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.warmup = AntialiasWarmup(self.model, **options)
        self.strengths: list[float] = []

    def run(self, steps: int) -> Loop:
        images, labels = photographs(), torch.arange(4)
        for _ in range(steps):
            self.strengths.append(get_strength(self.model))
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
            self.warmup.step()
        return self

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.model, self.optimizer, self.warmup)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_the_ramp_rises_from_start_to_exactly_1(schedule: Any, start: float) -> None:
    strengths = [ramp(done, 7, start, schedule) for done in range(12)]
    assert strengths[0] == start
    assert strengths[6:] == [1.0] * 6
    assert all(a < b for a, b in itertools.pairwise(strengths[:7]))
    assert strengths[3] == pytest.approx((1 + start) / 2)
    quarter = {"linear": 1 / 6, "cosine": (1 - math.cos(math.pi / 6)) / 2}[schedule]
    assert strengths[1] == pytest.approx(start + (1 - start) * quarter)


def test_training_sees_the_ramp_and_ends_at_the_whole_filter() -> None:
    loop = Loop(steps=5).run(7)
    assert loop.strengths == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert loop.strengths[4] == 1.0
    blurs = [m for m in loop.model.modules() if isinstance(m, BlurPool)]
    assert all(blur.taps == blur.full_taps for blur in blurs)


def test_the_first_step_is_done_by_the_untouched_network() -> None:
    untouched, model, x = build("resnet18"), build("resnet18"), photographs()
    AntialiasWarmup(apply_antialias(model, filter="tri-3"), steps=10)
    with torch.no_grad():
        torch.testing.assert_close(model(x), untouched(x), rtol=1e-4, atol=1e-4)


def test_a_warmup_of_one_step_is_whole_at_once() -> None:
    assert Loop(steps=1).warmup.strength == 1.0


def test_copies_are_set_with_the_model() -> None:
    model = treated()
    ema = ModelEmaV3(model)
    warmup = AntialiasWarmup(model, steps=4, start=0.1, also=[ema])
    for expected in (0.1, 0.4, 0.7, 1.0):
        for part in (model, ema.module):
            assert get_strength(part) == pytest.approx(expected)
        warmup.step()


@pytest.mark.parametrize("killed_at", [0, 3, 9])
def test_a_resumed_loop_is_bit_equal_to_an_unbroken_one(killed_at: int) -> None:
    options: dict[str, Any] = dict(steps=6, start=0.2, schedule="cosine")
    whole = Loop(**options).run(12)
    broken = Loop(**options).run(killed_at)
    saved = [part.state_dict() for part in broken.parts]
    saved[2] = json.loads(json.dumps(saved[2]))  # plain values
    resumed = Loop(steps=99)
    for part, state in zip(resumed.parts, saved, strict=True):
        part.load_state_dict(state)
    assert get_strength(resumed.model) == get_strength(broken.model)
    resumed.run(12 - killed_at)
    assert whole.strengths == broken.strengths + resumed.strengths
    states = (loop.model.state_dict().values() for loop in (whole, resumed))
    assert all(map(torch.equal, *states))


def test_a_foreign_state_is_refused_and_changes_nothing() -> None:
    loop = Loop(steps=4).run(1)
    with pytest.raises(InputError, match=r"'last_epoch'.*AntialiasWarmup\.state_dict"):
        loop.warmup.load_state_dict({"last_epoch": 3})
    assert loop.warmup.done == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=0), "whole number"),
        (dict(steps=2.5), "whole number"),
        (dict(steps=2, start=-0.1), "start"),
        (dict(steps=2, start=float("nan")), "start"),
        (dict(steps=2, schedule="steps"), "'linear' or 'cosine'"),
    ],
)
def test_wrong_warmups_are_refused(options: dict[str, Any], message: str) -> None:
    model = treated()
    with pytest.raises(InputError, match=message):
        AntialiasWarmup(model, **options)
    assert get_strength(model) == 1


def test_a_copy_without_blurs_is_refused_before_any_strength_is_set() -> None:
    model = treated()
    with pytest.raises(UnsupportedModelError, match=r"no blur to strengthen.*apply_antialias"):
        AntialiasWarmup(model, steps=3, also=[small_net()])
    assert get_strength(model) == 1
