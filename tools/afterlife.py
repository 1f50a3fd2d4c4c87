"""Try on the anti-aliased model what worked on the untouched one: copies, exports, training, ...

`python tools/afterlife.py --write docs/afterlife.md`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from _afterlife_models import samples
from _afterlife_table import document, fingerprint, matters
from _afterlife_workers import OPERATIONS, Cell, description, run

Key = tuple[str, str, bool]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    chosen = samples(options.only)
    operations = options.operations or list(OPERATIONS)
    cells: dict[Key, Cell] = {}
    for treated in (True, False):
        store = options.out / f"{fingerprint(treated)}.jsonl"
        cells |= {} if options.fresh else load(store)
        todo = {
            (sample, treated): [
                name
                for name in operations
                if (sample.name, name, treated) not in cells
                and (treated or options.both or matters(cells[sample.name, name, True]))
            ]
            for sample in chosen
        }
        total = sum(map(len, todo.values()))
        for cell in watched(run(todo, options.jobs, options.timeout), total):
            cells[cell.key] = cell
            append(store, cell)
    described = {name: description(name) for name in operations}
    text = document(chosen, described, cells, sys.argv[1:] if argv is None else argv)
    if options.write:
        options.write.write_text(text)
    else:
        print(text)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=(), help="texts in families' or models' names")
    parser.add_argument("--operations", nargs="*", choices=OPERATIONS, help="columns")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--timeout", type=float, default=200.0, help="seconds an operation")
    parser.add_argument("--both", action="store_true", help="try the untouched model everywhere")
    parser.add_argument("--out", type=Path, default=Path("out/afterlife"), help="to resume from")
    parser.add_argument("--fresh", action="store_true", help="begin again, whatever --out holds")
    parser.add_argument("--write", type=Path, help="file for the table")
    return parser.parse_args(argv)


def watched(cells: Iterable[Cell], total: int) -> Iterable[Cell]:
    """Yield the cells; report each on standard error."""
    start = time.monotonic()
    for done, cell in enumerate(cells, 1):
        side = "anti-aliased" if cell.treated else "untouched"
        print(
            f"[{done}/{total}, {time.monotonic() - start:.0f} s] {cell.name} {cell.operation}, "
            f"{side}: {cell.status} {cell.detail} ({cell.seconds} s)",
            file=sys.stderr,
            flush=True,
        )
        yield cell


def load(store: Path) -> dict[Key, Cell]:
    """Return the cells of an earlier run; a last line that was cut off is left out."""
    if not store.exists():
        return {}
    cells = {}
    for line in store.read_text().splitlines():
        try:
            cell = Cell(*json.loads(line))
        except ValueError:
            continue
        cells[cell.key] = cell
    return cells


def append(store: Path, cell: Cell) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a") as file:
        file.write(json.dumps(cell) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
