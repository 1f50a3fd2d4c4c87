"""Images whose order and augmentation are functions of (seed, epoch, index), and of nothing else.

timm reads the folders and makes the transforms. What is added here is that a run which begins in
the middle, or with another number of loader processes, sees what an unbroken run would have seen.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset, create_dataset, create_transform
from timm.utils import random_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from aa_surgery.errors import InputError

Key = tuple[int, int]
READABLE = -1
"""In the place of an image's number, where it could be read."""

UNREADABLE = (
    *(EOFError, OSError, SyntaxError, ValueError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises of files that are broken, or no images."""


def seed_all(*numbers: int) -> None:
    """Seed python's, numpy's and torch's generators with a mix of these numbers."""
    random_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


class SeededImages(Dataset[tuple[Tensor, int, int]]):
    """Give `(image, label, READABLE)` for the key `(epoch, index)`.

    In place of a file that cannot be read comes the next one that can, as in timm, and its own
    number instead of `READABLE`, so that it can be counted, named, or left out.
    """

    def __init__(self, images: ImageDataset, seed: int) -> None:
        self.images = images
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
        epoch, index = key
        seed_all(self.seed, epoch, index)
        for offset in range(len(self)):
            try:
                stream, label = self.images.reader[(index + offset) % len(self)]
                with stream, Image.open(stream) as image:
                    pixels = image.convert("RGB")
            except UNREADABLE:
                continue
            return self.images.transform(pixels), label, index if offset else READABLE
        raise InputError(f"{self.images.reader.root}: none of {len(self)} images can be read.")

    def name(self, index: int) -> str:
        """Return a file's path."""
        return str(self.images.reader.filename(index, absolute=True))


class EpochSampler(Sampler[Key]):
    """Draw this process's keys of an epoch, shuffled for training, from `start` batches on."""

    def __init__(
        self, count: int, batch_size: int, rank: int = 0, world: int = 1, shuffle: int | None = None
    ) -> None:
        self.count, self.batch_size, self.rank, self.world = count, batch_size, rank, world
        self.shuffle = shuffle
        self.epoch = self.start = 0

    @property
    def steps(self) -> int:
        """Whole batches in an epoch, for each process."""
        return self.count // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[Key]:
        order = np.arange(self.count)
        if self.shuffle is not None:
            order = np.random.default_rng((self.shuffle, self.epoch)).permutation(self.count)
            order = order[: self.steps * self.batch_size * self.world]
        mine = order[self.rank :: self.world][self.start * self.batch_size :]
        return iter([(self.epoch, int(index)) for index in mine])


@dataclass
class Data:
    """What a run reads: loaders of `(images, labels, READABLE or number)`.

    `shifts` has the validation images with a margin around `size` (px), if consistency is asked
    for; `adapt` the images of `--recalibrate`. The fingerprint is that of train/'s names.
    """

    train: DataLoader[Any]
    val: DataLoader[Any]
    shifts: DataLoader[Any] | None
    adapt: DataLoader[Any] | None
    size: int
    classes: int
    fingerprint: str


def class_count(images: ImageDataset) -> int:
    """Return how many classes a data set's labels can mean."""
    return max(images.reader.class_to_idx.values()) + 1


def find_images(options: argparse.Namespace) -> tuple[ImageDataset, ImageDataset]:
    """Return timm's data sets of both splits, which agree on the classes.

    Raises:
        InputError: A folder is missing or empty, or validation has a class that training has not.
    """
    train = _dataset(options, options.train_split, options.class_map)
    classes = train.reader.class_to_idx
    found = _dataset(options, options.val_split, None)
    unknown = sorted(found.reader.class_to_idx.keys() - classes.keys())
    if unknown:
        raise InputError(
            f"{found.reader.root}: {len(unknown)} folders are no class of training, {unknown[0]!r} "
            "among them. Take them out, or give every class with --class-map."
        )
    return train, _dataset(options, options.val_split, classes)


def _dataset(options: argparse.Namespace, split: str, class_map: Any) -> ImageDataset:
    if not options.data.is_dir():
        raise InputError(f"{options.data}: no such folder. Give one with train/ and val/ in it.")
    try:
        images = create_dataset("", str(options.data), split=split, class_map=class_map or "")
    except (AssertionError, RuntimeError) as error:  # timm's, of no image and of no class map
        raise InputError(f"{options.data}, split {split!r}: {error}.") from error
    if options.data.samefile(images.reader.root):  # where timm looks if there is no such folder
        raise InputError(
            f"{options.data}: no folder {split!r} in it. Expected train/<class>/ and val/<class>/; "
            "name others with --train-split and --val-split."
        )
    return images


def load_images(
    options: argparse.Namespace,
    config: dict[str, Any],
    splits: tuple[ImageDataset, ImageDataset],
    rank: int = 0,
    world: int = 1,
) -> Data:
    """Return the loaders, with timm's transforms for the model's `config`.

    Raises:
        InputError: There are fewer training images than one batch has.
    """
    train, val = splits
    colours = {key: config[key] for key in ("mean", "std", "interpolation")}
    names = ("scale", "ratio", "train_crop_mode", "hflip", "color_jitter", "re_prob")
    names += ("auto_augment",)
    augment = {name: getattr(options, name) for name in names}
    size = config["input_size"]

    def loader(images: ImageDataset, sampler: Sampler[Key], shape: Any, **kind: Any) -> Any:
        copy = ImageDataset(images.reader.root, reader=images.reader)
        copy.transform = create_transform(shape, **colours, **kind)
        return DataLoader(
            SeededImages(copy, options.seed),
            options.batch_size,
            sampler=sampler,
            num_workers=options.workers,
            pin_memory=options.device.startswith("cuda"),
            persistent_workers=options.workers > 0,
        )

    order = EpochSampler(len(train), options.batch_size, rank, world, shuffle=options.seed)
    if not order.steps:
        raise InputError(
            f"{train.reader.root}: {len(train)} images are fewer than one batch of "
            f"{options.batch_size} in each of {world} processes. Lower --batch-size."
        )
    plain = {"crop_pct": config["crop_pct"]}
    share = EpochSampler(len(val), options.batch_size, rank, world)
    shifts = adapt = None
    if options.consistency:
        wide = (size[0], *(side + options.consistency for side in size[1:]))
        shifts = loader(val, share, wide, crop_pct=1.0)
    if options.recalibrate:
        count = min(options.recalibrate, len(train))
        keys: Any = [(0, i * len(train) // count) for i in range(count)]
        adapt = loader(train, keys, size, **plain)
    return Data(
        train=loader(train, order, size, is_training=True, **augment),
        val=loader(val, share, size, **plain),
        shifts=shifts,
        adapt=adapt,
        size=min(size[1:]),
        classes=class_count(train),
        fingerprint=_fingerprint(train),
    )


def readable(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Yield images, labels, and the images' numbers, without the stand-ins for unreadable files."""
    numbers = [index for _, index in loader.sampler]
    for images, labels, bad in loader:
        here, numbers = numbers[: len(images)], numbers[len(images) :]
        warn_unreadable(loader, bad)
        keep = bad == READABLE
        if keep.any():
            found = [number for number, kept in zip(here, keep.tolist(), strict=True) if kept]
            yield images[keep], labels[keep], found


def warn_unreadable(loader: DataLoader[Any], numbers: Tensor) -> int:
    """Warn of each file among a batch's `numbers`, once a run, and return how many there are."""
    bad = numbers[numbers != READABLE].tolist()
    for index in bad:
        name = loader.dataset.name(index)
        text = f"{name}: cannot be read. Training takes the next image, validation leaves it out."
        warnings.warn(text, stacklevel=1)  # one place, so that a text is shown once
    return len(bad)


def _fingerprint(images: ImageDataset) -> str:
    root = Path(images.reader.root)
    samples = [f"{Path(path).relative_to(root)} {label}" for path, label in images.reader.samples]
    digest = hashlib.sha256("\n".join(samples).encode()).hexdigest()
    return f"{len(samples)} images, {digest[:16]}"
