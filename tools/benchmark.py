"""Measure layers, networks, memory and the surgery itself against their baselines and peers.

`python tools/benchmark.py --suite layers --write docs/performance.md`
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from _bench_layers import composer_layers, layer_cases
from _bench_networks import memory_rows, network_cases
from _bench_surgery import summary, surgery_rows
from _bench_timing import Case, Row, markdown, progress, time_case

from aa_surgery.reports.versions import cpu_name, installed_version

SUITES = ("layers", "networks", "memory", "surgery")
ROUNDS = {"layers": 25, "networks": 9, "surgery": 5}
BUDGET = {"layers": 3.0, "networks": 25.0}  # seconds a case
PEERS = ("antialiased-cnns", "timm", "kornia", "mosaicml")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    suites = SUITES if options.suite == "all" else (options.suite,)
    rows: dict[str, list[Row]] = {}
    for suite in suites:
        if suite == "memory":
            rows[suite] = memory_rows(options.batch, options.quick)
        elif suite == "surgery":
            rounds = options.rounds or ROUNDS[suite]
            rows[suite] = surgery_rows(rounds, options.quick, options.only)
        else:
            rows[suite] = timed_rows(suite, options)
    text = {suite: f"{header(options)}\n\n{markdown(rows[suite])}" for suite in suites}
    if "surgery" in text:
        text["surgery"] += f"\n\n{summary(rows['surgery'])}"
    print("\n\n".join(text.values()))
    if options.json:
        flat = [row.to_dict() for suite in suites for row in rows[suite]]
        options.json.write_text(json.dumps({"header": header(options), "rows": flat}, indent=1))
    if options.write:
        options.write.write_text(inserted(options.write.read_text(), text))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=(*SUITES, "all"), default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, help="rounds a case, instead of the suite's own")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the order within each round")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--quick", action="store_true", help="small maps: a check of the tool")
    parser.add_argument("--write", type=Path, help="file with <!-- benchmark:SUITE --> markers")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    return parser.parse_args(argv)


def timed_rows(suite: str, options: argparse.Namespace) -> list[Row]:
    build = layer_cases if suite == "layers" else network_cases
    cases: list[Case] = build(options.batch, options.quick)
    cases = [case for case in cases if options.only in case.name]
    rounds = options.rounds or ROUNDS[suite]
    budget = float("inf") if options.rounds else BUDGET[suite]
    return [time_case(case, rounds, budget, options.seed) for case in progress(cases)]


def header(options: argparse.Namespace) -> str:
    packages = ("torch", "torchvision", *PEERS)
    versions = ", ".join(f"{name} {installed_version(name)}" for name in packages)
    partial = " (its layers alone: the package itself does not import here)"
    note = partial if composer_layers() is not None and not _imports("composer") else ""
    return (
        f"`python tools/benchmark.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, "
        f"{options.threads} threads, batch {options.batch}, {cpu_name()}, "
        f"Python {platform.python_version()}, {versions}{note}. "
        "Medians of interleaved rounds; ratios with quartiles."
    )


def inserted(document: str, text: dict[str, str]) -> str:
    """Return `document` with each suite's text between its two markers."""
    for suite, new in text.items():
        marker = f"<!-- benchmark:{suite} -->"
        pattern = re.compile(f"{marker}.*?{marker}", re.DOTALL)
        if not pattern.search(document):
            raise SystemExit(f"--write: the file has no pair of {marker} lines. Add them.")
        block = f"{marker}\n{new}\n{marker}"
        document = pattern.sub(lambda _, block=block: block, document)
    return document


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
