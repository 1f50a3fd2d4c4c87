"""The photographs that scikit-image carries inside its wheel: no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from aa_surgery.errors import InputError
from aa_surgery.evaluation import ImageFiles

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PHOTOGRAPHS", "load_photographs"]

# The rest of scikit-image's pictures are drawings, textures, or microscope and telescope images.
PHOTOGRAPHS: dict[str, str] = {
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "cameraman": "camera.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
    "astronaut": "astronaut.png",
}


def load_photographs() -> dict[str, Image]:
    """Open the six photographs, RGB, by name.

    Raises:
        InputError: scikit-image is not installed, or lacks one of them.

    >>> load_photographs()["coffee"].size
    (600, 400)
    """
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the demo's photographs come with scikit-image, which is not installed. "
            'Install it with pip install "aa-surgery[demo]".'
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = ImageFiles(folder)
    return {name: files.open(file) for name, file in PHOTOGRAPHS.items()}
