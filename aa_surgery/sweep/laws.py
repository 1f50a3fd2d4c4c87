"""The structural laws of one architecture: shape, keys, self, nothing missed, twice, undo."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from aa_surgery.audit import AuditReport, AuditRow, audit
from aa_surgery.errors import NoEffectWarning
from aa_surgery.surgery import Plan, apply_antialias, plan_antialias, remove_antialias
from aa_surgery.sweep.build import build, default_size, inputs, outputs, run
from aa_surgery.sweep.catalogue import Subject

__all__ = ["STRUCTURAL", "Found", "structural_laws"]

STRUCTURAL = ("shape", "keys", "self", "nothing missed", "twice", "undo")


@dataclass
class Found:
    """What one sweep over one architecture found, laws apart.

    Attributes:
        device: Where the laws were tested: `"meta"`, or `"cpu"` where the model needs values.
        parameters: How many the model has.
        sites: Downsampling ops that find names.
        edits: Those that the plan treats, with `max_stride=None`.
        left: Those that it leaves, counted by reason.
        default_left: Those that the default options leave, counted by reason.
        sampled: Sampling ops that the audit saw run.
        treated: Those with a low-pass filter.
        audit_left: Those excused by the plan, counted by reason.
        untreated: Those without filter or reason, as `"name: op, stride"`.
        unread: What the audit could not read.
    """

    device: str = ""
    parameters: int = 0
    sites: int = 0
    edits: int = 0
    left: dict[str, int] = field(default_factory=dict)
    default_left: dict[str, int] = field(default_factory=dict)
    sampled: int = 0
    treated: int = 0
    audit_left: dict[str, int] = field(default_factory=dict)
    untreated: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def structural_laws(subject: Subject) -> tuple[Found, dict[str, str]]:
    """Build, plan, treat, audit and restore one architecture with `max_stride=None`.

    Returns:
        What was found, and of each law of `STRUCTURAL` `""` where it held, else what broke it.

    Raises:
        Exception: Whatever the untouched model, the plan or the surgery raises.
    """
    model, arguments, before = _ready(subject)
    found = Found(device=_device_of(model))
    found.parameters = sum(p.numel() for p in model.parameters())
    found.default_left = _counted(item.reason for item in plan_antialias(model).left)
    plan = plan_antialias(model, max_stride=None)
    found.sites, found.edits = len(plan.decisions), len(plan.edits)
    found.left = _counted(item.reason for item in plan.left)

    self_before = _self_of(model)
    state_before = _state_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # a model without sites stays as it is
        apply_antialias(model, plan=plan)
    report, after = _audited(model, arguments, plan)
    _note(found, report)

    laws = {
        "shape": _difference(_shapes_of(before), _shapes_of(after)),
        "keys": _difference(state_before, _state_of(model)),
        "self": _kept(self_before, model),
        "nothing missed": "; ".join(found.untreated),
        "twice": _twice(model),
        "undo": "",
    }
    if plan.edits:
        remove_antialias(model)
    laws["undo"] = _difference(self_before, _self_of(model)) or _left_behind(model)
    return found, laws


def _ready(subject: Subject) -> tuple[nn.Module, tuple[Any, ...], dict[str, Tensor]]:
    """Return the model, its inputs and its outputs: on the meta device, or else with values."""
    try:
        return _tried(subject, "meta")
    # Reading values on the meta device fails in many ways, by the model.
    except Exception as error:
        try:
            return _tried(subject, "cpu")
        except Exception as second:
            raise second from error


def _tried(subject: Subject, device: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Tensor]]:
    model = build(subject, device)
    size = default_size(subject, model)
    if any(isinstance(m, nn.RNNBase) for m in model.modules()):
        size = (size[0], 64, 64)  # the audit sees every step of a recurrent layer as ops
    arguments = inputs(subject, size, device=device)
    return model, arguments, run(model, arguments)


def _device_of(model: nn.Module) -> str:
    return next((p.device.type for p in model.parameters()), "cpu")


def _audited(
    model: nn.Module, arguments: tuple[Any, ...], plan: Plan
) -> tuple[AuditReport, dict[str, Tensor]]:
    """Return the audit's report, and the outputs of the run that it made."""
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: Any, result: Any) -> None:
        seen.update(outputs(result))

    handle = model.register_forward_hook(keep)
    try:
        return audit(model, *arguments, plan=plan), seen
    finally:
        handle.remove()


def _note(found: Found, report: AuditReport) -> None:
    rows = _distinct(report.rows)
    found.sampled = len(rows)
    found.treated = sum(r.verdict == "treated" for r in rows)
    found.audit_left = _counted(r.reason for r in rows if r.verdict == "left")
    found.untreated = [
        f"{r.name or 'model'}: {r.op}, stride {'x'.join(f'{s:g}' for s in r.stride)}"
        for r in rows
        if r.verdict == "untreated"
    ]
    found.unread = list(report.unread)


def _distinct(rows: Iterable[AuditRow]) -> list[AuditRow]:
    """Return the rows, those of one module's resizings once for each verdict.

    A detector resizes every box by another factor, which is one op and not a hundred.
    """
    chosen: dict[object, AuditRow] = {}
    for r in rows:
        stride = r.stride if all(s == int(s) for s in r.stride) else ()
        chosen.setdefault((r.name, r.op, stride, r.verdict), r)
    return list(chosen.values())


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


def _shapes_of(tensors: dict[str, Tensor]) -> dict[str, object]:
    return {place: (tuple(t.shape), str(t.dtype)) for place, t in tensors.items()}


def _state_of(model: nn.Module) -> dict[str, object]:
    return {k: (tuple(v.shape), str(v.dtype)) for k, v in model.state_dict().items()}


def _self_of(model: nn.Module) -> dict[str, object]:
    """Return everything that surgery must give back, by identity where that matters."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        found[name or "model"] = (id(module), type(module), module.training)
    for name, parameter in model.named_parameters():
        found[f"parameter {name}"] = (id(parameter), parameter.requires_grad, parameter.dtype)
    return found


def _kept(before: dict[str, object], model: nn.Module) -> str:
    """Say which module or parameter is another object, or of another class, than before."""
    now = _self_of(model)
    for name, was in before.items():
        if name not in now:
            return f"{name} is gone"
        old: Any = was
        new: Any = now[name]
        same = issubclass(new[1], old[1]) if isinstance(old[1], type) else new[1] == old[1]
        if (old[0], old[2]) != (new[0], new[2]) or not same:
            return f"{name} was {old[1:]}, is {new[1:]}"
    return ""


def _difference(before: dict[str, object], after: dict[str, object]) -> str:
    """Say what the first difference between two tables is, their order included."""
    for key, value in before.items():
        if key not in after:
            return f"{key} is gone"
        if after[key] != value:
            return f"{key} was {value}, is {after[key]}"
    added = [key for key in after if key not in before]
    if added:
        return f"{added[0]} was added"
    return "" if list(before) == list(after) else "another order"


def _twice(model: nn.Module) -> str:
    classes = [type(m) for m in model.modules()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        apply_antialias(model, max_stride=None)
    if not any(issubclass(w.category, NoEffectWarning) for w in caught):
        return "no NoEffectWarning the second time"
    return "" if classes == [type(m) for m in model.modules()] else "changed the second time"


def _left_behind(model: nn.Module) -> str:
    for name, module in model.named_modules():
        for key in (*vars(module), *module._buffers, *module._modules):
            if key.startswith(("_antialias", "aa_")):
                return f"{name or 'model'}.{key} was left behind"
    return ""
