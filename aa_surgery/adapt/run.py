"""The whole adaptation: surgery, recalibration, distillation, measured after each step."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.adapt.distill import distill
from aa_surgery.adapt.layout import channels_last
from aa_surgery.adapt.measure import Measured, measure
from aa_surgery.adapt.recalibrate import recalibrate
from aa_surgery.errors import InputError, UnsupportedModelError
from aa_surgery.evaluation import ImageFiles, Preprocess, iterate_batches, preprocess_of
from aa_surgery.evaluation.pairs import MARGIN
from aa_surgery.evaluation.shifts import centre
from aa_surgery.reports import progress_bar
from aa_surgery.surgery import Plan, apply_antialias, plan_antialias

__all__ = ["STEPS", "Adaptation", "Step", "adapt_model"]

STEPS = ("original", "surgery", "recalibrated", "distilled")
_BATCH = 25  # the maps of larger ones cost page faults
_HEAD = f"{'':12}  {'as the original %':>17}  {'top-1 %':>7}  {'consistency % (95 %)':>21}  minutes"


@dataclass(frozen=True)
class Step:
    """Hold what one step made of the model.

    Attributes:
        name: One of `STEPS`.
        measured: On the photographs that were not adapted on.
        minutes: Time of the step, without that of measuring.
        note: What it did, in words; empty where there is nothing to say.
    """

    name: str
    measured: Measured
    minutes: float
    note: str = ""

    def __str__(self) -> str:
        result, kept = self.measured.consistency, self.measured.agreement
        low, high = result.interval
        top1 = "" if result.top1 is None else f"{result.top1:.1f}"
        row = (
            f"{self.name:12}  {'' if kept is None else f'{kept:.1f}':>17}  {top1:>7}  "
            f"{f'{result.consistency:.1f} ({low:.1f} to {high:.1f})':>21}  {self.minutes:7.1f}"
        )
        return f"{row}\n  {self.note}" if self.note else row

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return {
            "name": self.name,
            **self.measured.to_dict(),
            "minutes": self.minutes,
            "note": self.note,
        }


@dataclass(frozen=True)
class Adaptation:
    """Hold an adaptation, step by step; `str()` of it is a table.

    Attributes:
        adapted_on: Number of photographs that the model was adapted on.
        steps: What was measured, the untouched model first.
    """

    adapted_on: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join([_HEAD, *map(str, self.steps)])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return {"adapted_on": self.adapted_on, "steps": [step.to_dict() for step in self.steps]}


def adapt_model(
    model: nn.Module,
    images: ImageFiles,
    *,
    plan: Plan | None = None,
    distilling: Mapping[str, Any] | None = None,
    adapt_images: int = 250,
    size: int = 224,
    passes: int = 1,
    seed: int = 0,
    known: Mapping[str, Measured] | None = None,
    say: Callable[[str], object] | None = None,
) -> Adaptation:
    """Anti-alias a pretrained classifier in place and adapt it, without labels.

    Some of the photographs are adapted on, and the others measured on: after the surgery, after
    `recalibrate`, and after `distill`.

    Args:
        model: The untouched model, with its trained weights. It is left in eval mode.
        images: Photographs; those that cannot be read are left out, with one warning.
        plan: What the surgery does; the default filter and placement without.
        distilling: Keywords of `distill`, `steps` or `minutes` among them; None for no
            distillation.
        adapt_images: Photographs to adapt on; at most half of them are taken.
        size: Side of the views that the model is made for, px.
        passes: Pairs of views an image in the measurements.
        seed: Of the views and of the training.
        known: Measurements by step that were made before with the same options and photographs;
            they are not repeated.
        say: Gets each line as soon as it is known.

    Returns:
        What was measured; `str()` of it is a table.

    Raises:
        InputError: There are fewer than two readable photographs, or an option is wrong.

    Example: `adapt_model(model, ImageFiles("photographs.zip"), distilling={"minutes": 5})`
    """
    job = _Job(model.eval(), images, adapt_images, size, passes, seed, known or {}, say)
    job.introduce()
    original = copy.deepcopy(model)
    with channels_last(original, model):
        job.step("original", original, lambda: "")
        chosen = plan if plan is not None else plan_antialias(model)
        job.step("surgery", model, lambda: _operate(model, chosen))
        squares = job.squares()
        job.step("recalibrated", model, lambda: _recalibrate(model, original, squares, size))
        if distilling is not None:
            options = {"seed": seed, **distilling}
            job.step("distilled", model, lambda: _distill(model, original, squares, options))
    return Adaptation(len(job.mine), tuple(job.steps))


class _Job:
    """The photographs of both kinds, and the measurements that were made."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageFiles,
        adapt_images: int,
        size: int,
        passes: int,
        seed: int,
        known: Mapping[str, Measured],
        say: Callable[[str], object] | None,
    ) -> None:
        files = images.readable()
        if len(files) < 2:
            raise InputError(
                f"{files.path}: one image. Give at least two, to adapt on one and measure on the "
                "other; a few hundred are needed for a result that means something."
            )
        if adapt_images < 1:
            raise InputError(f"adapt_images {adapt_images}: at least one is needed.")
        self.mine, self.others = files.split(min(adapt_images, len(files) // 2))
        self.labelled = _name_classes_of(model, files)
        self.preprocess: Preprocess = preprocess_of(model, size, MARGIN)
        self.size, self.passes, self.seed = size, passes, seed
        self.known, self.say = known, say
        self.steps: list[Step] = []

    def introduce(self) -> None:
        """Say what is measured, and the table's head."""
        if self.say is not None:
            self.say(
                f"{len(self.mine)} photographs to adapt on, {len(self.others)} others to measure on"
            )
            self.say(_HEAD)

    def step(self, name: str, model: nn.Module, work: Callable[[], str]) -> None:
        """Do the work of a step, and measure what has become of the model."""
        start = time.perf_counter()
        note = work()
        minutes = (time.perf_counter() - start) / 60
        measured = self.known.get(name) or self._measured(name, model)
        done = Step(name, measured, minutes, note)
        self.steps.append(done)
        if self.say is not None:
            self.say(str(done))

    def squares(self) -> Tensor:
        """Return the photographs to adapt on, `(N, 3, size + margin, size + margin)`."""
        side = self.size + MARGIN
        squares = torch.empty(len(self.mine), len(self.preprocess.mean), side, side)
        for batch, _, indices in iterate_batches(self.mine, self.preprocess, _BATCH):
            squares[indices] = batch
        return squares

    def _measured(self, name: str, model: nn.Module) -> Measured:
        reference = self.steps[0].measured.predicted if self.steps else None
        batches = (
            (images, labels if self.labelled else None, indices)
            for images, labels, indices in iterate_batches(self.others, self.preprocess, _BATCH)
        )
        with progress_bar(f"measuring: {name}", len(self.others)) as advance:
            return measure(
                model,
                batches,
                reference,
                size=self.size,
                passes=self.passes,
                seed=self.seed,
                progress=advance,
            )


def _name_classes_of(model: nn.Module, files: ImageFiles) -> bool:
    """Tell whether the folders name the model's classes: by number, or one folder for each."""
    if files.label_source != "folder order":
        return files.label_source != "none"
    return len(set(files.labels)) == getattr(model, "num_classes", None)


def _operate(model: nn.Module, plan: Plan) -> str:
    apply_antialias(model, plan=plan)
    return ""


def _recalibrate(model: nn.Module, original: nn.Module, squares: Tensor, size: int) -> str:
    views = centre(squares, size)
    with progress_bar("recalibrating", len(views)) as advance:
        try:
            return str(recalibrate(model, original, views.split(_BATCH), progress=advance))
        except UnsupportedModelError as error:  # the model is as it was, and can be distilled
            warnings.warn(f"not recalibrated: {error}", stacklevel=2)
            return "not recalibrated"


def _distill(
    model: nn.Module, original: nn.Module, squares: Tensor, options: Mapping[str, Any]
) -> str:
    with progress_bar("distilling", 100) as advance:
        done = distill(model, original, squares, margin=MARGIN, progress=advance, **options)
    return str(done)
