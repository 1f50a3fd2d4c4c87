"""The laws of one outside model, from building it to a training step and back."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from aa_surgery.audit import AuditReport, audit
from aa_surgery.surgery import Plan, apply_antialias, plan_antialias, remove_antialias
from aa_surgery.sweep.identity import settle, spread
from aa_surgery.sweep.libraries.comparing import (
    BrokenError,
    NotTestedError,
    counted,
    double,
    error_of,
    place_of,
    require_same,
    state_of,
    tensors,
)
from aa_surgery.sweep.libraries.findings import Findings
from aa_surgery.sweep.libraries.specimen import Specimen, fits

__all__ = ["Examination", "examine_specimen"]

T = TypeVar("T")

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-7}
"""Largest difference relative to the largest output; what fails in float32 is tried in float64."""

_CLOSE = 1e-3  # merging norms into weights rounds anew


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
        except NotTestedError as reason:
            self.found.notes.append(f"{name}: {reason}")
            return False
        except BrokenError as what:
            self.broken[name] = str(what)
            return False
        except Exception as error:
            self.broken[name] = f"crash: {place_of(error)}"
            return False
        self.held.append(name)
        return True

    def pickle_unused(self) -> None:
        """Pickle the model before it has run: transformers' then hold hooks that cannot be."""
        self.untouched_pickle = _attempt(lambda: pickle.loads(pickle.dumps(self.model)))
        self.treated_pickle = _attempt(self._pickled_treated)

    def _pickled_treated(self) -> bytes:
        with self._treated({"max_stride": None}):
            return pickle.dumps(self.model)

    def run_all(self) -> None:
        """Test every law, in an order in which each leaves the model as the next needs it."""
        self._note_untouched()
        if not self.law("plan", self._make_plan):
            return
        for placement in ("auto", "post"):
            name = "identity" if placement == "auto" else f"identity, {placement}"
            self.law(name, partial(self._identity, placement))
        self.law("no false blur", self._false_blurs)
        if not self.law("treat", self._treat):
            return
        self.law("shape", self._shape)
        self.law("keys", lambda: require_same(self.state, state_of(self.model)))
        self.law("audit", self._audit)
        self.law("pickle", self._pickle)
        self.law("training step", self._train)
        if self.specimen.merge is not None:
            self.law("merge", self._merge)
        self.law("undo", self._undo)

    def _note_untouched(self) -> None:
        """Note what the untouched model gives and can do, for the laws to compare with."""
        self.before = self._outputs()
        self.state = state_of(self.model)
        self.random = error_of(self._outputs(), self.before) > 0
        self.gradients = _attempt(self._gradients)
        others = [Specimen(self.model, *tree_map(f, self._inputs())) for f in (_fainter, _mirrored)]
        shapes = _shapes(self.before)
        self.data_dependent = any(_shapes(self._outputs(of=other)) != shapes for other in others)

    def _outputs(self, model: nn.Module | None = None, of: Specimen | None = None) -> list[Tensor]:
        """Run without gradients, and give the buffers back that the forward writes."""
        target = self.model if model is None else model
        saved = [(b, b.clone()) for b in target.buffers()]
        with torch.no_grad():
            result = tensors((of or self.specimen).run(target))
            for buffer, value in saved:
                buffer.copy_(value)
        return [r.detach().clone() for r in result]

    def _make_plan(self) -> None:
        self.plan = plan_antialias(self.model, max_stride=None)
        self.found.edits = len(self.plan.edits)
        self.found.left = counted(x.reason for x in self.plan.left)
        self.found.unread = [f"{x.scope}: {x.reason}" for x in self.plan.unread]
        self.found.default_left = counted(x.reason for x in plan_antialias(self.model).left)

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
            raise NotTestedError("the untouched model is random")
        options = {"filter": "identity", "placement": placement, "max_stride": None}
        with self._treated(options):
            error = error_of(self._outputs(), self.before)
        if error > TOLERANCE[torch.float32]:
            error = self._in_double(options, error)
            if error > TOLERANCE[torch.float64]:
                raise BrokenError(f"relative error {error:.1e}")

    def _in_double(self, options: dict[str, Any], otherwise: float) -> float:
        """Return the error in float64, where only rounding is forgiven.

        It is `otherwise` where the untouched model does not run in float64.
        """
        try:
            twin = copy.deepcopy(self.model).double()  # the float32 one stays as it is
            other = Examination(Specimen(twin, *double(self.specimen)))
            before = other._outputs()
        # A host may refuse float64 with any error; what float32 said stands then.
        except Exception:
            return otherwise
        with other._treated(options):
            return error_of(other._outputs(), before)

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
            raise BrokenError("; ".join(self.found.false_blurs))

    def _report(self, plan: Plan | None) -> AuditReport:
        torch.manual_seed(0)
        return audit(self.model, *self.specimen.arguments, plan=plan, **self.specimen.options)

    def _shape(self) -> None:
        if self.data_dependent:
            raise NotTestedError("the sizes of the untouched model's outputs follow the values")
        was, now = _shapes(self.before), _shapes(self._outputs())
        if was != now:
            raise BrokenError(f"{now} instead of {was}"[:300])

    def _inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.specimen.arguments, self.specimen.options

    def _audit(self) -> None:
        report = self._report(self.plan)
        self.found.sampled = len(report.rows)
        told = self.found.left.keys()
        self.found.left |= counted(r.reason for r in report.left if r.reason not in told)
        self.found.untreated = [
            f"{r.name or 'model'}: {r.op}, stride {'x'.join(f'{s:g}' for s in r.stride)}"
            for r in report.untreated
        ]
        self.found.unjudged = list(report.unread)
        if self.found.untreated:
            raise BrokenError("; ".join(self.found.untreated))

    def _pickle(self) -> None:
        if isinstance(self.untouched_pickle, Exception):
            raise NotTestedError(f"the untouched model: {place_of(self.untouched_pickle)}")
        if isinstance(self.treated_pickle, Exception):
            raise self.treated_pickle
        copied = pickle.loads(self.treated_pickle)
        copied.load_state_dict(self.model.state_dict())
        if not self.random and error_of(self._outputs(copied), self._outputs()) > 0:
            raise BrokenError("the copy gives other outputs")

    def _train(self) -> None:
        """Compare the gradients of one step; none is taken, so that the weights stay."""
        untouched = self.gradients
        if isinstance(untouched, Exception):
            raise NotTestedError(f"the untouched model: {place_of(untouched)}")
        treated = self._gradients()
        if treated.keys() != untouched.keys():
            raise BrokenError(f"other parameters: {sorted(treated.keys() ^ untouched.keys())[:5]}")
        wild = [n for n, finite in treated.items() if not finite and untouched[n]]
        if wild:
            raise BrokenError(f"not finite: {wild[:5]}")

    def _gradients(self) -> dict[str, bool]:
        """Return of each parameter that gets a gradient whether it is finite."""
        # parameters too: a codebook is moved in place
        state = (*self.model.buffers(), *self.model.parameters())
        saved = [(t, t.detach().clone()) for t in state]
        modes = [(m, m.training) for m in self.model.modules()]
        try:
            self.model.train()
            parts = [
                t.float().square().mean() for t in tensors(self.specimen.run()) if t.requires_grad
            ]
            if not parts:
                raise BrokenError("no output needs a gradient")
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
        twin, merged = copy.deepcopy(self.model), copy.deepcopy(self.model)
        self.specimen.merge(twin)
        remove_antialias(merged)
        self.specimen.merge(merged)
        ours, expected = self._outputs(twin), self._outputs(merged)
        if _shapes(ours) != _shapes(expected):
            raise BrokenError(f"merged after surgery: {_shapes(ours)}"[:300])
        error, its = error_of(ours, self._outputs()), error_of(expected, self.before)
        if error > _CLOSE >= its:
            raise BrokenError(f"merged after surgery: relative error {error:.1e}")
        apply_antialias(merged, filter="identity", max_stride=None)
        again = error_of(self._outputs(merged), expected)
        if again > _CLOSE:
            raise BrokenError(f"merged before surgery: relative error {again:.1e}")
        if error > _CLOSE:
            raise NotTestedError(f"merging the untouched model changes its outputs by {its:.1e}")

    def _undo(self) -> None:
        remove_antialias(self.model)
        require_same(self.state, state_of(self.model))
        for name, module in self.model.named_modules():
            if type(module).__module__.startswith("aa_surgery"):
                raise BrokenError(f"{name} is still a {type(module).__name__}")
        if not self.random and error_of(self._outputs(), self.before) > 0:
            raise BrokenError("the outputs are not those of before, bit for bit")


def examine_specimen(specimen: Specimen) -> tuple[Findings, tuple[str, ...], dict[str, str]]:
    """Test every law on one model.

    Returns:
        What was counted, the names of the laws that held, and of those that broke, and how.

    Raises:
        Exception: Whatever the untouched model raises.
    """
    fits(specimen.model)
    examination = Examination(specimen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hosts; and that a model has nothing to treat
        examination.pickle_unused()
        spread(specimen.model)
        settle(specimen.model, lambda: _quiet(specimen))
        examination.run_all()
    return examination.found, tuple(examination.held), examination.broken


def _quiet(specimen: Specimen) -> None:
    with torch.no_grad():
        specimen.run()


def _fainter(x: Any) -> Any:
    return x / 2 if isinstance(x, Tensor) and x.is_floating_point() else x


def _mirrored(x: Any) -> Any:
    return x.flip(-1) if isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 2 else x


def _shapes(outputs: list[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [(tuple(t.shape), t.dtype) for t in outputs]


def _attempt(action: Callable[[], T]) -> T | Exception:
    """Return what an action gives, or the error that it raises: a fact of the untouched model."""
    try:
        return action()
    except Exception as error:
        return error
