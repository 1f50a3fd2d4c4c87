"""Train a small ResNet and a VGG on CIFAR-10, with and without blurs, and compare them.

`python tools/cifar10.py DATA --write docs/cifar10.md`; DATA holds train/<class>/ and test/<class>/.
Runs that are there already are not repeated, and one that was killed goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import _cifar_models
import finetune
import torch
import torch.nn.functional as F
from _cifar_table import Result, inserted, table
from _command import said
from _finetune_options import parse as parse_finetune
from _methods_variants import PENALISED, PENALTY, surgery_of
from timm.models import load_state_dict
from torch import Tensor

from aa_surgery import apply_antialias
from aa_surgery.cli.files import replacing
from aa_surgery.errors import InputError, SurgeryError
from aa_surgery.evaluation import ImageFiles, Preprocess, iterate_batches, measure_consistency
from aa_surgery.reports.versions import cpu_name, installed_version

MODELS = ("resnet", "vgg")
FILTERS = ("none", "tri-3", "binomial-5", "halfband-7")
SIZE, PAD = 32, 4
FOUND = "test.json"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    text = ""
    try:
        for results in study(options):
            text = f"{header(options, argv)}\n\n{table(results)}"
            if options.write:
                document = inserted(options.write.read_text(), text)
                with replacing(options.write) as path:
                    path.write_text(document)
    except (SurgeryError, OSError) as error:
        finetune.say("error", str(error))
        return finetune.BAD_INPUT
    print(text)
    return 0


def study(options: argparse.Namespace) -> Iterator[list[Result]]:
    """Train and measure what is missing, seed by seed; yield the results after each run."""
    images = subset(options)
    test: list[Any] = []
    for seed, model, taps, folder in runs(options):
        result = folder / FOUND
        if not result.exists():
            weights = train(options, images, folder, model, taps, seed)
            test = test or load_test(options.data)
            measured = json.dumps(measure(options, weights, model, taps, test))
            with replacing(result) as path:
                path.write_text(measured)
            print(folder.name, measured, flush=True)
        yield found(options)


def runs(options: argparse.Namespace) -> Iterator[tuple[int, str, str, Path]]:
    """Yield seed, model, what anti-aliases it, and the folder of each run, in their order."""
    place = options.out / f"{options.images}x{options.epochs}-width-{options.width}"
    for seed, model, taps in product(options.seeds, options.models, options.filters):
        yield seed, model, taps, place / f"{model}-{taps}-{seed}"


def found(options: argparse.Namespace) -> list[Result]:
    """Return the results of the runs that are done."""
    return [
        {"model": model, "filter": taps, "seed": seed, **json.loads((folder / FOUND).read_text())}
        for seed, model, taps, folder in runs(options)
        if (folder / FOUND).exists()
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, default=Path("out/cifar10"), help="the runs' folder")
    parser.add_argument("--images", type=int, default=49_500, help="to train on")
    parser.add_argument(
        "--held-out", type=int, default=500, help="images of train/ for the runs' own summaries"
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--filters",
        nargs="+",
        default=FILTERS,
        help=f"filters, METHOD, METHOD+FILTER or {PENALISED}; none is the baseline",
    )
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path, help="file with two <!-- cifar10 --> markers")
    return parser.parse_args(argv)


def subset(options: argparse.Namespace) -> Path:
    """Make a folder of links: train/ with as many images of each class, and val/ held out."""
    folder = options.out / f"images-{options.images}"
    classes = sorted(p for p in (options.data / "train").glob("*") if p.is_dir())
    if not classes:
        raise InputError(
            f"{options.data}: no train/<class>/ in it. Extract CIFAR-10's images there."
        )
    for split, count in (("train", options.images), ("val", options.held_out)):
        for place in classes:
            files = sorted(place.glob("*.*"))
            if len(files) < (options.images + options.held_out) // len(classes):
                raise InputError(f"{place}: {len(files)} images; lower --images.")
            each = count // len(classes)
            (folder / split / place.name).mkdir(parents=True, exist_ok=True)
            for file in files[:each] if split == "train" else files[-each:]:
                link = folder / split / place.name / file.name
                if not link.exists():
                    link.symlink_to(file.resolve())
    return folder


def train(
    options: argparse.Namespace, images: Path, folder: Path, model: str, taps: str, seed: int
) -> Path:
    """Train one variant with `tools/finetune.py`; return its last weights, chosen by nothing."""
    warmup = min(1, options.epochs - 1)
    command = [
        *(str(images), "--output", str(folder), "--model", f"{_cifar_models.__file__}:{model}"),
        *("--model-arg", f"width={options.width}", "--seed", str(seed)),
        *("--epochs", str(options.epochs), "--warmup-epochs", str(warmup), "--lr", str(options.lr)),
        *("--batch-size", str(options.batch_size), "--size", str(SIZE), "--crop-pct", "1"),
        # flips alone: shifts among the augmentations would teach part of what the blurs give
        *("--scale", "1", "1", "--ratio", "1", "1", "--color-jitter", "0"),
        *("--no-tensorboard", "--device", options.device, "--workers", str(options.workers)),
        "--channels-last",
    ]
    for name, value in {} if taps == "none" else surgery_of(taps).items():
        command += [f"--{name}", value]
    if taps == PENALISED:
        command += ["--alias-penalty", str(PENALTY)]
    finetune.finetune(parse_finetune(command))
    return folder / "last.pth.tar"


def load_test(data: Path) -> list[tuple[Tensor, Tensor | None, list[int]]]:
    """Return the test images, normalised as in training."""
    files = ImageFiles(data / "test")
    return list(iterate_batches(files, Preprocess(resize=SIZE), batch_size=250))


def measure(
    options: argparse.Namespace, weights: Path, model: str, taps: str, test: list[Any]
) -> dict[str, Any]:
    """Measure accuracy and shift consistency, by crops of the padded images and by rolls."""
    classes = 1 + max(int(labels.max()) for _, labels, _ in test)
    network = getattr(_cifar_models, model)(classes, options.width)
    if taps != "none":
        apply_antialias(network, **surgery_of(taps))
    network.load_state_dict(load_state_dict(str(weights)))
    network.to(options.device, memory_format=torch.channels_last)
    padded = ((F.pad(x, (PAD,) * 4, mode="reflect"), y, i) for x, y, i in test)
    crops = measure_consistency(network, padded, size=SIZE, margin=2 * PAD)
    rolled = ((x, None, i) for x, _, i in test)
    rolls = measure_consistency(network, rolled, protocol="circular", size=SIZE, margin=SIZE // 2)
    return {
        "images": crops.images,
        "top1": crops.top1,
        "crops": crops.consistency,
        "rolls": rolls.consistency,
    }


def header(options: argparse.Namespace, argv: Sequence[str] | None) -> str:
    versions = ", ".join(f"{name} {installed_version(name)}" for name in ("torch", "timm"))
    command = said(sys.argv[1:] if argv is None else argv)
    cuda = options.device.startswith("cuda")
    where = torch.cuda.get_device_name() if cuda else f"{options.threads} thread(s) of {cpu_name()}"
    return (
        f"`python tools/cifar10.py {command}`, {datetime.date.today()}, {options.images} images, "
        f"{options.epochs} epochs, seeds {', '.join(map(str, options.seeds))}, {where}, "
        f"Python {platform.python_version()}, {versions}."
    )


if __name__ == "__main__":
    raise SystemExit(main())
