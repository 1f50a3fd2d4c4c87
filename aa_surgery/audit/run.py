"""Run a model once and report every op that lowers its spatial sampling rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.audit.events import Event, Events
from aa_surgery.audit.inputs import copied, tensors_in
from aa_surgery.audit.observer import Observer
from aa_surgery.audit.report import AuditReport, AuditRow, Verdict
from aa_surgery.audit.scopes import Scopes
from aa_surgery.errors import InputError, SurgeryError, UnsupportedModelError
from aa_surgery.layers import canonical_form
from aa_surgery.treated import lost_halves

__all__ = ["audit"]

_WORST: tuple[Verdict, ...] = ("treated", "left", "untreated")


def audit(model: nn.Module, *inputs: Any, plan: object | None = None, **kwargs: Any) -> AuditReport:
    """Run `model` once and say of every op that lowers the sampling rate whether it is filtered.

    Judges what ran, at the level of ATen ops, and knows nothing of how sites are found or
    rewritten. A sampling op is treated where a low-pass filter stands with it: a depthwise
    convolution without bias, of one kernel of sum 1 for all channels, whose gain at every frequency
    that the stride folds onto zero is at most 0.5. Either the op is that convolution, or such
    convolutions of stride 1 come before it with nothing but moves of values between (views, pads,
    slices, casts). `F.interpolate(antialias=True)` counts as filtered, an average pool alone not.

    Global pools (to one sample an axis) sample nothing. Only tensors that descend from the inputs
    count: resized position tables do not. Whatever moves samples is read by what it does to the
    positions: a space-to-depth, every second row of `unbind()` stacked again, `gather` and
    `x[:, :, index]` with a regular step are sampling; strided slices of channels (rotary
    embeddings), window partitions, and patches that are folded back are not. Overlapping windows
    (`Tensor.unfold`, `nn.Unfold`) count where their samples become channels. What an index without
    a regular step drops is listed in `AuditReport.unread`, not judged; what the content chooses
    (top-k, masks) is no sampling. Where integers or booleans are sampled the verdict is `"left"`.

    A model whose treatment is half gone (the activation that carried the blur was replaced) stops
    with an error of this package: the report has the rows until then, and the reason in `broken`.

    The run is in eval mode without gradients on copies of the inputs; training flags, buffers and
    the CPU's random state are put back. Other threads go on as if there were no audit. On the meta
    device, where a kernel has no values, it is read from the `taps` attribute of the module that
    runs the convolution, and no index is read.

    Args:
        model: Any module whose forward runs eagerly; a compiled or data-parallel one is audited
            inside its wrapper.
        inputs: What its forward takes: tensors, or anything that has tensors in it. Those of three
            axes or more are maps `(N, C, *spatial)`, or `(N, H, W, C)` of colours; integers of two
            or three axes ids `(N, L)` or labels `(N, H, W)`.
        plan: A plan whose `left` entries (`.site.name`, `.reason`) excuse untreated ops, and whose
            `unread` entries (`.scope`, `.reason`) those of forwards that could not be traced; by
            default the plan that the model carries.
        kwargs: Keyword arguments of its forward.

    Returns:
        The report; `print` shows it as a table.

    Raises:
        UnsupportedModelError: `model` is not a module, or is scripted.
        InputError: No tensors were given, or the model's forward fails on them.

    >>> print(audit(nn.Conv2d(3, 8, 3, stride=2), torch.ones(1, 3, 9, 9)).rows[0].verdict)
    untreated
    """
    inner = _unwrapped(model)
    if not inputs and not kwargs:
        raise InputError(
            "audit: no inputs. The audit runs the model once: pass what its forward takes, "
            "e.g. audit(model, torch.randn(1, 3, 224, 224))."
        )
    plan = getattr(inner, "_antialias_plan", None) if plan is None else plan
    lost = lost_halves(inner)
    if lost:
        return AuditReport((), (), tuple(half.describe() for _, half in lost))
    events, broken = _observed(inner, inputs, kwargs)
    return AuditReport(_rows(events.found, _reasons(plan)), tuple(events.unread), broken)


def _observed(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Events, tuple[str, ...]]:
    """Run the model once, on copies of its inputs, under an observer.

    Returns:
        What ran, and why it went no further: what a treatment that is half gone says.
    """
    scopes = Scopes(model)
    observer = Observer(scopes)
    with _preserved(model), torch.no_grad(), canonical_form(), scopes.followed():
        inputs, kwargs = copied((inputs, kwargs))
        tensors = tensors_in((inputs, kwargs))
        _check_tensors(tensors)
        for x in tensors:
            observer.seed(x)
        try:
            with torch.compiler.set_stance("force_eager"), observer:
                outputs = model(*inputs, **kwargs)
        except Exception as error:
            if isinstance(error, SurgeryError) and not isinstance(error, InputError):
                return observer.events, (str(error),)
            raise InputError(
                f"audit: the forward of {type(model).__name__} fails on inputs of shape "
                f"{[tuple(x.shape) for x in tensors]}: {type(error).__name__}: {error}. "
                "Pass what the model accepts, on its device and in its dtype."
            ) from error
        observer.finish(tensors_in(outputs))
    return observer.events, ()


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise InputError(
            "audit: no tensor in the inputs. The audit follows what becomes of tensors: convert "
            "arrays and pictures before, e.g. audit(model, torch.randn(1, 3, 224, 224))."
        )


def _unwrapped(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"audit: expected an nn.Module, got {type(model).__name__}. Pass the model itself."
        )
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = inner.module
    for name, module in inner.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"audit: {name or 'the model'} is a {type(module).__name__}, in which no op can be "
                "traced to its module. Audit the model before torch.jit.script or torch.jit.trace."
            )
    return inner


@contextmanager
def _preserved(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode; put back training flags, buffers and the random state."""
    modules = list(model.modules())
    training = [m.training for m in modules]
    buffers = [dict(m._buffers) for m in modules]
    values = [(b, b.detach().clone()) for d in buffers for b in d.values() if b is not None]
    versions = [_version(b) for b, _ in values]
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for (buffer, value), version in zip(values, versions, strict=True):
            if version is None or _version(buffer) != version:
                with torch.no_grad():
                    buffer.copy_(value)
        for module, flag, saved in zip(modules, training, buffers, strict=True):
            module.training = flag
            module._buffers.clear()
            module._buffers.update(saved)


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else int(x._version)


def _reasons(plan: object | None) -> list[tuple[str, str, str]]:
    """Return name, op and reason of each site that the plan leaves."""
    left = [(x.site.name, getattr(x.site, "op", ""), x.reason) for x in getattr(plan, "left", ())]
    return left + [(x.scope, "", x.reason) for x in getattr(plan, "unread", ())]


def _rows(events: Sequence[Event], reasons: Sequence[tuple[str, str, str]]) -> tuple[AuditRow, ...]:
    """Return one row for each name, op and stride, with the worst verdict of its calls."""
    rows: dict[tuple[object, ...], AuditRow] = {}
    for event in events:
        row = _row(event, reasons)
        key = (row.name, row.op, row.stride)
        first = rows.get(key)
        if first is None:
            rows[key] = row
            continue
        worse = _WORST.index(row.verdict) > _WORST.index(first.verdict)
        worst = row if worse else first
        rows[key] = replace(
            worst, size_in=first.size_in, size_out=first.size_out, calls=first.calls + 1
        )
    return tuple(rows.values())


def _row(event: Event, reasons: Sequence[tuple[str, str, str]]) -> AuditRow:
    sampling = event.sampling
    verdict: Verdict = "treated" if event.treated else "left" if event.integral else "untreated"
    reason = _why(event)
    if verdict != "treated":
        mine = [r for r in reasons if r[0] == event.scope or r[0].startswith(f"{event.scope}:")]
        mine = [r for r in mine if r[1] == sampling.op] or mine
        if mine:
            verdict, reason = "left", mine[0][2]
    return AuditRow(
        event.scope,
        sampling.op,
        sampling.stride,
        sampling.size_in,
        sampling.size_out,
        verdict,
        event.gain,
        reason,
    )


def _why(event: Event) -> str:
    note = event.sampling.note
    if event.integral:
        return "integers or booleans: labels, masks and bytes are not filtered"
    if event.gain is None:
        return note or "no low-pass filter"
    size = " * ".join("x".join(map(str, k.shape)) for k in event.kernels)
    if event.treated:
        return f"low-pass {size}" + ("" if event.own else " before it")
    return f"filter {size} passes what aliases"
