"""Photographs that Python packages carry inside their wheels: no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aa_surgery.demo.weights import LITE_PREPROCESS, SIZE
from aa_surgery.errors import InputError
from aa_surgery.evaluation import ImageFiles

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ADAPTED_ON", "PHOTOGRAPHS", "load_photographs", "random_crops"]

PHOTOGRAPHS: dict[str, str] = {
    "cat": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "cameraman": "skimage/data/camera.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "rocket": "skimage/data/rocket.jpg",
    "astronaut": "skimage/data/astronaut.png",
}
# The rest of scikit-image's pictures are drawings, or microscope and telescope images.
ADAPTED_ON: dict[str, str] = {
    "brick": "skimage/data/brick.png",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "coins": "skimage/data/coins.png",
    "admiral": "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
}
_AREA = (0.36, 1.0)  # of a crop, as a part of its photograph: 60 to 100 % of a square's side


def load_photographs(files: Mapping[str, str] = PHOTOGRAPHS) -> dict[str, Image]:
    """Open photographs, RGB, by name.

    Args:
        files: `package/path/inside/it` by name; the demo's six by default.

    Raises:
        InputError: A package is not installed, or lacks one of them.

    >>> load_photographs()["coffee"].size
    (600, 400)
    """
    return {name: ImageFiles(_find(file))[0][0] for name, file in files.items()}


def _find(file: str) -> Path:
    package, _, inside = file.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{file}: the demo's photographs come with {package}, which is not installed. "
            'Install it with pip install "aa-surgery[demo]".'
        )
    return Path(spec.submodule_search_locations[0]) / inside


def random_crops(photographs: Mapping[str, Image], each: int, seed: int) -> Tensor:
    """Return random crops of photographs, mirrored at random, resized, normalised and shuffled.

    Args:
        photographs: By name.
        each: Crops of each.
        seed: Of the draws; the global random state is left as it was.

    Returns:
        Crops `(each * photographs, 3, 224, 224)`.

    >>> random_crops(load_photographs(), each=2, seed=0).shape
    torch.Size([12, 3, 224, 224])
    """
    from torchvision.transforms import (
        Compose,
        InterpolationMode,
        RandomHorizontalFlip,
        RandomResizedCrop,
    )

    bicubic = InterpolationMode(LITE_PREPROCESS.interpolation)
    square = RandomResizedCrop(SIZE, scale=_AREA, ratio=(1.0, 1.0), interpolation=bicubic)
    view = Compose([square, RandomHorizontalFlip(), replace(LITE_PREPROCESS, resize=SIZE)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        crops = torch.stack([view(photo) for photo in photographs.values() for _ in range(each)])
        return crops[torch.randperm(len(crops))]
