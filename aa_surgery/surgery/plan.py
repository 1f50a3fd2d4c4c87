"""The plan: every edit and every site left, decided before anything is touched."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from aa_surgery.errors import FilterError, PatternError, PlanError, SurgeryError
from aa_surgery.filters import Filter, resolve_filter
from aa_surgery.layers import PADDING_MODES
from aa_surgery.reports.tables import text_table
from aa_surgery.rules import DEFAULT_RULES, PRESETS, Edit, Left, Options, Preset, Rule
from aa_surgery.sites import Anchor, Site, Unread, survey

__all__ = ["Plan", "plan_antialias"]

_PLACEMENTS = ("auto", "post", "pre")
_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What surgery will do to a model; prints as a table, and saves as JSON.

    Attributes:
        model: The class of the model it was made for.
        decisions: An `Edit` or a `Left` for each site, in the order of the model's modules.
        unread: Forwards that could not be traced, in which sites may be that the plan lacks.
    """

    model: str
    decisions: tuple[Edit | Left, ...]
    unread: tuple[Unread, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What is done."""
        return tuple(d for d in self.decisions if isinstance(d, Edit))

    @property
    def left(self) -> tuple[Left, ...]:
        """What is not done, and why."""
        return tuple(d for d in self.decisions if isinstance(d, Left))

    def __str__(self) -> str:
        columns = ("site", "op", "kernel", "stride", "placement", "filter", "where, or why not")
        summary = f"{self.model}: {len(self.edits)} of {len(self.decisions)} sites to treat"
        if self.left:
            summary += f", {len(self.left)} left"
        for kind, count in Counter(u.kind for u in self.unread).items():
            first = next(u for u in self.unread if u.kind == kind)
            summary += f"\nnot read: {count} {kind}: {first.reason}"
        rows = [_row(decision) for decision in self.decisions]
        return f"{text_table(columns, rows)}\n{summary}" if rows else summary

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        sites = []
        for decision in self.decisions:
            plain = dataclasses.asdict(decision)
            if isinstance(decision, Edit):
                plain["filter"] = decision.filter.spec
            sites.append(plain)
        unread = [dataclasses.asdict(u) for u in self.unread]
        return {"format": _FORMAT, "model": self.model, "sites": sites, "unread": unread}

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            PlanError: The file is missing, or holds no plan.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except OSError as error:
            raise PlanError(f"plan {path}: cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise PlanError(f"plan {path}: not JSON: {error}. Save one with Plan.save.") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_dict` wrote."""
        try:
            if data["format"] != _FORMAT:
                raise PlanError(
                    f"plan of format {data['format']}: this version reads format {_FORMAT}. "
                    "Make it again with plan_antialias(model)."
                )
            unread = tuple(Unread(**u) for u in data["unread"])
            return cls(data["model"], tuple(_decision(d) for d in data["sites"]), unread)
        except (KeyError, TypeError) as error:
            raise PlanError(f"not a plan: {error!r}. Save one with Plan.save.") from error


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
            "filter": filter if filter is not None else chosen.defaults.get("filter", "tri-3"),
            "placement": placement,
            "padding_mode": padding_mode,
            "max_stride": max_stride,
        }
    )
    sites, unread = survey(model)
    included, excluded = _patterns(include), _patterns(exclude)
    special = dict(overrides or {})
    for argument, patterns in (("include", included), ("exclude", excluded)):
        _require_matches(argument, patterns, sites)
    _require_matches("overrides", special, sites)

    rules = chosen.rules + DEFAULT_RULES
    return Plan(
        type(model).__name__,
        tuple(_decide(site, options, rules, included, excluded, special) for site in sites),
        unread,
    )


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
            options = _options({**_as_dict(options), **change}, f"overrides[{pattern!r}]")
    for rule in rules:
        decided = rule(site, options)
        if decided is not None:
            return decided
    return Left(site, f"no rule for {site.op} ({site.kind})")


def _as_dict(options: Options) -> dict[str, Any]:
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}


def _options(values: Mapping[str, Any], where: str = "apply_antialias") -> Options:
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
    values = {**values, "filter": resolve_filter(values["filter"])}
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


def _row(decision: Edit | Left) -> tuple[str, ...]:
    site = decision.site
    head = (site.name, f"{site.op} ({site.kind})", _sizes(site.kernel), _sizes(site.stride))
    if isinstance(decision, Left):
        return (*head, "left", "-", decision.reason)
    where = "in its place" if decision.placement == "replace" else str(decision.anchor or "in it")
    note = f" ({decision.note})" if decision.note else ""
    return (*head, decision.placement, decision.filter.name, where + note)


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes)) or "-"


def _site(data: Mapping[str, Any]) -> Site:
    fields: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in data.items()
    }
    for key in ("output", "activation"):
        fields[key] = _anchor(fields[key])
    fields["given"] = tuple(map(tuple, fields["given"]))
    return Site(**fields)


def _anchor(data: Any) -> Anchor | None:
    return None if data is None else Anchor(**{**data, "given": tuple(map(tuple, data["given"]))})


def _decision(data: Mapping[str, Any]) -> Edit | Left:
    if "reason" in data:
        return Left(_site(data["site"]), data["reason"])
    fields: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) and key != "filter" else v for key, v in data.items()
    }
    fields["site"] = _site(data["site"])
    fields["filter"] = resolve_filter(data["filter"])
    fields["anchor"] = _anchor(data["anchor"])
    return Edit(**fields)
