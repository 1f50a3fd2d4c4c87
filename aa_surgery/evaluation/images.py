"""Images from a folder or a zip file, labelled by their folders, as normalised tensors."""

from __future__ import annotations

import copy
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from aa_surgery.errors import InputError
from aa_surgery.evaluation.labels import label_images
from aa_surgery.evaluation.pixels import UNREADABLE, check_member, check_size, decode

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFiles", "Preprocess", "iterate_batches", "preprocess_of"]

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MOST_MEMBERS = 10_000_000  # of a zip: ImageNet has 14 million in 21,000 zips
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFiles:
    """List the images of a folder or zip file; opens each only when asked for.

    The folder that holds an image labels it: `<index>_<anything>` by its number, an ImageNet
    WordNet id (`n01440764`) by its ImageNet-1k class, any other set of two or more folders by
    their alphabetical order (torchvision's ImageFolder). Images side by side in one folder that
    is none of these have no label; images beside the folders of the classes are left out. Order
    is that of the names. Symbolic links are followed.

    Attributes:
        names: Of the images, relative to `path`.
        labels: One an image, or None.
        label_source: `"index"`, `"wordnet id"`, `"folder order"` or `"none"`, as above.

    Args:
        path: A folder, a zip file, or one image.
        limit: Keep an evenly spaced sample of at most so many images.

    Raises:
        InputError: The path is missing or no zip file, a folder cannot be read, or no image lies
            there.

    Warns:
        UserWarning: Images lie beside the folders of the classes.

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
        names, labels, self.label_source = label_images(names)
        keep = _spread(len(names), limit)
        self.names: tuple[str, ...] = tuple(names[i] for i in keep)
        self.labels: tuple[int | None, ...] = tuple(labels[i] for i in keep)

    def _names(self) -> list[str]:
        if self.path.is_dir():
            return [p.relative_to(self.path).as_posix() for p in _files_in(self.path)]
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
        names = [n for n in self._zip.namelist() if not n.endswith("/")]
        if len(names) > _MOST_MEMBERS:
            raise InputError(
                f"{self.path}: {len(names)} files, more than {_MOST_MEMBERS}. Unpack it, and give "
                "the folder."
            )
        return names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, int | None]:
        return self.open(self.names[index]), self.labels[index]

    def open(self, name: str) -> Image:
        """Decode one image as 8-bit RGB; deeper ones are scaled by their type.

        Raises:
            InputError: The file cannot be read or decoded, or is larger than an image may be.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            return decode(self._bytes(name))
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            unknown = isinstance(error, UnidentifiedImageError)  # says which buffer it was
            raise InputError(
                f"{self.path / name}: cannot be read as an image "
                f"({'of no known format' if unknown else error}). "
                "Replace the file, or take it out of the folder."
            ) from error

    def _bytes(self, name: str) -> bytes:
        """Return a file's bytes, if they are no more than an image has."""
        if self._zip is not None:
            check_member(self._zip.getinfo(name))
            return self._zip.read(name)
        path = self.path / name
        check_size(path.stat().st_size)
        return path.read_bytes()

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


def _files_in(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, through symbolic links, but not back to one `above`."""
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in above:
        return
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}.") from error
    for path in inside:
        if path.is_dir():
            yield from _files_in(path, (*above, here))
        elif path.is_file():
            yield path


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
