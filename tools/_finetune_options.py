"""The options of `tools/finetune.py`, and which of them a run must keep to be resumed."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.optim import list_optimizers

from aa_surgery.filters import list_filters
from aa_surgery.methods import list_methods

SURGERY = ("method", "filter", "placement", "preset", "plan")
FREE = frozenset({"checkpoint_steps", "data", "device", "output", "tensorboard", "workers"})
"""Options that change no weight; a run may be resumed with other values of these."""

DESCRIPTION = """\
Fine-tune an anti-aliased model, or any model, on a folder of images.

DATA holds train/<class>/*.jpg and val/<class>/*.jpg. OUTPUT gets last.pth.tar and
model_best.pth.tar, which timm.create_model(MODEL, checkpoint_path=...) loads, summary.csv, and
tensorboard/. The same command again goes on where a killed run was: on the CPU with the weights of
a run that was never stopped, bit by bit.
"""

EXAMPLES = """\
examples:
  timm's ResNet-50, anti-aliased, its ImageNet weights fine-tuned on other classes, the blurs faded
  in over the first 1000 steps:
    python tools/finetune.py DATA --model aa_resnet50.a1_in1k --pretrained --output out/r50 \\
        --epochs 20 --lr 1e-4 --ema 0.9998 --amp bf16 --warmup-blur 1000

  back to the accuracy of before the surgery: BatchNorm corrected first, then the untouched model
  as teacher:
    python tools/finetune.py IMAGENET --model aa_resnet50 --weights resnet50.pth \\
        --output out/r50 --epochs 3 --recalibrate 2000 --freeze-statistics --teacher self

  a model of your own, from scratch, with another filter, on four GPUs:
    torchrun --nproc-per-node 4 tools/finetune.py DATA --model nets.py:small_net \\
        --filter binomial-5 --output out/small --epochs 90 --opt sgd --lr 0.2

  the untouched baseline: the same command with --model resnet50, or without --filter.
"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options; surgery's are absent where they were not given."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_run(parser)
    _add_model(parser.add_argument_group("model"))
    _add_surgery(parser.add_argument_group("surgery (any of these implies --antialias)"))
    _add_adaptation(parser.add_argument_group("adaptation to the surgery"))
    _add_optimisation(parser.add_argument_group("optimisation (timm's names)"))
    _add_images(parser.add_argument_group("images and augmentation (timm's names)"))
    options = parser.parse_args(argv)
    if options.recalibrate and options.warmup_blur:
        parser.error(
            "--recalibrate and --warmup-blur: a warm-up begins at the untouched network, whose "
            "statistics need no correction. Choose one."
        )
    if options.warmup_epochs >= options.epochs:
        parser.error(f"--warmup-epochs {options.warmup_epochs}: as long as the whole training.")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch finds no such device here. Use cpu.")
    if options.opt not in list_optimizers():
        parser.error(f"--opt {options.opt}: timm has no such optimizer, but e.g. adamw, sgd, lamb.")
    return options


def surgery(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `apply_antialias` that were given."""
    return {name: getattr(options, name) for name in SURGERY if hasattr(options, name)}


def essential(options: argparse.Namespace) -> dict[str, str]:
    """Return what a resumed run must have in common with the one that it goes on with."""
    return {key: str(value) for key, value in vars(options).items() if key not in FREE}


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with train/ and val/")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the run's files")
    parser.add_argument(
        "--epochs", type=_positive, default=10, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda, cuda:1, cpu, ... (here: %(default)s); under torchrun each process has its own",
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="of the loader (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint-steps",
        type=int,
        default=0,
        metavar="N",
        help="write last.pth.tar every N steps too, not only each epoch",
    )
    parser.add_argument(
        "--consistency",
        type=int,
        nargs="?",
        const=32,
        metavar="PX",
        help="measure shift consistency after each epoch, for shifts of 0..PX-1 px "
        "(default: %(const)s)",
    )
    parser.add_argument(
        "--no-tensorboard", dest="tensorboard", action="store_false", help="no TensorBoard files"
    )


def _add_model(group: Any) -> None:
    group.add_argument(
        "--model",
        required=True,
        help="a timm name (aa_resnet50, resnet50.a1_in1k), torchvision:NAME, FILE.py:FUNCTION or "
        "package.module:FUNCTION",
    )
    group.add_argument(
        "--model-arg",
        type=_key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="passed to the model's constructor, e.g. drop_path_rate=0.1; may be repeated",
    )
    weights = group.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="download the host's weights")
    weights.add_argument("--weights", type=Path, metavar="FILE", help="start from this checkpoint")


def _add_surgery(group: Any) -> None:
    group.add_argument(
        "--antialias", action="store_true", help="anti-alias; a name with aa_ implies it too"
    )
    for name, options in (
        ("method", dict(choices=list_methods(), help="what subsamples without aliasing")),
        ("filter", dict(metavar="NAME", help=", ".join(list_filters()))),
        ("placement", dict(choices=("auto", "post", "pre"), help="where the blur stands")),
        ("preset", dict(metavar="NAME", help="the choices of a publication, e.g. zhang2019")),
        ("plan", dict(type=Path, metavar="FILE", help="what a saved plan says")),
    ):
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, **options)


def _add_adaptation(group: Any) -> None:
    group.add_argument(
        "--warmup-blur",
        type=int,
        default=0,
        metavar="STEPS",
        help="fade the blurs in over the first STEPS optimizer steps",
    )
    group.add_argument(
        "--recalibrate",
        type=int,
        default=0,
        metavar="N",
        help="before training, correct the norms' statistics on N images of train/",
    )
    group.add_argument(
        "--freeze-statistics",
        action="store_true",
        help="keep the batch norms' statistics as they are: for few images or small batches, and "
        "behind --recalibrate",
    )
    group.add_argument(
        "--teacher",
        metavar="self|NAME",
        help="distil from the untouched model with the weights of the start, or a timm model's",
    )
    group.add_argument(
        "--distill",
        choices=("logits", "features"),
        default="logits",
        help="what the teacher teaches (default: %(default)s); features for other classes",
    )
    group.add_argument(
        "--distill-weight", type=float, default=1.0, metavar="W", help="default: %(default)s"
    )
    group.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="of the logits (default: 1)"
    )
    group.add_argument(
        "--alias-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="with --method learned: weight in the loss of the filters' gain at what aliases",
    )


def _add_optimisation(group: Any) -> None:
    group.add_argument(
        "--batch-size",
        type=_positive,
        default=64,
        metavar="N",
        help="of each process (default: %(default)s)",
    )
    for name, default, text in (
        ("lr", 1e-4, "learning rate, of the whole batch of all processes"),
        ("min-lr", 0.0, "where the schedule ends"),
        ("warmup-lr", 1e-6, "where the warm-up of the learning rate begins"),
        ("warmup-epochs", 0, "its length"),
        ("weight-decay", 0.05, "of weights, not of biases and norms"),
        ("momentum", 0.9, "for the optimizers that have one"),
        ("smoothing", 0.0, "label smoothing"),
        ("mixup", 0.0, "mixup's alpha"),
        ("cutmix", 0.0, "cutmix's alpha"),
    ):
        group.add_argument(
            f"--{name}",
            type=type(default),
            default=default,
            metavar="N" if isinstance(default, int) else "X",
            help=f"{text} (default: %(default)s)",
        )
    group.add_argument("--opt", default="adamw", help="optimizer (default: %(default)s)")
    group.add_argument("--sched", choices=("cosine", "tanh", "poly", "constant"), default="cosine")
    group.add_argument("--layer-decay", type=float, metavar="X", help="layer-wise, e.g. 0.75")
    group.add_argument("--clip-grad", type=float, metavar="X", help="largest norm of the gradient")
    group.add_argument(
        "--ema", type=float, metavar="DECAY", help="average the weights, e.g. 0.9998"
    )
    group.add_argument("--amp", choices=("bf16", "fp16"), help="mixed precision")
    group.add_argument("--channels-last", action="store_true", help="memory format, often faster")


def _add_images(group: Any) -> None:
    group.add_argument("--size", type=int, metavar="PX", help="default: the model's")
    group.add_argument("--crop-pct", type=float, metavar="X", help="of evaluation")
    group.add_argument("--class-map", metavar="FILE", help="class folder names, one a line")
    group.add_argument("--train-split", default="train", metavar="NAME", help="folder of DATA")
    group.add_argument("--val-split", default="val", metavar="NAME", help="folder of DATA")
    group.add_argument("--scale", type=float, nargs=2, metavar="X", help="of random crops, in area")
    group.add_argument("--ratio", type=float, nargs=2, metavar="X", help="of random crops")
    group.add_argument("--train-crop-mode", choices=("rrc", "rkrc", "rkrr"))
    group.add_argument("--hflip", type=float, default=0.5, metavar="P", help="default: %(default)s")
    group.add_argument("--color-jitter", type=float, default=0.4, metavar="X")
    group.add_argument("--auto-augment", metavar="POLICY", help="e.g. rand-m9-mstd0.5-inc1")
    group.add_argument("--re-prob", type=float, default=0.0, metavar="P", help="random erasing")


def _positive(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _key_value(text: str) -> tuple[str, Any]:
    """Read `KEY=VALUE`, the value as Python where it is a literal and as text where not."""
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, e.g. drop_path_rate=0.1")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value
