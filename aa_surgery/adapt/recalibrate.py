"""Paired correction of a model's normalisations: what the surgery changed is taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from aa_surgery.adapt.matching import Match, Pair
from aa_surgery.adapt.norms import find_norms
from aa_surgery.errors import InputError, UnsupportedModelError
from aa_surgery.evaluation.running import device_of, evaluating

__all__ = ["Recalibration", "recalibrate"]


@dataclass(frozen=True)
class Recalibration:
    """Say what `recalibrate` corrected.

    Attributes:
        norms: Names of the norms that were looked at, in the model's order.
        corrected: Those of them whose outputs had changed, and now match.
        kinds: Classes of the norms looked at.
        largest_shift: Of a channel's mean over all norms, in standard deviations of that channel
            in the original.
        worst: The norm where it was; empty if nothing had changed.
        images: Number of images.
    """

    norms: tuple[str, ...]
    corrected: tuple[str, ...]
    kinds: tuple[str, ...]
    largest_shift: float
    worst: str
    images: int

    def __str__(self) -> str:
        where = f", mean shifts up to {self.largest_shift:.2f} std ({self.worst})"
        return (
            f"{len(self.corrected)} of {len(self.norms)} norms ({', '.join(self.kinds)}) corrected "
            f"on {self.images} images{where if self.corrected else ''}"
        )


def recalibrate(
    model: nn.Module,
    original: nn.Module,
    images: Iterable[Tensor | Sequence[Any]],
    *,
    progress: Callable[[int], object] | None = None,
) -> Recalibration:
    r"""Move the normalisations of `model` by what the surgery changed, in place.

    Blurs take energy out of the maps, and the statistics that a batch norm has stored fit them no
    longer. Both models see the same images in eval mode. At each norm, $m, v$ and $m_o, v_o$ are
    the mean and variance of a channel of its output in `model` and in the original; the norm of
    `model` then does what it did, followed by

    $$y \leftarrow s\,(y - m) + m_o, \qquad s^2 = (v_o + \delta) / (v + \delta),$$

    $s$ within 1/4..4, $\delta$ a thousandth of the norm's mean $v_o$, so that a silent channel
    stays silent. A norm with running statistics (batch norm of every kind) takes that into its
    `running_mean` and `running_var`, no parameter is touched; a layer or group norm into its
    weight and bias. All else is left as it was. Norms that the surgery did not reach have equal
    outputs in both, so they stay bit-equal.

    The norms are matched one behind the other in a single pass: while the statistics of a norm are
    taken, those before it are matched already, by the images seen so far. That needs no second
    pass over `images`, and with all images in one batch is the exact sequential solution. To
    correct all norms at once, by statistics of the model as it came, does not work: each
    correction changes what the next norm gets. Nor do means alone, or a least-squares scale, which
    lets the maps fade from norm to norm.

    On several devices give every process the same images, or recalibrate before wrapping.

    Args:
        model: The anti-aliased model; corrected in place.
        original: The untouched model with the same weights, its norms named alike.
        images: Normalised batches `(N, C, H, W)`, or tuples that begin with one, as
            `iterate_batches` yields them. No labels needed; a few hundred images are
            enough, a handful is too few for the last maps.
        progress: Called with the number of images after each batch.

    Returns:
        What was corrected; `str()` of it is one line.

    Raises:
        InputError: No image came, or a batch is no tensor.
        UnsupportedModelError: There is nothing to correct, or the norms of the two models differ
            in name, kind, size or use. The model is untouched, as it is by any other error.

    Source: the bias correction of quantised networks (Nagel et al. 2019, arXiv:1906.04721,
    appendix D), which moves means alone, extended to variances.

    >>> import copy, torchvision
    >>> from aa_surgery import apply_antialias
    >>> original = torchvision.models.resnet18().eval()
    >>> model = apply_antialias(copy.deepcopy(original), filter="tri-3")
    >>> done = recalibrate(model, original, [torch.rand(4, 3, 64, 64)])
    >>> len(done.norms), done.kinds
    (20, ('BatchNorm2d',))
    """
    model, original = _eager(model), _eager(original)
    pairs = _pairs(model, original)
    seen = 0
    with torch.no_grad(), evaluating(original), evaluating(model), ExitStack() as hooks:
        for pair in pairs:
            hooks.enter_context(pair.theirs.tap(pair.watch))
            hooks.enter_context(pair.mine.tap(pair.match))
        for batch in images:
            x = _images_of(batch)
            for pair in pairs:
                pair.begin()
            original(x.to(device_of(original)))
            model(x.to(device_of(model)))
            seen += len(x)
            if progress is not None:
                progress(len(x))
        if not seen:
            raise InputError(
                "no image to recalibrate on: `images` is empty. Give one batch or more."
            )
        ran = [pair for pair in pairs if pair.ran()]
        if not ran:
            raise UnsupportedModelError(
                f"{type(model).__name__}: none of its {len(pairs)} norms ran. Give the eager "
                "model, not a scripted one."
            )
        matches = [pair.total() for pair in ran]  # all of them, before the first is absorbed
        for pair, match in zip(ran, matches, strict=True):
            pair.mine.absorb(match.scale, match.shift)
    return _summary(ran, matches, seen)


def _eager(model: nn.Module) -> nn.Module:
    """Return the module inside of data-parallel and compiling wrappers."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return _eager(model.module)
    compiled = getattr(model, "_orig_mod", None)  # of torch.compile
    return _eager(compiled) if isinstance(compiled, nn.Module) else model


def _pairs(model: nn.Module, original: nn.Module) -> list[Pair]:
    mine, theirs = find_norms(model), find_norms(original)
    name = type(model).__name__
    if not mine and not theirs:
        raise UnsupportedModelError(
            f"{name} has nothing to recalibrate: no norm with running statistics, and no layer or "
            "group norm with weight and bias. Distill it instead."
        )
    lone = sorted(mine.keys() ^ theirs.keys())
    if lone:
        where = "the model" if lone[0] in mine else "the original"
        raise UnsupportedModelError(
            f"{name} and its original differ in {len(lone)} norms; {lone[0]} is in {where} alone. "
            "Give the untouched model of the same architecture; if norms were fused into "
            "convolutions, recalibrate before fusing."
        )
    for key, norm in mine.items():
        other = theirs[key]
        if type(norm) is not type(other) or norm.shape != other.shape:
            raise UnsupportedModelError(
                f"{key}: {type(norm.module).__name__} of {norm.shape} channels in the model, "
                f"{type(other.module).__name__} of {other.shape} in the original. "
                "Give the untouched model of the same architecture."
            )
    return [Pair(norm, theirs[key]) for key, norm in mine.items()]


def _images_of(batch: Tensor | Sequence[Any]) -> Tensor:
    images = batch if isinstance(batch, Tensor) else next(iter(batch), None)
    if not isinstance(images, Tensor) or images.ndim < 2:
        raise InputError(
            f"a batch of type {type(batch).__name__}: give images (N, C, H, W), or a tuple that "
            "begins with them."
        )
    return images


def _summary(pairs: Sequence[Pair], matches: Sequence[Match], images: int) -> Recalibration:
    changed = [(pair, match) for pair, match in zip(pairs, matches, strict=True) if match.changes]
    worst = max(changed, key=lambda item: item[1].drift, default=None)
    return Recalibration(
        norms=tuple(pair.mine.name for pair in pairs),
        corrected=tuple(pair.mine.name for pair, _ in changed),
        kinds=tuple(sorted({type(pair.theirs.module).__name__ for pair in pairs})),
        largest_shift=worst[1].drift if worst else 0.0,
        worst=worst[0].mine.name if worst else "",
        images=images,
    )
