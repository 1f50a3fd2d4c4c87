"""How far each method keeps a network's answer under circular shifts: the law, measured."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from _methods_variants import UNTOUCHED, keep, markdown, measured, read, surgery_of
from torch import Tensor, nn
from torch.nn.functional import interpolate

from aa_surgery import apply_antialias

ARGUMENTS = ()
NETWORK, SIZE, STRIDE = "resnet18", 128, 32  # px
ANY = ((1, 0), (0, 3), (2, 9), (5, 7), (8, 8), (13, 2), (16, 21), (31, 31))
WHOLE = ((STRIDE, 0), (2 * STRIDE, STRIDE))
COLUMNS = {
    "any": "circular borders: shifts by 1 to 31 px",
    "whole": "circular borders: by multiples of 32 px",
    "own": "the network's own (zero) borders: by 1 to 31 px",
}


def work(options: argparse.Namespace) -> Iterator[str]:
    """Measure the methods that were not measured; say which."""
    for variant in (UNTOUCHED, *options.methods):
        path = file_of(options, variant)
        if measured(path, partial(measure, variant)):
            yield path.name


def table(options: argparse.Namespace) -> str:
    """Return the table: the largest change of the logits, relative to the largest of them."""
    rows = []
    for variant in (UNTOUCHED, *options.methods):
        found = read(file_of(options, variant))
        rows.append([variant, *([f"{found[key]:.1e}" for key in COLUMNS] if found else [])])
    return markdown(["method", *COLUMNS.values()], rows)


def file_of(options: argparse.Namespace, variant: str) -> Path:
    settings = {"network": NETWORK, "size": SIZE, "shifts": [*ANY, *WHOLE], "method": variant}
    return keep(options.out, f"law-{variant}", settings)


def measure(variant: str) -> dict[str, Any]:
    """Shift an image in a circle, and compare the logits."""
    torch.manual_seed(0)
    # as trained ones are: timm's start silences the main path of each block
    net = timm.create_model(NETWORK, zero_init_last=False).eval()
    untouched = variant == UNTOUCHED
    surgery: dict[str, Any] = {"filter": "identity"} if untouched else surgery_of(variant)
    ring = apply_antialias(copy.deepcopy(net), **surgery, circular=True)
    own = net if untouched else apply_antialias(net, **surgery)
    return {"any": change(ring, ANY), "whole": change(ring, WHOLE), "own": change(own, ANY)}


def change(net: nn.Module, shifts: Sequence[tuple[int, int]]) -> float:
    """Return the largest relative change of the logits under the shifts."""
    image = noise()
    with torch.inference_mode():
        logits = net(image)
        moved = torch.cat([net(image.roll(shift, (2, 3))) for shift in shifts])
    return float((moved - logits).abs().max() / logits.abs().max())


def noise() -> Tensor:
    """Noise of three scales: of white noise, little would be left behind the first filter."""
    generator = torch.Generator().manual_seed(0)
    scales = [torch.randn(1, 3, n, n, generator=generator) for n in (SIZE, SIZE // 4, SIZE // 16)]
    return torch.stack([interpolate(s, SIZE, mode="nearest") for s in scales]).sum(0)
