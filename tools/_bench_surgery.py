"""Surgery cases: what `apply_antialias` takes, against `timm.create_model` of the same network."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import timm
from _bench_timing import Row, progress, summarise

from aa_surgery import apply_antialias
from aa_surgery.sweep.catalogue import representatives, subjects

WARM = "resnet18"  # what the first surgery of a process pays for once: imports and tables


def surgery_rows(rounds: int, quick: bool, only: str) -> list[Row]:
    """Return one row a timm family: the time to create, and surgery's as a ratio to it."""
    apply_antialias(timm.create_model(WARM))
    chosen = [s for s in representatives(subjects(["timm"])).values() if only in s.name]
    cases = [SurgeryCase(s.name) for s in chosen[:: 8 if quick else 1]]
    return [case.row(rounds) for case in progress(cases)]


@dataclass(frozen=True)
class SurgeryCase:
    """One architecture, created and treated anew in each round."""

    name: str
    suite: str = "surgery"

    def row(self, rounds: int) -> Row:
        """Time both steps `rounds` times, back to back."""
        creations, ratios = [], []
        for _ in range(rounds):
            gc.collect()
            start = time.perf_counter()
            model = timm.create_model(self.name)
            created = time.perf_counter()
            apply_antialias(model, max_stride=None)
            done = time.perf_counter()
            creations.append(created - start)
            ratios.append((done - created) / (created - start))
        ratio = {"apply_antialias": summarise(ratios)}
        value = 1e3 * median(creations)
        return Row("surgery", self.name, "timm.create_model", value, "ms", rounds, ratio)


def summary(rows: Sequence[Row]) -> str:
    """Return the line above the table: how many ratios are below 1, and the largest."""
    ratios = {row.name: row.ratios["apply_antialias"].median for row in rows}
    slowest = max(ratios, key=lambda name: ratios[name])
    below = sum(ratio < 1 for ratio in ratios.values())
    return (
        f"Surgery takes less time than creation for {below} of {len(ratios)} architectures; "
        f"the largest ratio is {ratios[slowest]:.2f} ({slowest})."
    )
