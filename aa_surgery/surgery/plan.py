"""The plan: every edit and every site left, as a record that prints and saves."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

from aa_surgery.errors import PlanError, shown
from aa_surgery.reports.tables import text_table
from aa_surgery.rules import Edit, Left
from aa_surgery.sites import Unread
from aa_surgery.surgery.consistent import check_decisions
from aa_surgery.surgery.decoding import decode_record
from aa_surgery.writing import write_text

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

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            PlanError: The path is none, the file cannot be written, or the plan holds what JSON
                cannot.
        """
        try:
            text = json.dumps(self.to_dict(), indent=2, default=_number) + "\n"
            write_text(Path(path), text)
        except OSError as error:
            raise PlanError(f"plan {path}: cannot be written: {error.strerror}.") from error
        except (TypeError, ValueError) as error:
            raise PlanError(f"plan {shown(path)}: cannot be written: {error}.") from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Read a plan that `save` wrote, and check all of it.

        Raises:
            PlanError: The file is missing, or holds no plan that `plan_antialias` can have made.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise PlanError(
                f"plan {shown(str(path))}: cannot be read: {error.strerror}."
            ) from error
        except TypeError as error:
            raise PlanError(f"plan {shown(path)}: expected the path of a file.") from error
        except (ValueError, RecursionError) as error:
            raise PlanError(
                f"plan {shown(str(path))}: not JSON: {error}. Save one with Plan.save."
            ) from error
        try:
            return cls.from_dict(data)
        except PlanError as error:
            raise PlanError(f"plan {path}: {error}") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_dict` wrote.

        Raises:
            PlanError: A field is missing, of another type or out of its bounds, or the decisions
                do not agree with one another; names the field.
        """
        if not isinstance(data, Mapping) or "format" not in data:
            raise PlanError(f"not a plan: {shown(data)}. Save one with Plan.save.")
        if type(data["format"]) is not int or data["format"] != _FORMAT:
            raise PlanError(
                f"plan of format {shown(data['format'])}: this version reads format {_FORMAT}. "
                "Make it again with plan_antialias(model)."
            )
        fields = {name: value for name, value in data.items() if name != "format"}
        sites = fields.pop("sites", None)
        if not isinstance(sites, (list, tuple)):
            raise PlanError(f"not a plan: its sites are {shown(sites)}. Save one with Plan.save.")
        try:
            decisions = tuple(_decision(item, f"sites[{i}]") for i, item in enumerate(sites))
            head = decode_record(_Head, fields, "it")
        except PlanError as error:
            raise PlanError(f"not a plan: {error}") from error
        check_decisions(decisions)
        return cls(head.model, decisions, head.unread, head.new_keys, head.circular)


@dataclass(frozen=True)
class _Head:
    """What a file holds beside the decisions."""

    model: str
    unread: tuple[Unread, ...] = ()
    new_keys: tuple[str, ...] = ()
    circular: bool = False


def _decision(data: Any, where: str) -> Edit | Left:
    if isinstance(data, Mapping) and "reason" in data:
        return decode_record(Left, data, where)
    return decode_record(Edit, data, where)


def _number(value: Any) -> int:
    """Return a number of numpy as JSON holds it."""
    if isinstance(value, Integral):
        return int(value)
    raise TypeError(f"{shown(value)} has no form in JSON")


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
