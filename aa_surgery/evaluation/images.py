"""Images from a folder or a zip file, labelled by their folders, as normalised tensors."""

from __future__ import annotations

import copy
import io
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from aa_surgery.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFiles", "Preprocess", "iterate_batches", "preprocess_of"]

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# what PIL and zipfile raise for damaged, encrypted and foreign files
_UNREADABLE = (
    EOFError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFiles:
    """List the images of a folder or zip file; opens each only when asked for.

    The folder that holds an image labels it: `<index>_<anything>` by its number, an ImageNet
    WordNet id (`n01440764`) by its ImageNet-1k class, any other set of two or more folders by
    their alphabetical order (torchvision's ImageFolder). Images side by side in one folder that
    is none of these have no label. Order is that of the names.

    Attributes:
        names: Of the images, relative to `path`.
        labels: One an image, or None.
        label_source: `"index"`, `"wordnet id"`, `"folder order"` or `"none"`, as above.

    Args:
        path: A folder, a zip file, or one image.
        limit: Keep an evenly spaced sample of at most so many images.

    Raises:
        InputError: The path is missing or no zip file, or no image lies there.

    Example: `adapt, measure = ImageFiles("photographs.zip").readable().split(400)`
    """

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        found = self._names()
        names = sorted(n for n in found if _is_image(n))
        if not names:
            raise InputError(
                f"{self.path}: no image among {len(found)} files. Expected files that end in "
                f"{', '.join(sorted(SUFFIXES))}, such as <class>/<name>.jpg."
            )
        labels, self.label_source = _labels(names)
        keep = _spread(len(names), limit)
        self.names: tuple[str, ...] = tuple(names[i] for i in keep)
        self.labels: tuple[int | None, ...] = tuple(labels[i] for i in keep)

    def _names(self) -> list[str]:
        if self.path.is_dir():
            return [
                p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()
            ]
        if not self.path.is_file():
            raise InputError(
                f"{self.path}: no such file or folder. Give a folder of images, or a zip of one."
            )
        if self.path.suffix.lower() in SUFFIXES:
            name, self.path = self.path.name, self.path.parent
            return [name]
        try:
            self._zip = zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{self.path}: not a zip file ({error}). Give a folder of images, or a zip of one."
            ) from error
        return [n for n in self._zip.namelist() if not n.endswith("/")]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, int | None]:
        return self.open(self.names[index]), self.labels[index]

    def open(self, name: str) -> Image:
        """Decode one image as RGB; 16-bit grey is scaled to 8 bits, transparency is dropped.

        Raises:
            InputError: The file cannot be read or decoded, or is a decompression bomb.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            data = self._zip.read(name) if self._zip else (self.path / name).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                return _rgb(image)
        except (*_UNREADABLE, Image.DecompressionBombError) as error:
            unknown = isinstance(error, UnidentifiedImageError)  # says which buffer it was
            raise InputError(
                f"{self.path / name}: cannot be read as an image "
                f"({'of no known format' if unknown else error}). "
                "Replace the file, or take it out of the folder."
            ) from error

    def readable(self) -> ImageFiles:
        """Return these files without those that cannot be decoded; opens every one.

        Warns:
            UserWarning: Files were left out: how many, and the first of them.

        Raises:
            InputError: No file can be decoded.
        """
        keep: list[int] = []
        reasons: list[str] = []
        for index, name in enumerate(self.names):
            try:
                self.open(name)
            except InputError as error:
                reasons.append(str(error))
            else:
                keep.append(index)
        if not keep:
            raise InputError(f"none of {len(self)} images can be read. The first: {reasons[0]}")
        if reasons:
            warnings.warn(
                f"{len(reasons)} of {len(self)} images are left out. The first: {reasons[0]}",
                stacklevel=2,
            )
        return self._only(keep)

    def split(self, count: int) -> tuple[ImageFiles, ImageFiles]:
        """Return an evenly spaced sample of `count` images, and the images that are not in it.

        Adapt a model to the first and measure it on the second. The sample is the same at every
        call, and goes through the folders in their order, so that every class has its share.

        Raises:
            InputError: `count` leaves nothing on one side.
        """
        if not 0 < count < len(self):
            raise InputError(
                f"{self.path}: {count} of {len(self)} images cannot be split off, as each side "
                f"needs one. Give a number from 1 to {len(self) - 1}, or more images."
            )
        sample = _spread(len(self), count)
        return self._only(sample), self._only(sorted(set(range(len(self))).difference(sample)))

    def _only(self, keep: Iterable[int]) -> ImageFiles:
        """Return a view of some of the images, which reads through the same zip file."""
        view = copy.copy(self)
        view.names, view.labels = zip(*((self.names[i], self.labels[i]) for i in keep), strict=True)
        return view


def _rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):  # PIL would clip 16 bits to 8, which is white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:  # else PIL warns of a palette with transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def _is_image(name: str) -> bool:
    """Tell an image from other files and from the shadows that macOS puts into archives."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _spread(count: int, limit: int | None) -> Sequence[int]:
    if limit is None or limit >= count:
        return range(count)
    if limit < 1:
        raise InputError(f"limit {limit}: at least one image is needed.")
    return [i * count // limit for i in range(limit)]


def _labels(names: Sequence[str]) -> tuple[list[int | None], str]:
    """Return the label of each image, from the folder that holds it, and how it was read."""
    folders = [PurePosixPath(n).parent.name for n in names]
    kinds = sorted(set(folders))
    if all(re.match(r"\d+_", k) for k in kinds):
        return [int(f.split("_")[0]) for f in folders], "index"
    if all(re.fullmatch(r"n\d{8}", k) for k in kinds):
        from timm.data import ImageNetInfo

        synsets = {s: i for i, s in enumerate(ImageNetInfo().label_names())}
        unknown = [k for k in kinds if k not in synsets]
        if unknown:
            raise InputError(
                f"{len(unknown)} folders name no ImageNet-1k class, {unknown[0]} among them. "
                "Take them out, or name folders <index>_<anything> after the model's classes."
            )
        return [synsets[f] for f in folders], "wordnet id"
    if len(kinds) < 2:
        return [None] * len(names), "none"
    return [kinds.index(f) for f in folders], "folder order"


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side, keep the central square, normalise.

    Attributes:
        resize: Side of the square, px; the consistency protocols crop from it.
        mean: Mean of each channel, for values in 0..1.
        std: Standard deviation of each channel.
        interpolation: `"bicubic"` or `"bilinear"`, on the 8-bit image, anti-aliased.
    """

    resize: int = 256
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    interpolation: str = "bicubic"

    def square(self, image: Image) -> Image:
        """Return the resized central square, `resize` px a side, not normalised."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as TF

        resized = TF.resize(image, self.resize, InterpolationMode(self.interpolation))
        return TF.center_crop(resized, [self.resize, self.resize])

    def __call__(self, image: Image) -> Tensor:
        """Return the normalised square, float32 `(3, resize, resize)`."""
        from torchvision.transforms import functional as TF

        pixels = TF.to_tensor(self.square(image))
        return TF.normalize(pixels, list(self.mean), list(self.std))


def preprocess_of(model: nn.Module, size: int = 224, margin: int = 32) -> Preprocess:
    """Return the preprocessing that a timm model's weights were trained with.

    Models without a `pretrained_cfg` get ImageNet's usual mean and standard deviation.

    >>> preprocess_of(nn.Identity()).resize
    256
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    interpolation = config.get("interpolation", "bicubic")
    return Preprocess(
        resize=size + margin,
        mean=tuple(config.get("mean", _IMAGENET_MEAN)),
        std=tuple(config.get("std", _IMAGENET_STD)),
        interpolation=interpolation if interpolation in ("bicubic", "bilinear") else "bicubic",
    )


def iterate_batches(
    files: ImageFiles, preprocess: Preprocess, batch_size: int = 32
) -> Iterator[tuple[Tensor, Tensor | None, list[int]]]:
    """Yield `(images, labels, indices)` for `measure_consistency`, in the order of the names.

    Yields:
        Images `(N, 3, resize, resize)`; labels `(N,)` or None; each image's number in `files`.

    Raises:
        InputError: A file cannot be decoded, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: at least 1 is needed.")
    for start in range(0, len(files), batch_size):
        indices = list(range(start, min(start + batch_size, len(files))))
        images = torch.stack([preprocess(files[i][0]) for i in indices])
        labels = [files.labels[i] for i in indices]
        known = None if any(v is None for v in labels) else torch.tensor(labels)
        yield images, known, indices
