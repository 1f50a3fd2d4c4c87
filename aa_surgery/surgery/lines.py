"""One line of code, one treatment: ops that one call issues are treated alike, or left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from aa_surgery.rules import Edit, Left

__all__ = ["one_treatment_a_line"]

Decision = Edit | Left


def one_treatment_a_line(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Return the decisions, without edits of a call whose other ops are decided on otherwise.

    A loop, or a method that is called several times, issues several ops by one call.
    """
    groups: dict[Any, list[Decision]] = defaultdict(list)
    for decision in decisions:
        site = decision.site
        if site.line:
            groups["op", site.scope, site.line].append(decision)
        if site.activation is not None and site.activation.line:
            groups["activation", site.activation.path, site.activation.line].append(decision)
    apart: dict[int, str] = {}
    for (kind, _, line), group in groups.items():
        if len({_treatment(decision, kind) for decision in group}) > 1:
            apart |= {id(decision): line for decision in group}
    return tuple(
        Left(d.site, f"line {apart[id(d)].split(':')[-2]} issues other ops, treated otherwise")
        if isinstance(d, Edit) and id(d) in apart
        else d
        for d in decisions
    )


def _treatment(decision: Decision, kind: str) -> Any:
    """Return what must be equal of the ops that one call issues."""
    if isinstance(decision, Left):
        return None
    site = decision.site
    if kind == "activation" and decision.anchor != site.activation:
        return None
    common = (decision.placement, decision.filter, decision.padding_mode, decision.method.name)
    if site.adapts and decision.method.name == "blur":
        return common
    sampling = (decision.op_stride, decision.blur_stride, decision.rate, decision.channels)
    return (*common, *sampling, repr(decision.method.options))
