"""The identity law of one architecture: with the one-tap filter, the outputs are the original's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.errors import NoEffectWarning
from aa_surgery.surgery import apply_antialias, plan_antialias, remove_antialias
from aa_surgery.sweep.build import build, default_size, inputs, run
from aa_surgery.sweep.catalogue import Subject

__all__ = ["LIMIT", "TOLERANCE", "Identity", "identity_law", "settle", "spread"]

LIMIT = 60_000_000
"""Parameters above which an architecture is not run."""

TOLERANCE = {"float64": 1e-6, "float32": 1e-3}
"""Largest difference of two outputs, relative to the largest value."""

Size = tuple[int, int, int]
"""Channels, height and width, px."""

_SIZES = (32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
_ODD = (1, 3, 11)  # added to the even size, which stands for itself
_SILENT = 1e-9


@dataclass
class Identity:
    """What was run.

    Attributes:
        parameters: How many the model has.
        dtype: In which it was run: float64, or float32 where the model takes nothing else.
        runs: `"placement at size"` of each comparison.
        error_below: A power of ten above the largest relative difference seen; 0 for none.
        broken: `"placement at size: what"` of each comparison beyond `TOLERANCE`.
        not_run: Why nothing, or not everything, was run.
    """

    parameters: int = 0
    dtype: str = "float64"
    runs: list[str] = field(default_factory=list)
    error_below: float = 0.0
    broken: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


def identity_law(subject: Subject) -> Identity:
    """Compare one architecture with itself under `filter="identity"`, in float64.

    Placement `"auto"` at the smallest even size that the model accepts and at an odd one;
    `"post"`, in which most ops are dense, at the odd one where there is one.

    Raises:
        Exception: Whatever the untouched model or the surgery raises.
    """
    found = Identity()
    template = build(subject)
    found.parameters = sum(p.numel() for p in template.parameters())
    if found.parameters > LIMIT:
        found.not_run.append(f"more than {LIMIT / 1e6:g} M parameters")
        return found
    if not plan_antialias(template, max_stride=None).edits:
        found.not_run.append("nothing to treat")
        return found
    options, sizes = _smallest(subject, template)
    if len(sizes) == 1:
        found.not_run.append(
            "odd size: the detector resizes its images itself"
            if subject.takes == "detection"
            else "odd size: not accepted"
        )
    try:
        _compare_all(subject, options, sizes, torch.float64, found)
    except _NoDoubleError:
        found.dtype = "float32"
        _compare_all(subject, options, sizes, torch.float32, found)
    return found


class _NoDoubleError(Exception):
    """The untouched model does not run in float64."""


def _compare_all(
    subject: Subject,
    options: dict[str, Any],
    sizes: list[Size],
    dtype: torch.dtype,
    found: Identity,
) -> None:
    """Build the model with values, and compare it with itself at each size."""
    model = build(subject, "cpu", **options).to(dtype)
    spread(model)
    try:
        batch = inputs(subject, sizes[0], batch=4, device="cpu", dtype=dtype)
        settle(model, lambda: run(model, batch))
        if _is_silent(model, subject, sizes[0], dtype):
            found.not_run.append("the output says nothing of the input")
            return
    except RuntimeError as error:
        told = any(word in str(error) for word in ("Double", "double", "dtype"))
        if dtype == torch.float64 and told:
            raise _NoDoubleError from error
        raise
    for size in sizes:
        arguments = inputs(subject, size, device="cpu", dtype=dtype)
        expected = _run_again(model, arguments)
        for placement in ("auto", "post") if size == sizes[-1] else ("auto",):
            _compare(model, arguments, expected, placement, f"{placement} at {_px(size)}", found)


def _compare(
    model: nn.Module,
    arguments: tuple[Any, ...],
    expected: dict[str, Tensor],
    placement: str,
    label: str,
    found: Identity,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        apply_antialias(model, filter="identity", placement=placement, max_stride=None)
    try:
        result = _run_again(model, arguments)
    finally:
        remove_antialias(model)
    found.runs.append(label)
    error = _error(result, expected)
    if not error <= TOLERANCE[found.dtype]:
        found.broken.append(f"{label}: relative error {error:.0e}")
    elif error > 0:
        found.error_below = max(found.error_below, 10.0 ** math.ceil(math.log10(error)))


def _run_again(model: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
    """Run the forward, and give the buffers back that it writes (MoCo's queue)."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    result = run(model, arguments)
    for buffer, value in saved:
        buffer.copy_(value)
    return result


def _error(result: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative difference; infinite where a shape differs."""
    worst = 0.0
    for place, reference in expected.items():
        got = result.get(place)
        if got is None or got.shape != reference.shape:
            return math.inf
        if reference.numel() and reference.is_floating_point():
            scale = float(reference.abs().max()) or 1.0
            error = float((got - reference).abs().max()) / scale
            worst = max(worst, error) if error == error else math.inf
    return worst


def _is_silent(model: nn.Module, subject: Subject, size: Size, dtype: torch.dtype) -> bool:
    """Return whether two images have the same output, so that no law could be told from it."""
    first, second = (
        _run_again(model, inputs(subject, size, device="cpu", dtype=dtype, seed=seed))
        for seed in (0, 1)
    )
    return _error(second, first) <= _SILENT


def _smallest(subject: Subject, template: nn.Module) -> tuple[dict[str, Any], list[Size]]:
    """Return how to build the model, and the smallest even size that it accepts, and an odd one."""
    default = default_size(subject, template)
    if subject.takes == "detection":
        return {}, [default]
    channels = default[0]
    for options, model, side in _candidates(subject, template, default):
        if _accepts(subject, model, (channels, side, side)):
            odd = [(channels, side + d, side + d) for d in _ODD]
            accepted = next((o for o in odd if _accepts(subject, model, o)), None)
            return options, [(channels, side, side), *([accepted] if accepted else [])]
    return {}, [default]


def _candidates(
    subject: Subject, template: nn.Module, default: Size
) -> Iterator[tuple[dict[str, Any], nn.Module, int]]:
    """Yield options, a meta model made with them, and a size to try it at."""
    smaller = [s for s in _SIZES if s < max(default[1:])]
    for side in smaller:
        yield {}, template, side
    if subject.source not in ("timm", "mmpretrain"):
        return
    for side in smaller:
        options: dict[str, Any] = {"img_size": side}
        try:
            model = build(subject, **options)
        except TypeError:
            return  # no such argument
        # A window, patch or table that does not divide this size; the next may do.
        except (AssertionError, RuntimeError, ValueError, ZeroDivisionError):
            continue
        yield options, model, side


def _accepts(subject: Subject, model: nn.Module, size: Size) -> bool:
    """Return whether the forward runs on the meta device at that size."""
    try:
        run(model, inputs(subject, size))
    # A model may answer a wrong size with any error.
    except Exception:
        return False
    return True


def _px(size: Size) -> str:
    return f"{size[1]} px" if size[1] == size[2] else f"{size[1]}x{size[2]} px"


def spread(model: nn.Module) -> None:
    """Give constant parameters values, so that no path of the net is silent.

    Norms and layer scales start at 1, 1e-6 or 0, some last layers of a block at 0.
    """
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        data = parameter.data
        if not data.numel() or bool((data != data.flatten()[0]).any()):
            continue
        noise = torch.rand(data.shape, generator=generator, dtype=torch.float64)
        if data.ndim > 1 and data.numel() > 4 * max(data.shape):
            fan_in = data[0].numel()
            values = (noise - 0.5) * math.sqrt(12 / fan_in)
        else:
            values = noise + 0.5 if bool((data > 0).any()) else noise - 0.5
        data.copy_(values)


def settle(model: nn.Module, forward: Callable[[], object]) -> None:
    """Give batch norms the statistics of what `forward` runs.

    With the mean 0 and variance 1 of a new net, the activations of deep nets grow until rounding
    errors grow with them, or die out.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        forward()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
