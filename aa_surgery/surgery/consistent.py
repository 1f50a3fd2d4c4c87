"""Whether the parts of a plan agree with one another, whoever wrote it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from aa_surgery.errors import PlanError, SurgeryError, shown
from aa_surgery.rules import DEFAULT_RULES, PRESETS, Edit, Left, Options, Preset
from aa_surgery.sites import Site

__all__ = ["check_decisions"]

_PLACEMENTS = ("auto", "post", "pre")


def check_decisions(decisions: Sequence[Edit | Left]) -> None:
    """Refuse decisions that no call of `plan_antialias` can have made.

    The strides, places and windows of an edit follow from its site, filter and method. If they do
    not, the op would run at one rate and its blur at another.

    Raises:
        PlanError: An edit is none that a rule makes, follows a site that does not lead, or stands
            for a site that another decision is about.
    """
    strange = [d for d in decisions if not isinstance(d, (Edit, Left))]
    if strange:
        raise PlanError(f"the plan holds {shown(strange[0])}, which is no Edit or Left.")
    twice = [name for name, n in Counter(d.site.name for d in decisions).items() if n > 1]
    if twice:
        raise PlanError(f"the plan decides twice about {shown(twice[0])}. Make it again.")
    edits = {d.site.name: d for d in decisions if isinstance(d, Edit)}
    for name, edit in edits.items():
        objection = _axes(edit.site) or _differs(edit) or _follows(edit, edits)
        if objection:
            raise PlanError(
                f"{name or 'the model'}: {objection}. The plan was edited, or made by a version "
                "with other rules: make it again with plan_antialias(model)."
            )


def _axes(site: Site) -> str:
    """Say whether the sizes of a site are of different numbers of axes; empty if not."""
    sizes = (site.kernel, site.padding, site.dilation, site.dims)
    if site.ndim and all(len(size) in (0, site.ndim) for size in sizes):
        return ""
    return f"stride {site.stride} and kernel, padding, dilation and dims {sizes}: one an axis"


def _differs(edit: Edit) -> str:
    """Say in what an edit is none that the rules make; empty if it is."""
    best: list[str] | None = None
    for made in _made(edit):
        wrong = [
            field.name
            for field in dataclasses.fields(Edit)
            if getattr(made, field.name) != getattr(edit, field.name)
        ]
        if not wrong:
            return ""
        best = wrong if best is None or len(wrong) < len(best) else best
    if best is None:
        return f"no rule treats this {edit.site.op} with method {edit.method.name!r}"
    return f"no rule gives it {best[0]}={shown(getattr(edit, best[0]))}"


def _made(edit: Edit) -> Iterator[Edit]:
    """Yield what the rules make of the edit's site with its method, filter and border."""
    for preset in (Preset(), *PRESETS.values()):
        for placement in _PLACEMENTS:
            options = Options(edit.filter, placement, edit.padding_mode, None, edit.method)
            answers = (rule(edit.site, options) for rule in preset.rules + DEFAULT_RULES)
            try:
                made = next((a for a in answers if a is not None), None)
            except SurgeryError:
                continue
            if isinstance(made, Edit):
                # what is not the rules' to say: words, and what a run has shown of the maps
                yield dataclasses.replace(
                    made, note=edit.note, channels=edit.channels, leader=edit.leader
                )


def _follows(edit: Edit, edits: dict[str, Edit]) -> str:
    """Say what is wrong with what an edit knows of the maps; empty if nothing is."""
    method = edit.method
    counts = method.per_channel and edit.anchor is not None
    if bool(edit.channels) != counts:
        return f"method {method.name!r} with channels={edit.channels}"
    if not edit.leader:
        return ""
    leader = edits.get(edit.leader)
    leads = leader is not None and leader.anchor is not None and not leader.leader
    if not leads or not method.shares_phase or edits[edit.leader].method != method:
        return f"leader={shown(edit.leader)} is no site whose phase it could follow"
    return ""
