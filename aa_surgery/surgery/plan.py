"""The plan: every edit and every site left, as a record that prints and saves."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aa_surgery.errors import PlanError
from aa_surgery.filters import resolve_filter
from aa_surgery.methods import resolve_method
from aa_surgery.reports.tables import text_table
from aa_surgery.rules import Edit, Left
from aa_surgery.sites import Anchor, Site, Unread

__all__ = ["Plan"]

_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What surgery will do to a model; prints as a table, and saves as JSON.

    Attributes:
        model: The class of the model it was made for.
        decisions: An `Edit` or a `Left` for each site, in the order of the model's modules.
        unread: Forwards that could not be traced, in which sites may be that the plan lacks.
        new_keys: Keys that the methods' own weights add to the state_dict.
        circular: Whether every convolution and pool of the model gets circular borders.
    """

    model: str
    decisions: tuple[Edit | Left, ...]
    unread: tuple[Unread, ...] = ()
    new_keys: tuple[str, ...] = ()
    circular: bool = False

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
        if self.new_keys:
            summary += f"; {len(self.new_keys)} new keys, {self.new_keys[0]} the first"
        for method in {e.method.name: e.method for e in self.edits if e.method.note}.values():
            summary += f"\n{method.name}: {method.note}"
        if self.circular:
            summary += "\nevery convolution and pool gets circular borders"
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
                plain["method"] = decision.method.spec
            sites.append(plain)
        unread = [dataclasses.asdict(u) for u in self.unread]
        return {
            "format": _FORMAT,
            "model": self.model,
            "sites": sites,
            "unread": unread,
            "new_keys": list(self.new_keys),
            "circular": self.circular,
        }

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
            sites = tuple(_decision(d) for d in data["sites"])
            keys, circular = tuple(data.get("new_keys", ())), data.get("circular", False)
            return cls(data["model"], sites, unread, keys, circular)
        except (KeyError, TypeError) as error:
            raise PlanError(f"not a plan: {error!r}. Save one with Plan.save.") from error


def _row(decision: Edit | Left) -> tuple[str, ...]:
    site = decision.site
    head = (site.name, f"{site.op} ({site.kind})", _sizes(site.kernel), _sizes(site.stride))
    if isinstance(decision, Left):
        return (*head, "left", "-", decision.reason)
    where = "in its place" if decision.placement == "replace" else str(decision.anchor or "in it")
    note = f" ({decision.note})" if decision.note else ""
    return (*head, decision.placement, _how(decision), where + note)


def _how(edit: Edit) -> str:
    """Return the filter's name, and the method's before it where that is not the plain blur."""
    if edit.method.name == "blur":
        return edit.filter.name
    takes = edit.method.filter is not None and not edit.filter.is_identity
    return f"{edit.method.name} {edit.filter.name}" if takes else edit.method.name


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
    fields["method"] = resolve_method(data.get("method", "blur"))
    fields["anchor"] = _anchor(data["anchor"])
    return Edit(**fields)
