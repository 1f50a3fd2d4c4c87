"""What a sweep writes down: one row for an architecture and a group of laws, no times in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aa_surgery.errors import InputError
from aa_surgery.writing import write_text

__all__ = ["LAWS", "Journal", "Row", "read_results", "write_results"]

LAWS = ("structural", "identity")


@dataclass(frozen=True)
class Row:
    """The laws of one group on one architecture.

    Attributes:
        source: Where the architecture comes from.
        name: Its name.
        family: The module that defines it.
        laws: One of `LAWS`.
        found: What the examination counted: the fields of `Found` or `Identity`.
        held: Names of the laws that held.
        broken: Names of the laws that broke, and how.
        failure: Why there is nothing else; empty if there is.
    """

    source: str
    name: str
    family: str
    laws: str
    found: dict[str, Any] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from other rows."""
        return self.source, self.name, self.laws

    @property
    def problems(self) -> list[str]:
        """What is wrong, one sentence each; empty where all is well."""
        broken = [f"{law}: {what}" for law, what in self.broken.items()]
        return [*([self.failure] if self.failure else []), *broken]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """Return the row that `asdict` made plain."""
        return cls(**{**data, "held": tuple(data["held"])})


class Journal:
    """Rows in a file of JSON lines, appended as they come, so that a sweep can go on later.

    The first line holds the versions; a file of other versions is begun anew.
    """

    def __init__(self, path: Path, versions: Mapping[str, str], fresh: bool = False) -> None:
        self._path = path
        self.rows: dict[tuple[str, str, str], Row] = {}
        header = {"versions": dict(versions)}
        lines = path.read_text().splitlines() if path.exists() and not fresh else []
        read = [line for line in map(_parsed, lines) if line is not None]
        if read[:1] == [header]:
            self.rows = {row.key: row for row in map(Row.from_dict, read[1:])}
        # Written anew, so that no half line of an interrupted sweep stays in it.
        write_text(path, "".join(f"{json.dumps(x)}\n" for x in [header, *self._plain()]))

    def _plain(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows.values()]

    def add(self, row: Row) -> None:
        """Append one row; the last one of its key counts."""
        self.rows[row.key] = row
        with self._path.open("a") as file:
            file.write(f"{json.dumps(asdict(row))}\n")


def _parsed(line: str) -> Any:
    """Return a line's object, None for one that was cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def write_results(path: Path, versions: Mapping[str, str], rows: Iterable[Row]) -> None:
    """Write the sorted rows as one JSON object."""
    plain = [asdict(row) for row in sorted(rows, key=lambda row: row.key)]
    write_text(path, json.dumps({"versions": dict(versions), "rows": plain}, indent=1) + "\n")


def read_results(path: Path) -> tuple[dict[str, str], list[Row]]:
    """Read what `write_results` wrote: the versions and the rows.

    Raises:
        InputError: The file is missing, or holds no results.
    """
    try:
        data = json.loads(path.read_text())
        return data["versions"], [Row.from_dict(row) for row in data["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no results of a sweep ({error}). Make them with `aa-surgery sweep`."
        ) from error
