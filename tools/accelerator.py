"""Try anti-aliased networks on a GPU: laws, time and memory.

`python tools/accelerator.py --write docs/accelerator.md`
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _accelerator_cost import Contenders, Cost, costs
from _accelerator_laws import LAWS, Subject, outcome
from _command import said
from torch import nn

from aa_surgery import apply_antialias
from aa_surgery.reports.versions import installed_version

NETWORKS = (
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "torchvision:densenet121",
    "torchvision:convnext_tiny",
    "torchvision:swin_t",
    "timm:efficientnet_b0",
    "timm:regnety_032",
    "timm:davit_tiny",
    "timm:edgenext_small",
)
TIMED = ("torchvision:resnet50", "torchvision:convnext_tiny", "torchvision:swin_t")
UNTOUCHED, AUTO, PRE = "untouched", "auto", "pre"
INTRODUCTION = """# On a GPU

Laws that must hold, and what anti-aliasing costs there. Made by `{command}`, on {hardware}, with
{versions}. Random weights, batch {batch}, {side} px.
"""


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    options = parse(words)
    if not torch.cuda.is_available():
        print("tools/accelerator.py: torch sees no GPU here", file=sys.stderr)
        return 2
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    kept = json.loads(options.out.read_text()) if options.out.is_file() else {}
    laws: dict[str, Any] = kept.get("laws", {})
    measured: dict[str, Any] = kept.get("costs", {})
    for name in [name for name in options.networks if name in TIMED and name not in measured]:
        torch.backends.cudnn.benchmark = True
        measured[name] = [cost.to_dict() for cost in timed(name, options)]
        save(options.out, laws, measured)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    for name in [name for name in options.networks if name not in laws]:
        laws[name] = law_row(name, options)
        save(options.out, laws, measured)
    text = document(laws, measured, words, options)
    print(text)
    if options.write:
        options.write.write_text(text)
    return 0 if all(holds for row in laws.values() for holds, _ in row) else 1


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="torchvision:x, timm:x")
    parser.add_argument("--batch", type=int, default=64, help="images, where time is measured")
    parser.add_argument("--size", type=int, default=224, help="px")
    parser.add_argument(
        "--out", type=Path, default=Path("out/accelerator.json"), help="to resume from"
    )
    parser.add_argument("--write", type=Path, help="file for the tables")
    return parser.parse_args(argv)


def save(out: Path, laws: dict[str, Any], measured: dict[str, Any]) -> None:
    """Keep what is known, so that a run that was cut short goes on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"laws": laws, "costs": measured}, indent=1))


def build(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    library, _, architecture = name.partition(":")
    if library == "timm":
        import timm

        made: nn.Module = timm.create_model(architecture, **options)
    else:
        import torchvision

        made = torchvision.models.get_model(architecture, weights=None, **options)
    return made.eval()


def law_row(name: str, options: argparse.Namespace) -> list[tuple[bool, str]]:
    x = torch.randn(2, 3, options.size, options.size, generator=torch.Generator().manual_seed(1))
    subject = Subject(build(name), x, "cuda")
    row = [outcome(law, subject) for law in LAWS.values()]
    print(name, *(text for _, text in row), sep=" | ", file=sys.stderr, flush=True)
    return row


def timed(name: str, options: argparse.Namespace) -> list[Cost]:
    x = torch.randn(options.batch, 3, options.size, options.size, device="cuda")
    networks: Contenders = {
        UNTOUCHED: build(name),
        AUTO: apply_antialias(build(name)),
        PRE: apply_antialias(build(name), placement="pre"),
    }
    if name == "torchvision:resnet50":
        networks |= peers()
    return list(costs(name, {key: net.cuda() for key, net in networks.items()}, x))


def peers() -> Contenders:
    """Return the peers that are installed, each beside the same function made by ours."""
    made: dict[str, Callable[[], nn.Module]] = {
        "zhang2019, tri-4": lambda: apply_antialias(
            build("torchvision:resnet50"), preset="zhang2019", filter="tri-4"
        ),
        "antialiased-cnns": _adobe,
    }
    found: Contenders = {}
    for label, make in made.items():
        try:
            found[label] = make()
        except ImportError:
            print(f"{label} is not installed and has no column", file=sys.stderr)
    return found


def _adobe() -> nn.Module:
    import antialiased_cnns

    made: nn.Module = antialiased_cnns.resnet50(pretrained=False, filter_size=4)
    return made.eval()


def document(
    laws: dict[str, list[tuple[bool, str]]],
    measured: dict[str, list[dict[str, Any]]],
    words: Sequence[str],
    options: argparse.Namespace,
) -> str:
    """Return the page: laws by network, then time and memory."""
    versions = ", ".join(
        f"{package} {installed_version(package)}"
        for package in ("torch", "torchvision", "timm", "antialiased-cnns")
    )
    parts = [
        INTRODUCTION.format(
            command=said(["python", "tools/accelerator.py", *words]),
            hardware=torch.cuda.get_device_name(),
            versions=f"python {platform.python_version()}, {versions}",
            batch=options.batch,
            side=options.size,
        ),
        "## Laws\n",
        *(f"- **{name}**: {' '.join((law.__doc__ or '').split())}" for name, law in LAWS.items()),
        "\nA cell is the largest difference, relative to the largest output (batch 2).\n",
        _line("network", *LAWS),
        _line(*["---"] * (len(LAWS) + 1)),
        *(
            _line(n, *(t if ok else f"**{t}**" for ok, t in row))
            for n, row in _in_order(laws, options)
        ),
    ]
    if measured:
        parts += ["\n## Cost\n", COST]
    labels: list[str] = []
    for cost in [cost for _, held in _in_order(measured, options) for cost in held]:
        if list(cost["time"]) != labels:
            labels = list(cost["time"])
            parts += ["", _line("network", "way", f"{UNTOUCHED}, ms", *labels)]
            parts.append(_line(*["---"] * (len(labels) + 3)))
        cells = (f"{cost['time'][k]}; {cost['memory'][k]:.2f}" for k in labels)
        parts.append(_line(cost["name"], cost["way"], f"{cost['milliseconds']:.2f}", *cells))
    return "\n".join(parts) + "\n"


COST = (
    "Ratios to the untouched network within each of 11 rounds in shuffled order: median of the\n"
    "time, quartiles in parentheses; then that of the peak memory of one call. `zhang2019, tri-4`\n"
    "`antialiased-cnns` compute the same function."
)


def _in_order(rows: dict[str, Any], options: argparse.Namespace) -> list[tuple[str, Any]]:
    return [(name, rows[name]) for name in options.networks if name in rows]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
