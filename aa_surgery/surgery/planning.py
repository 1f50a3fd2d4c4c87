"""Planning: sites and options in, a plan out; nothing is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from aa_surgery.errors import FilterError, MethodError, PatternError, SurgeryError
from aa_surgery.filters import Filter, resolve_filter
from aa_surgery.layers import PADDING_MODES
from aa_surgery.methods import Method, resolve_method
from aa_surgery.rules import DEFAULT_RULES, PRESETS, Edit, Left, Options, Preset, Rule
from aa_surgery.sites import Site, survey
from aa_surgery.sites.windows import window_sites
from aa_surgery.surgery.changes import new_keys
from aa_surgery.surgery.lines import one_treatment_a_line
from aa_surgery.surgery.plan import Plan
from aa_surgery.surgery.probe import with_maps

__all__ = ["plan_antialias"]

_PLACEMENTS = ("auto", "post", "pre")


def plan_antialias(
    model: nn.Module,
    *,
    filter: str | Iterable[float] | Filter | None = None,
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

    >>> import torchvision
    >>> plan = plan_antialias(torchvision.models.resnet18(), exclude="conv1")
    >>> len(plan.edits), plan.left[0].reason
    (7, "excluded by 'conv1'")
    """
    chosen = _preset(preset)
    options = _options(
        {
            "method": method,
            "filter": filter,
            "placement": placement,
            "padding_mode": "circular" if circular else padding_mode,
            "max_stride": max_stride,
        },
        preset=chosen,
    )
    sites, unread = survey(model)
    if options.method.shares_phase:
        sites += window_sites(model)
    included, excluded = _patterns(include), _patterns(exclude)
    special = dict(overrides or {})
    for argument, patterns in (("include", included), ("exclude", excluded)):
        _require_matches(argument, patterns, sites)
    _require_matches("overrides", special, sites)

    rules = chosen.rules + DEFAULT_RULES
    plan = Plan(
        type(model).__name__,
        tuple(_decide(site, options, rules, included, excluded, special) for site in sites),
        unread,
        circular=circular,
    )
    plan = with_maps(model, plan, example)
    plan = dataclasses.replace(plan, decisions=one_treatment_a_line(plan.decisions))
    return dataclasses.replace(plan, new_keys=new_keys(model, plan))


def _decide(
    site: Site,
    options: Options,
    rules: tuple[Rule, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    overrides: Mapping[str, Mapping[str, Any] | bool],
) -> Edit | Left:
    if include and not any(_matches(site, p) for p in include):
        return Left(site, "not among include")
    for pattern in exclude:
        if _matches(site, pattern):
            return Left(site, f"excluded by {pattern!r}")
    for pattern, change in overrides.items():
        if not _matches(site, pattern):
            continue
        if change is False or change is None:
            return Left(site, f"excluded by override {pattern!r}")
        if change is not True:
            values = {**_as_dict(options), **change}
            if "method" in change and "filter" not in change:
                values["filter"] = None
            options = _options(values, f"overrides[{pattern!r}]")
    for rule in rules:
        decided = rule(site, options)
        if decided is not None:
            return decided
    return Left(site, f"no rule for {site.op} ({site.kind})")


def _as_dict(options: Options) -> dict[str, Any]:
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}


def _options(
    values: Mapping[str, Any], where: str = "apply_antialias", preset: Preset | None = None
) -> Options:
    """Return checked options.

    Raises:
        SurgeryError: A name or a value is unknown.
    """
    known = [f.name for f in dataclasses.fields(Options)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise SurgeryError(
            f"{where}: unknown option {unknown[0]!r}. Options are {', '.join(known)}."
        )
    method = resolve_method(values["method"])
    values = {**values, "method": method, "filter": _filter(values["filter"], method, preset)}
    if values["placement"] not in _PLACEMENTS:
        raise SurgeryError(
            f"{where}: placement {values['placement']!r} is unknown. Use one of {_PLACEMENTS}."
        )
    if values["padding_mode"] not in PADDING_MODES:
        raise FilterError(
            f"{where}: padding_mode {values['padding_mode']!r} is unknown. "
            f"Use one of {PADDING_MODES}."
        )
    limit = values["max_stride"]
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise SurgeryError(f"{where}: max_stride must be a whole number or None, got {limit!r}.")
    return Options(**values)


def _filter(filter: Any, method: Method, preset: Preset | None) -> Filter:
    """Return the filter that was given, or that of the preset or the method."""
    if method.filter is None:
        if filter is not None and not resolve_filter(filter).is_identity:
            raise MethodError(
                f"method {method.name!r} takes no filter, got {filter!r}. Leave filter out."
            )
        return resolve_filter("identity")
    if filter is None and preset is not None and method.name == "blur":
        filter = preset.defaults.get("filter")
    return resolve_filter(method.filter if filter is None else filter)


def _preset(name: str | None) -> Preset:
    if name is None:
        return Preset()
    if name not in PRESETS:
        raise SurgeryError(f"preset {name!r} is unknown. Use one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _patterns(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _matches(site: Site, pattern: str) -> bool:
    return fnmatchcase(site.name, pattern)


def _require_matches(argument: str, patterns: Iterable[str], sites: tuple[Site, ...]) -> None:
    for pattern in patterns:
        if not any(_matches(site, pattern) for site in sites):
            names = ", ".join(site.name for site in sites[:8]) or "none"
            more = ", ..." if len(sites) > 8 else ""
            raise PatternError(
                f"{argument}: pattern {pattern!r} matches no site. Sites are: {names}{more}. "
                "Patterns are shell-style: 'layer2.*', '*.downsample.*'."
            )
