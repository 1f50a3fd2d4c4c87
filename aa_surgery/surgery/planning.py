"""Planning: sites and options in, a plan out; nothing is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from aa_surgery.errors import PatternError, shown
from aa_surgery.filters import Filter
from aa_surgery.methods import Method
from aa_surgery.rules import Edit, Left
from aa_surgery.sites import Site, survey
from aa_surgery.sites.windows import window_sites
from aa_surgery.surgery.arguments import Request, read_request
from aa_surgery.surgery.changes import new_keys
from aa_surgery.surgery.checks import check_model
from aa_surgery.surgery.lines import one_treatment_a_line
from aa_surgery.surgery.plan import Plan
from aa_surgery.surgery.probe import leave_whole_maps, run_on, with_maps

__all__ = ["plan_antialias", "planned"]


def plan_antialias(
    model: nn.Module,
    *,
    filter: str | Iterable[float] | Filter = "auto",
    placement: str = "auto",
    padding_mode: str = "reflect",
    max_stride: int | None = 4,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: str | None = None,
    overrides: Mapping[str, Mapping[str, Any] | bool] | None = None,
    method: str | Mapping[str, Any] | Method = "blur",
    circular: bool = False,
    example: Tensor | None = None,
) -> Plan:
    """Decide what anti-aliasing `model` means, and touch nothing.

    The arguments are those of `apply_antialias`.

    Raises:
        SurgeryError: An argument is wrong, or the model cannot be treated.

    >>> import torchvision
    >>> plan = plan_antialias(torchvision.models.resnet18(), exclude="conv1")
    >>> len(plan.edits), plan.left[0].reason
    (7, "excluded by 'conv1'")
    """
    check_model(model)
    options = dict(
        filter=filter,
        placement=placement,
        padding_mode=padding_mode,
        max_stride=max_stride,
        include=include,
        exclude=exclude,
        preset=preset,
        overrides=overrides,
        method=method,
        circular=circular,
        example=example,
    )
    return planned(model, options)


def planned(model: nn.Module, options: Mapping[str, Any]) -> Plan:
    """Return the plan for a model that was checked, with `options` as `plan_antialias` has them."""
    request = read_request(options)
    sites, unread = survey(model)
    if request.options.method.shares_phase:
        sites += window_sites(model)
    for argument in ("include", "exclude", "overrides"):
        _require_matches(argument, getattr(request, argument), sites)
    plan = Plan(
        type(model).__name__,
        tuple(_decide(site, request) for site in sites),
        unread,
        circular=request.circular,
    )
    if request.example is not None:
        run_on(model, request.example)
    plan = leave_whole_maps(model, plan, request.example)
    plan = with_maps(model, plan, request.example)
    plan = dataclasses.replace(plan, decisions=one_treatment_a_line(plan.decisions))
    return dataclasses.replace(plan, new_keys=new_keys(model, plan))


def _decide(site: Site, request: Request) -> Edit | Left:
    if request.include and not any(_matches(site, p) for p in request.include):
        return Left(site, "not among include")
    for pattern in request.exclude:
        if _matches(site, pattern):
            return Left(site, f"excluded by {pattern!r}")
    options = request.options
    special = next((p for p in request.overrides if _matches(site, p)), None)
    if special is not None:
        changed = request.overrides[special]
        if changed is None:
            return Left(site, f"excluded by override {special!r}")
        options = changed
    for rule in request.rules:
        decided = rule(site, options)
        if decided is not None:
            return decided
    return Left(site, f"no rule for {site.op} ({site.kind})")


def _matches(site: Site, pattern: str) -> bool:
    return fnmatchcase(site.name, pattern)


def _require_matches(argument: str, patterns: Iterable[str], sites: tuple[Site, ...]) -> None:
    for pattern in patterns:
        if not any(_matches(site, pattern) for site in sites):
            names = ", ".join(site.name for site in sites[:8]) or "none"
            more = ", ..." if len(sites) > 8 else ""
            raise PatternError(
                f"{argument}: pattern {shown(pattern)} matches no site. Sites are: {names}{more}. "
                "Patterns are shell-style: 'layer2.*', '*.downsample.*'."
            )
