"""The cells of the table: one model, one filter, one placement; each runs once, into one file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import _accuracy_weights
import torch

from aa_surgery import apply_antialias, plan_antialias
from aa_surgery.adapt.measure import Measured
from aa_surgery.adapt.run import adapt_model
from aa_surgery.cli.files import replacing
from aa_surgery.evaluation import ConsistencyResult, ImageFiles, count_flops, count_parameters
from aa_surgery.layers import canonical_form

Result = dict[str, Any]
BLUR = "blur"


@dataclass(frozen=True)
class Cell:
    """Hold what a cell's numbers depend on."""

    model: str
    filter: str  # empty: the method's own
    placement: str
    images: str  # the absolute path
    limit: int | None
    adapt_images: int
    passes: int
    seed: int
    device: str
    steps: int = 0  # of distillation; 0 for none
    train: str = ""  # what distillation trains
    method: str = BLUR

    @property
    def name(self) -> str:
        digest = hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()[:10]
        kind = f"-{self.steps}-steps" if self.steps else ""
        method = "" if self.method == BLUR else f"{self.method}-"
        taps = f"{self.filter}-" if self.filter else ""
        return f"{self.model}-{method}{taps}{self.placement}{kind}-{digest}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """The fields; the method only where it is another, so that older cells keep their names."""
        fields = asdict(self)
        return {k: v for k, v in fields.items() if (k, v) != ("method", BLUR)}

    @property
    def surgery(self) -> dict[str, Any]:
        """The keywords of `apply_antialias`."""
        taps = self.filter or "auto"
        return {"method": self.method, "filter": taps, "placement": self.placement}

    def same_photographs(self, other: dict[str, Any]) -> bool:
        """Tell whether another cell's settings are those of this model's original."""
        free = ("filter", "placement", "steps", "train", "method")
        return all(
            other[f.name] == getattr(self, f.name) for f in fields(self) if f.name not in free
        )


def read(out: Path, cell: Cell) -> Result | None:
    """Return what a cell found, None where it has not run."""
    path = out / cell.name
    return json.loads(path.read_text()) if path.is_file() else None


def run(cell: Cell, out: Path, weights_dir: Path | None) -> str:
    """Run a cell and write its file; return what to say of it."""
    start = time.perf_counter()
    model = _accuracy_weights.load(cell.model, weights_dir)
    size = model.pretrained_cfg["input_size"][1]
    plan = plan_antialias(model, **cell.surgery)
    cost = _cost(cell, size, weights_dir)
    model.to(cell.device)
    torch.manual_seed(cell.seed)  # of weights that a method starts at random
    done = adapt_model(
        model,
        ImageFiles(cell.images, limit=cell.limit),
        plan=plan,
        distilling={"steps": cell.steps, "train": cell.train} if cell.steps else None,
        adapt_images=cell.adapt_images,
        size=size,
        passes=cell.passes,
        seed=cell.seed,
        known=dict(_known(cell, out)),
    )
    steps = {
        step.name: {"minutes": step.minutes, "note": step.note, "measured": asdict(step.measured)}
        for step in done.steps
    }
    found = {"cell": cell.settings, "size": size, "adapted_on": done.adapted_on, **cost}
    with replacing(out / cell.name) as path:
        path.write_text(json.dumps({**found, "steps": steps}))
    return f"{cell.name}, {time.perf_counter() - start:.0f} s\n{done}"


def _known(cell: Cell, out: Path) -> Iterator[tuple[str, Measured]]:
    """Yield what other cells have measured of the same photographs and the same weights."""
    for path in sorted(out.glob(f"{cell.model}-*.json")):
        found = json.loads(path.read_text())
        theirs = found["cell"]
        if cell.same_photographs(theirs):
            same = Cell(**theirs).surgery == cell.surgery
            for name in ("original", "surgery", "recalibrated") if same else ("original",):
                yield name, _measured(found["steps"][name]["measured"])


def _measured(plain: dict[str, Any]) -> Measured:
    consistency = plain["consistency"]
    result = ConsistencyResult(**{**consistency, "interval": tuple(consistency["interval"])})
    return Measured(**{**plain, "consistency": result, "predicted": tuple(plain["predicted"])})


def _cost(cell: Cell, size: int, weights_dir: Path | None) -> dict[str, int]:
    """Return FLOPs and parameters, before and after."""
    model = _accuracy_weights.load(cell.model, weights_dir)
    image = torch.zeros(1, 3, size, size)
    before = count_flops(model, image), count_parameters(model)
    apply_antialias(model, **cell.surgery)
    with canonical_form():  # the faster forms of the blur are sums, which are not counted
        after = count_flops(model, image), count_parameters(model)
    return {
        "flops_before": before[0],
        "flops_after": after[0],
        "parameters_before": before[1],
        "parameters_after": after[1],
    }
