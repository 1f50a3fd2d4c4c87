"""The arguments of the command line."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from aa_surgery.cli.adapt import add_adapt
from aa_surgery.cli.numbers import whole_number
from aa_surgery.cli.sweep import add_sweep
from aa_surgery.filters import list_filters
from aa_surgery.layers import PADDING_MODES
from aa_surgery.methods import list_methods

__all__ = ["build_parser"]

_MODEL_HELP = (
    "a timm name, with or without a tag (resnet50.a1_in1k); torchvision:NAME; or "
    "package.module:callable"
)


_MOST_PX = 2**14  # a side: an image of it fills gigabytes as floats


class _Version(argparse.Action):
    """Print the versions that a bug report needs, found only when asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        hosts = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm"))
        print(f"aa-surgery {metadata.version('aa-surgery')} ({hosts})")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `aa-surgery` and its commands.

    >>> build_parser().parse_args(["inspect", "resnet18", "--filter", "tri-4"]).filter
    'tri-4'
    """
    parser = argparse.ArgumentParser(
        prog="aa-surgery",
        description="Anti-alias a vision model: find what subsamples, and blur it there.",
        epilog="'aa-surgery COMMAND --help' lists a command's options.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspect(commands)
    _add_apply(commands)
    _add_demo(commands)
    _add_consistency(commands)
    adapt = add_adapt(commands)
    _add_model(adapt)
    _add_size(adapt, "of the views")
    _add_surgery(adapt)
    _add_json(adapt)
    _add_json(add_sweep(commands))
    return parser


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="list every downsampling op, and what would be done to it",
        description="List every downsampling op of MODEL, and what would be done to it.",
    )
    _add_model(inspect)
    inspect.add_argument(
        "--audit",
        action="store_true",
        help="run the model once before and once after, and list what subsamples unfiltered",
    )
    _add_size(inspect, "of the audit")
    _add_surgery(inspect)
    _add_json(inspect)


def _add_apply(commands: Any) -> None:
    apply = commands.add_parser(
        "apply",
        help="anti-alias a model; write its weights and the plan",
        description="Anti-alias MODEL and write its weights (names and shapes as they were) and "
        "the plan that does the same again: apply_antialias(model, plan=Plan.load(FILE)).",
    )
    _add_model(apply)
    apply.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the weights: .safetensors, or .pth, .pt or .bin for torch.save's format",
    )
    apply.add_argument(
        "--save-plan",
        type=Path,
        metavar="FILE",
        help="the plan (default: --out with the suffix .plan.json)",
    )
    _add_size(apply, "of the audit")
    _add_surgery(apply)
    _add_json(apply)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="anti-alias a network with real ImageNet weights, and show what changed",
        description="Anti-alias EfficientNet-Lite0 with its real ImageNet weights, "
        "recalibrate it, look at scikit-image's photographs, and write a picture and the numbers "
        "of what changed.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("out/demo"), metavar="DIR", help="default: %(default)s"
    )
    demo.add_argument(
        "--images",
        type=Path,
        metavar="PATH",
        help="a folder or zip of labelled ImageNet images: recalibrate on half of them, and "
        "measure on the others",
    )
    demo.add_argument("--quick", action="store_true", help="fewer shifts and fewer timed runs")
    demo.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="seed of the shifts and crops",
    )
    _add_filter(demo)
    _add_json(demo)


def _add_consistency(commands: Any) -> None:
    consistency = commands.add_parser(
        "consistency",
        help="measure how often a shift of the image leaves the predicted class as it was",
        description="Measure the shift consistency of MODEL (Zhang 2019), and its accuracy where "
        "the images' folders name their classes.",
    )
    _add_model(consistency)
    consistency.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="PATH",
        help="a folder of images, or a zip of one; <class index>_<anything>/ and ImageNet's "
        "WordNet ids label them",
    )
    consistency.add_argument(
        "--antialias",
        action="store_true",
        help="measure the model as it is, and then anti-aliased; any option of the surgery "
        "implies it",
    )
    consistency.add_argument(
        "--protocol",
        choices=("crop", "circular"),
        default="crop",
        help="two crops of a larger image, or two rolls of one crop (default: %(default)s)",
    )
    for name, least, default, text in (
        ("--passes", 1, 1, "pairs an image"),
        ("--seed", 0, 0, "seed of the shifts"),
        ("--batch-size", 1, 32, "images at a time"),
    ):
        consistency.add_argument(
            name,
            type=whole_number(least),
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    consistency.add_argument(
        "--limit",
        type=whole_number(),
        metavar="N",
        help="use N images, evenly spaced (default: all)",
    )
    consistency.add_argument(
        "--device", default="cpu", help="e.g. cuda, cuda:1, mps (default: %(default)s)"
    )
    _add_size(consistency, "of the views")
    _add_surgery(consistency)
    _add_json(consistency)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--pretrained", action="store_true", help="download the host's weights")
    parser.add_argument(
        "--checkpoint", "--weights", type=Path, metavar="FILE", help="load these weights"
    )
    parser.add_argument(
        "--model-arg",
        type=_key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="passed to the model's constructor, e.g. num_classes=10; may be repeated",
    )


def _add_size(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--size",
        type=whole_number(1, _MOST_PX),
        metavar="PX",
        help=f"side {what} (default: what the model was made for)",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, for a program to read"
    )


def _add_filter(group: Any) -> None:
    group.add_argument(
        "--filter",
        type=_filter,
        default=argparse.SUPPRESS,
        metavar="NAME|TAPS",
        help=f"one of {', '.join(list_filters())}, or taps such as 0.25,0.5,0.25",
    )


def _add_surgery(parser: argparse.ArgumentParser) -> None:
    """Add the options of `apply_antialias`; one that is not given keeps that function's default."""
    group = parser.add_argument_group("options of the surgery")
    _add_filter(group)

    def add(name: str, **kwargs: Any) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, **kwargs)

    add(
        "--method",
        type=_method,
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"what subsamples without aliasing: {', '.join(list_methods())} (default: blur)",
    )
    add(
        "--placement",
        choices=("auto", "post", "pre"),
        help="the blur behind the activation, or before the strided op",
    )
    add("--padding-mode", choices=PADDING_MODES, help="the blur's border")
    add(
        "--circular",
        action="store_true",
        help="circular borders for every convolution, pool and blur",
    )
    add(
        "--max-stride",
        type=_max_stride,
        metavar="N|none",
        help="leave ops of a larger stride as they are; none for no limit",
    )
    add("--include", action="append", metavar="PATTERN", help="treat only these; may be repeated")
    add("--exclude", action="append", metavar="PATTERN", help="leave these; may be repeated")
    add("--preset", metavar="NAME", help="the choices of a publication, e.g. zhang2019")
    add("--plan", type=Path, metavar="FILE", help="do what a saved plan says")


def _key_value(text: str) -> tuple[str, Any]:
    """Read `KEY=VALUE`, the value as Python where it is a literal and as text where not."""
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, e.g. num_classes=10")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def _filter(text: str) -> str | list[float]:
    """Read a filter's name, or its taps between commas."""
    try:
        return [float(tap) for tap in text.split(",")]
    except ValueError:
        return text


def _method(text: str) -> str | dict[str, Any]:
    """Read a method's name, and its options where some are given."""
    name, colon, options = text.partition(":")
    return {"name": name, **dict(map(_key_value, options.split(",")))} if colon else name


def _max_stride(text: str) -> int | None:
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'none'") from None
