"""The audit's result: one row a sampling op, and its plain-text table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["AuditReport", "AuditRow", "Verdict"]

Verdict = Literal["treated", "left", "untreated"]


@dataclass(frozen=True)
class AuditRow:
    """One op that lowers the spatial sampling rate.

    Attributes:
        name: Qualified name of the module that ran it; `""` is the model's own forward.
        op: `"conv"`, `"max_pool"`, `"avg_pool"`, `"slice"`, `"space_to_depth"`, `"unfold"`,
            `"interpolate"` or `"adaptive_pool"`.
        stride: Factor by which the rate falls, one a spatial axis; that of a resampling need not
            be whole.
        size_in: Spatial size of the input, px; of several calls, the first.
        size_out: Spatial size of the output, px.
        verdict: `"treated"` by a low-pass filter, `"left"` by the plan or for its integers, or
            `"untreated"`.
        gain: The largest gain of what folds onto a flat map; None where no filter was seen.
        reason: Why the verdict.
        calls: How often it ran.
    """

    name: str
    op: str
    stride: tuple[float, ...]
    size_in: tuple[int, ...]
    size_out: tuple[int, ...]
    verdict: Verdict
    gain: float | None
    reason: str
    calls: int = 1


@dataclass(frozen=True)
class AuditReport:
    """Every sampling op of one run of a model.

    Attributes:
        rows: In the order in which they ran.
        unread: Ops that lowered the number of positions in a way that the audit cannot read, as
            `"module path: op"`.
        broken: Why the model does not run as it was treated: each treatment that is half gone.
    """

    rows: tuple[AuditRow, ...]
    unread: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def treated(self) -> tuple[AuditRow, ...]:
        """The rows that have a low-pass filter."""
        return self._of("treated")

    @property
    def left(self) -> tuple[AuditRow, ...]:
        """The rows that were left on purpose, with the reason."""
        return self._of("left")

    @property
    def untreated(self) -> tuple[AuditRow, ...]:
        """The rows that have no low-pass filter, and no reason for it."""
        return self._of("untreated")

    @property
    def ok(self) -> bool:
        """Whether nothing is untreated, and no treatment half gone."""
        return not self.untreated and not self.broken

    def _of(self, verdict: Verdict) -> tuple[AuditRow, ...]:
        return tuple(r for r in self.rows if r.verdict == verdict)

    def to_dict(self) -> dict[str, Any]:
        """Return what `json.dumps` writes."""
        return {
            "rows": [asdict(r) for r in self.rows],
            "unread": list(self.unread),
            "broken": list(self.broken),
            "ok": self.ok,
        }

    def __str__(self) -> str:
        lines = _table([_HEADER, *(_cells(r) for r in self.rows)]) if self.rows else []
        lines += [f"cannot read: {u}" for u in self.unread]
        lines += [f"broken: {b}" for b in self.broken]
        counts = [len(self.treated), len(self.left), len(self.untreated)]
        lines.append(
            f"{len(self.rows)} sampling ops: {counts[0]} treated, {counts[1]} left, "
            f"{counts[2]} untreated"
        )
        return "\n".join(lines)


_HEADER = ("name", "op", "stride", "size", "calls", "verdict", "gain", "reason")


def _cells(row: AuditRow) -> tuple[str, ...]:
    return (
        row.name or "(model)",
        row.op,
        "x".join(f"{s:g}" for s in row.stride),
        f"{'x'.join(map(str, row.size_in))} -> {'x'.join(map(str, row.size_out))}",
        str(row.calls),
        row.verdict,
        "-" if row.gain is None else f"{row.gain:.2f}",
        row.reason,
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]
