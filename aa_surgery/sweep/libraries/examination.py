"""The laws of one outside model, from building it to a training step and back."""

from __future__ import annotations

import copy
import math
import pickle
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from aa_surgery.audit import AuditReport, audit
from aa_surgery.surgery import Plan, apply_antialias, plan_antialias, remove_antialias
from aa_surgery.sweep.identity import settle, spread
from aa_surgery.sweep.libraries.specimen import Specimen, fits

__all__ = ["LAWS", "Findings", "examine_specimen"]

LAWS = {
    "plan": "a plan is made, without an error",
    "identity": 'with `filter="identity"` the outputs are the original\'s',
    "identity, post": 'likewise, with `placement="post"`',
    "no false blur": "no edit where the audit of the untouched model saw nothing sampled",
    "treat": "the plan is carried out, without an error",
    "shape": "shapes and dtypes of the outputs stay",
    "keys": "keys and shapes of the state_dict stay",
    "audit": "nothing sampled is untreated without a reason",
    "pickle": "a pickled copy gives the same outputs",
    "training step": "finite gradients, for the parameters that have one untouched",
    "merge": "the library's `fuse()` after surgery, and surgery after it, change no output",
    "undo": "removal gives classes, keys and outputs back, bit for bit",
}
"""What is tested of each model; a crash of ours breaks the law under which it comes."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-7}
"""Largest difference relative to the largest output; what fails in float32 is tried in float64."""

_CLOSE = 1e-3  # merging norms into weights rounds anew


@dataclass
class Findings:
    """What was counted in one model, with `max_stride=None`.

    Attributes:
        parameters: How many the model has.
        edits: Sites treated.
        left: Sites left, and ops that the audit saw in scopes that cannot be traced, by reason.
        default_left: Those that the default options leave, likewise.
        unread: Scopes that cannot be traced, as `"scope: reason"`.
        sampled: Sampling ops that the audit saw in the treated model.
        untreated: Those without filter or reason.
        false_blurs: Edits where the untouched model samples nothing.
        unjudged: What the audit could not read.
        notes: What could not be tested, and why.
    """

    parameters: int = 0
    edits: int = 0
    left: dict[str, int] = field(default_factory=dict)
    default_left: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    sampled: int = 0
    untreated: list[str] = field(default_factory=list)
    false_blurs: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _NotTestedError(Exception):
    """The untouched model cannot do it."""


class _BrokenError(Exception):
    """A law does not hold."""


class Examination:
    """One model under every law; `held` and `broken` fill as it goes."""

    def __init__(self, specimen: Specimen) -> None:
        self.specimen = specimen
        self.model = specimen.model.eval()
        self.found = Findings(parameters=sum(p.numel() for p in self.model.parameters()))
        self.held: list[str] = []
        self.broken: dict[str, str] = {}
        self.plan: Plan | None = None

    def law(self, name: str, test: Callable[[], None]) -> bool:
        """Run a test; note whether it held. A crash of whatever kind breaks the law."""
        try:
            test()
        except _NotTestedError as reason:
            self.found.notes.append(f"{name}: {reason}")
            return False
        except _BrokenError as what:
            self.broken[name] = str(what)
            return False
        except Exception as error:
            self.broken[name] = f"crash: {_place(error)}"
            return False
        self.held.append(name)
        return True

    def run_all(self) -> None:
        """Test every law, in an order in which each leaves the model as the next needs it."""
        self.before = self._outputs()
        self.state = _state_of(self.model)
        self._check_determinism()
        if not self.law("plan", self._make_plan):
            return
        for placement in ("auto", "post"):
            name = "identity" if placement == "auto" else f"identity, {placement}"
            self.law(name, lambda p=placement: self._identity(p))  # type: ignore[misc]
        self.law("no false blur", self._false_blurs)
        if not self.law("treat", self._treat):
            return
        self.law("shape", self._shape)
        self.law("keys", lambda: _same(self.state, _state_of(self.model)))
        self.law("audit", self._audit)
        self.law("pickle", self._pickle)
        self.law("training step", self._train)
        if self.specimen.merge is not None:
            self.law("merge", self._merge)
        self.law("undo", self._undo)

    def _outputs(self, model: nn.Module | None = None) -> list[Tensor]:
        """Run without gradients, and give the buffers back that the forward writes."""
        target = self.model if model is None else model
        saved = [(b, b.clone()) for b in target.buffers()]
        with torch.no_grad():
            result = tensors(self.specimen.run(target))
        for buffer, value in saved:
            buffer.copy_(value)
        return [r.detach().clone() for r in result]

    def _check_determinism(self) -> None:
        if _error(self._outputs(), self.before) > 0:
            self.found.notes.append("identity: the untouched model gives another output each time")
            self.random = True
            return
        self.random = False

    def _make_plan(self) -> None:
        self.plan = plan_antialias(self.model, max_stride=None)
        self.found.edits = len(self.plan.edits)
        self.found.left = _counted(x.reason for x in self.plan.left)
        self.found.unread = [f"{x.scope}: {x.reason}" for x in self.plan.unread]
        self.found.default_left = _counted(x.reason for x in plan_antialias(self.model).left)

    def _treat(self) -> None:
        apply_antialias(self.model, plan=self.plan)

    @contextmanager
    def _treated(self, options: dict[str, Any]) -> Iterator[None]:
        apply_antialias(self.model, **options)
        try:
            yield
        finally:
            remove_antialias(self.model)

    def _identity(self, placement: str) -> None:
        if self.random:
            raise _NotTestedError("the untouched model is random")
        options = {"filter": "identity", "placement": placement, "max_stride": None}
        with self._treated(options):
            error = _error(self._outputs(), self.before)
        if error > TOLERANCE[torch.float32]:
            error = self._in_double(options)
            if error > TOLERANCE[torch.float64]:
                raise _BrokenError(f"relative error {error:.1e}")

    def _in_double(self, options: dict[str, Any]) -> float:
        """Return the error in float64, where only rounding is forgiven."""
        specimen = Specimen(
            copy.deepcopy(self.model).double(),
            *_double(self.specimen),  # the float32 one stays
        )
        other = Examination(specimen)
        before = other._outputs()
        with other._treated(options):
            return _error(other._outputs(), before)

    def _false_blurs(self) -> None:
        """Compare the edits with what the audit sees sampled in the untouched model."""
        assert self.plan is not None
        ran: set[str] = set()
        handles = [
            m.register_forward_hook(lambda *_, n=name: ran.add(n))
            for name, m in self.model.named_modules()
        ]
        try:
            report = self._report(None)
        finally:
            for handle in handles:
                handle.remove()
        seen = {row.name for row in report.rows}
        unread = {entry.rpartition(": ")[0] for entry in report.unread}
        for edit in self.plan.edits:
            site = edit.site
            places = {site.name, site.scope} if ":" in site.name else {site.name}
            if places & ran and not places & (seen | unread):
                self.found.false_blurs.append(f"{site.name}: {site.op} ({site.kind})")
        if self.found.false_blurs:
            raise _BrokenError("; ".join(self.found.false_blurs))

    def _report(self, plan: Plan | None) -> AuditReport:
        torch.manual_seed(0)
        return audit(self.model, *self.specimen.arguments, plan=plan, **self.specimen.options)

    def _shape(self) -> None:
        was, now = ([(tuple(t.shape), t.dtype) for t in x] for x in (self.before, self._outputs()))
        if was != now:
            raise _BrokenError(f"{now} instead of {was}"[:300])

    def _audit(self) -> None:
        report = self._report(self.plan)
        self.found.sampled = len(report.rows)
        told = self.found.left.keys()
        self.found.left |= _counted(r.reason for r in report.left if r.reason not in told)
        self.found.untreated = [
            f"{r.name or 'model'}: {r.op}, stride {'x'.join(f'{s:g}' for s in r.stride)}"
            for r in report.untreated
        ]
        self.found.unjudged = list(report.unread)
        if self.found.untreated:
            raise _BrokenError("; ".join(self.found.untreated))

    def _pickle(self) -> None:
        try:
            data = pickle.dumps(self.model)
        except Exception as error:
            self._unless_untouched(lambda m: pickle.dumps(m), error)
        else:
            if not self.random and _error(self._outputs(pickle.loads(data)), self._outputs()) > 0:
                raise _BrokenError("the copy gives other outputs")

    def _unless_untouched(self, action: Callable[[nn.Module], object], error: Exception) -> None:
        """Raise `error`, unless the untouched model fails too."""
        remove_antialias(self.model)
        try:
            action(self.model)
        except Exception as own:
            raise _NotTestedError(f"the untouched model: {_place(own)}") from error
        finally:
            apply_antialias(self.model, plan=self.plan)
        raise error

    def _train(self) -> None:
        """Take the gradients of one step; none is taken, so that the weights stay."""
        try:
            treated = self._gradients()
        except Exception as error:
            self._unless_untouched(lambda m: self._gradients(), error)
            return
        remove_antialias(self.model)
        try:
            untouched = self._gradients()
        finally:
            apply_antialias(self.model, plan=self.plan)
        if treated.keys() != untouched.keys():
            raise _BrokenError(f"other parameters: {sorted(treated.keys() ^ untouched.keys())[:5]}")
        wild = [n for n, finite in treated.items() if not finite and untouched[n]]
        if wild:
            raise _BrokenError(f"not finite: {wild[:5]}")

    def _gradients(self) -> dict[str, bool]:
        """Return of each parameter that gets a gradient whether it is finite."""
        saved = [(b, b.clone()) for b in self.model.buffers()]
        modes = [(m, m.training) for m in self.model.modules()]
        try:
            self.model.train()
            parts = [
                t.float().square().mean() for t in tensors(self.specimen.run()) if t.requires_grad
            ]
            if not parts:
                raise _BrokenError("no output needs a gradient")
            torch.stack(parts).sum().backward()
            named = self.model.named_parameters()
            return {n: bool(p.grad.isfinite().all()) for n, p in named if p.grad is not None}
        finally:
            self.model.zero_grad(set_to_none=True)
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, value in saved:
                    buffer.copy_(value)

    def _merge(self) -> None:
        """Merge a treated copy; then treat a merged copy with the one-tap filter."""
        assert self.specimen.merge is not None
        twin = copy.deepcopy(self.model)
        self.specimen.merge(twin)
        error = _error(self._outputs(twin), self._outputs())
        if error > _CLOSE:
            raise _BrokenError(f"merged after surgery: relative error {error:.1e}")
        merged = copy.deepcopy(self.model)
        remove_antialias(merged)
        self.specimen.merge(merged)
        expected = self._outputs(merged)
        apply_antialias(merged, filter="identity", max_stride=None)
        error = _error(self._outputs(merged), expected)
        if error > _CLOSE:
            raise _BrokenError(f"merged before surgery: relative error {error:.1e}")

    def _undo(self) -> None:
        remove_antialias(self.model)
        _same(self.state, _state_of(self.model))
        for name, module in self.model.named_modules():
            if type(module).__module__.startswith("aa_surgery"):
                raise _BrokenError(f"{name} is still a {type(module).__name__}")
        if not self.random and _error(self._outputs(), self.before) > 0:
            raise _BrokenError("the outputs are not those of before, bit for bit")


def examine_specimen(specimen: Specimen) -> tuple[Findings, tuple[str, ...], dict[str, str]]:
    """Test every law on one model.

    Returns:
        What was counted, the names of the laws that held, and of those that broke, and how.

    Raises:
        Exception: Whatever the untouched model raises.
    """
    fits(specimen.model)
    specimen.model.eval()
    spread(specimen.model)
    settle(specimen.model, lambda: _quiet(specimen))
    examination = Examination(specimen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hosts; and that a model has nothing to treat
        examination.run_all()
    return examination.found, tuple(examination.held), examination.broken


def _quiet(specimen: Specimen) -> None:
    with torch.no_grad():
        specimen.run()


def tensors(result: Any) -> list[Tensor]:
    """Return every floating-point tensor of a forward's result, dataclasses included."""
    if not isinstance(result, (Tensor, list, tuple, dict)) and hasattr(result, "__dict__"):
        result = {k: v for k, v in vars(result).items() if not k.startswith("_")}
    leaves = list(tree_leaves(dict(result) if isinstance(result, dict) else result))
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _double(specimen: Specimen) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def widen(x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    arguments, options = tree_map(widen, (specimen.arguments, specimen.options))
    return arguments, options


def _error(result: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest relative difference; infinite where a shape differs."""
    if [r.shape for r in result] != [e.shape for e in expected]:
        return math.inf
    worst = 0.0
    for got, reference in zip(result, expected, strict=True):
        same = (got == reference) | (got.isnan() & reference.isnan())
        if bool(same.all()):
            continue
        finite = reference[reference.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 1.0
        error = float((got - reference)[~same].abs().max()) / (scale or 1.0)
        worst = max(worst, error) if error == error else math.inf
    return worst


def _state_of(model: nn.Module) -> dict[str, Any]:
    return {k: tuple(getattr(v, "shape", ())) for k, v in model.state_dict().items()}


def _same(before: dict[str, Any], after: dict[str, Any]) -> None:
    if list(before.items()) != list(after.items()):
        changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        raise _BrokenError(f"keys differ: {sorted(changed)[:5] or 'their order'}")


def _counted(reasons: Any) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


def _place(error: Exception) -> str:
    """Return an error's name, its first line, and the last place in our own code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "aa_surgery" in f.filename and "sweep" not in f.filename]
    frame = ours[-1] if ours else frames[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:250] + f" ({where})"


def as_dict(found: Findings) -> dict[str, Any]:
    """Return what `json.dumps` writes."""
    return asdict(found)
