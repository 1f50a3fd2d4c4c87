"""Distillation: the untouched model teaches the anti-aliased one, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from aa_surgery.adapt.budget import Budget
from aa_surgery.adapt.checkpoint import Checkpoint
from aa_surgery.adapt.features import Blocks
from aa_surgery.adapt.identity import run_identity
from aa_surgery.adapt.layout import channels_last, to_model
from aa_surgery.adapt.trained import Trained, only_trained, restore, trained_parameters
from aa_surgery.adapt.training import Training, divergence
from aa_surgery.adapt.views import Views
from aa_surgery.errors import InputError
from aa_surgery.evaluation.running import evaluating

__all__ = ["Distillation", "distill"]

_HELD_OUT = 0.2  # of the photographs: they say whether training helped


@dataclass(frozen=True)
class Distillation:
    """Say what `distill` did.

    Attributes:
        steps: Optimizer steps.
        tensors: Number of parameter tensors that were trained.
        blocks: Names of the blocks whose features were compared.
        images: Photographs trained on.
        held_out: Photographs that were held out.
        before: Mean KL divergence from the teacher on those, before, in nats.
        after: The same of the weights kept.
        kept: Whether the trained weights were better, and were kept.
        minutes: Time.
    """

    steps: int
    tensors: int
    blocks: tuple[str, ...]
    images: int
    held_out: int
    before: float
    after: float
    kept: bool
    minutes: float

    def __str__(self) -> str:
        verdict = "" if self.kept else "; no better, so the weights are those of before"
        return (
            f"{self.steps} steps on {self.images} images, {self.tensors} tensors trained, "
            f"{len(self.blocks)} blocks compared; KL to the original on {self.held_out} held-out "
            f"images {self.before:.3f} -> {self.after:.3f} nats{verdict}; {self.minutes:.1f} min"
        )


def distill(
    model: nn.Module,
    teacher: nn.Module,
    images: Sequence[Tensor] | Tensor,
    *,
    train: Trained = "all",
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 16,
    lr: float = 2e-4,
    feature_weight: float = 40.0,
    margin: int = 32,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> Distillation:
    r"""Train `model` to answer as `teacher` does, in place, on photographs without labels.

    Each step draws two crops $a, b$ of every photograph, by up to `margin` px apart, and lowers

    $$\mathrm{KL}\left(\tfrac{1}{2}(t(a) + t(b)) \,\Vert\, s(a)\right)
    + w \cdot \frac{1}{B} \sum_k \frac{\|s_k(a) - t_k(a)\|^2}{\|t_k(a) - \bar t_k(a)\|^2},$$

    $s, t$ the probabilities that the model and the teacher give, $s_k, t_k$ the maps behind each of
    the `B` blocks that the surgery has changed. As both crops have one target, what the teacher
    says of one position alone is averaged out, and the model learns what shifts leave as it is.

    Norms keep their statistics, and dropout is off; recalibrate first. A fifth of the photographs
    is held out: if the trained weights are no nearer to the teacher on those, the model gets its
    weights of before back, and the result says so.

    Args:
        model: The anti-aliased model; returns logits `(N, classes)`.
        teacher: The untouched model with the weights before surgery, on the same device.
        images: Normalised photographs `(C, H, W)` of one size, larger by `margin` than what the
            model takes; a tensor `(N, C, H, W)` is one.
        train: What is trained: `"all"`, the affine parameters of the `"norms"`, or the parameters
            of the `"treated"` modules.
        steps: Number of optimizer steps. Give this or `minutes`.
        minutes: Time to train.
        batch_size: Photographs a step.
        lr: Step size, relative to the root mean square of each parameter tensor; it grows over
            the first tenth, then falls to 0 as a half cosine.
        feature_weight: `w`. From few photographs, features teach more than answers do: with a
            weight of 1 the answers are learned by heart, and no better on other photographs.
        margin: By how much the photographs are larger than the crops, px.
        seed: Seed of the crops.
        checkpoint: A file to save to every 30 s; if it is there, the run goes on from it, to the
            same weights as an unbroken one if the budget is in steps.
        progress: Called after each step with the per cent of the budget that it used, as whole
            numbers that sum to 100.

    Returns:
        What was done; `str()` of it is one line.

    Raises:
        InputError: A budget, an image or another argument is unusable, the model does not return
            logits, or training diverged; the model is as it was.
        CheckpointMismatchError: The checkpoint is of a run with other options, weights, surgery
            or photographs.

    Source: block-wise reconstruction from few images as in post-training quantisation (Nagel et
    al. 2020, arXiv:2004.10568; Li et al. 2021, arXiv:2102.05426), all blocks at once.

    >>> import copy, torch, torchvision
    >>> from aa_surgery import apply_antialias
    >>> original = torchvision.models.resnet18().eval()
    >>> model = apply_antialias(copy.deepcopy(original))
    >>> distill(model, original, torch.rand(5, 3, 72, 72), steps=1, margin=8).steps
    1
    """
    budget = Budget(steps, minutes)
    parameters = trained_parameters(model, teacher, train)
    views, held_out = _split(images, batch_size, margin, seed)
    saved = Checkpoint(
        checkpoint,
        {"train": train, "steps": steps, "minutes": minutes, "batch_size": views.batch_size}
        | {"lr": lr, "feature_weight": feature_weight, "margin": margin, "seed": seed}
        | {"images": len(images), "tensors": list(parameters)}
        | ({} if checkpoint is None else run_identity(model, teacher, images)),
    )
    with (
        evaluating(model),
        evaluating(teacher),
        channels_last(model, teacher),
        only_trained(model, parameters) as before_weights,
    ):
        before = divergence(model, teacher, held_out)
        blocks = Blocks(model, teacher, to_model(model, views(0)[0]))
        run = Training(model, teacher, blocks, views, parameters, lr, feature_weight)
        run.train(budget, saved, progress)
        after = divergence(model, teacher, held_out)
        kept = after < before
        if not kept:
            restore(parameters, before_weights)
    return Distillation(
        steps=budget.done,
        tensors=len(parameters),
        blocks=blocks.names,
        images=len(views.images),
        held_out=len(held_out.images),
        before=before,
        after=after if kept else before,
        kept=kept,
        minutes=budget.minutes,
    )


def _split(
    images: Sequence[Tensor] | Tensor, batch_size: int, margin: int, seed: int
) -> tuple[Views, Views]:
    """Return views of the photographs to train on, and of those held out, evenly spaced."""
    if len(images) < 2:
        raise InputError(f"{len(images)} images: distill needs two or more, one is held out.")
    count = max(1, round(_HELD_OUT * len(images)))
    held = {i * len(images) // count for i in range(count)}
    parts = [[images[i] for i in range(len(images)) if (i in held) == out] for out in (False, True)]
    return Views(parts[0], batch_size, margin, seed), Views(parts[1], batch_size, margin, seed)
