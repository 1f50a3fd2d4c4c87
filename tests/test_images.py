"""Photographs from folders and zips: their labels, their preprocessing, and broken ones."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

from aa_surgery.errors import InputError
from aa_surgery.evaluation import (
    ImageFiles,
    Preprocess,
    iterate_batches,
    preprocess_of,
)


def write_image(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 128 if mode in "L" else (200, 100, 50)).save(path)
    return path


@pytest.mark.parametrize(
    ("folders", "labels", "source"),
    [
        (["0008_n01514859", "0002_n01484850"], [2, 8], "index"),
        (["n01514859", "n01484850"], [2, 8], "wordnet id"),
        (["dog", "cat"], [0, 1], "folder order"),
        (["photos"], [None], "none"),
        (["."], [None], "none"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_folders_label_their_images(
    tmp_path: Path, folders: list[str], labels: list[int], source: str, zipped: bool
) -> None:
    root = tmp_path / "data"
    for folder in folders:
        write_image(root / folder / "x.JPEG")
    (root / "README.txt").write_text("not an image")
    if zipped:
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for path in root.rglob("*"):
                archive.write(path, path.relative_to(root))
            archive.writestr("__MACOSX/._x.jpg", b"shadow")
        root = tmp_path / "data.zip"
    files = ImageFiles(root)
    assert list(files.labels) == labels
    assert files.label_source == source
    assert files[0][0].size == (40, 30)


def test_batches_carry_images_labels_and_numbers(tmp_path: Path) -> None:
    for i in range(5):
        write_image(tmp_path / f"{i:04d}_x" / "a.png", mode="L" if i % 2 else "RGB")
    files = ImageFiles(tmp_path)
    batches = list(iterate_batches(files, Preprocess(resize=24), batch_size=2))
    assert [b[0].shape for b in batches] == [(2, 3, 24, 24), (2, 3, 24, 24), (1, 3, 24, 24)]
    assert torch.cat([b[1] for b in batches]).tolist() == [0, 1, 2, 3, 4]
    assert [i for b in batches for i in b[2]] == [0, 1, 2, 3, 4]
    assert len(ImageFiles(tmp_path, limit=2)) == 2
    assert len(ImageFiles(tmp_path / "0003_x" / "a.png")) == 1


def test_preprocess_normalises_and_keeps_the_centre() -> None:
    image = Image.new("RGB", (60, 30), (0, 0, 0))
    image.paste((255, 255, 255), (15, 0, 45, 30))
    pixels = Preprocess(resize=30, mean=(0.5,) * 3, std=(0.25,) * 3)(image)
    assert pixels.shape == (3, 30, 30)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 2.0))


def test_preprocess_of_reads_timms_configuration() -> None:
    import timm

    model = timm.create_model("tf_efficientnet_lite0")
    assert preprocess_of(model).mean == (0.5, 0.5, 0.5)
    assert preprocess_of(nn.Identity(), size=128).resize == 160


# Splits


@pytest.mark.parametrize("count", [1, 4, 7, 9])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_split_shares_out_every_image_once(tmp_path: Path, count: int, zipped: bool) -> None:
    root = tmp_path / "data"
    for i in range(10):
        write_image(root / f"{i // 2:04d}_x" / f"{i}.png")
    if zipped:
        root = Path(shutil.make_archive(str(root), "zip", root))
    files = ImageFiles(root)
    parts = files.split(count)
    assert [len(part) for part in parts] == [count, 10 - count]
    both = [(name, label) for p in parts for name, label in zip(p.names, p.labels, strict=True)]
    assert sorted(both) == list(zip(files.names, files.labels, strict=True))
    assert [part.names for part in files.split(count)] == [part.names for part in parts]
    for part in parts:
        assert list(part.names) == sorted(part.names)
        assert part[0][0].size == (40, 30)
    assert len(files) == 10


def test_half_a_split_of_pairs_has_every_class_on_both_sides(tmp_path: Path) -> None:
    for i in range(10):
        write_image(tmp_path / f"{i // 2:04d}_x" / f"{i}.png")
    for part in ImageFiles(tmp_path).split(5):
        assert part.labels == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("count", [-1, 0, 2, 3])
def test_a_split_with_an_empty_side_is_refused(tmp_path: Path, count: int) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match=r"of 2 images cannot be split off.*from 1 to 1"):
        ImageFiles(tmp_path).split(count)


# Unusual images


def grey16(path: Path) -> None:
    values = np.linspace(0, 65535, 48 * 48).astype(np.uint16).reshape(48, 48)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_tones(tmp_path: Path, suffix: str) -> None:
    grey16(tmp_path / f"a.{suffix}")
    levels = np.asarray(ImageFiles(tmp_path)[0][0])
    assert levels.shape == (48, 48, 3)
    expected = np.linspace(0, 255, 48 * 48).reshape(48, 48)
    assert np.abs(levels - expected[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_gives_the_photograph(tmp_path: Path, mode: str) -> None:
    photograph = Image.fromarray(data.chelsea()).resize((90, 60))
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    photograph.convert(mode).save(tmp_path / f"a.{suffix}")
    image, _ = ImageFiles(tmp_path)[0]
    expected = photograph.convert("L" if mode in ("L", "LA") else "RGB").convert("RGB")
    errors = np.abs(np.asarray(image, float) - np.asarray(expected, float))
    assert image.mode == "RGB"
    assert errors.mean() < 20


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_a_transparent_palette_warns_of_nothing(tmp_path: Path, transparency: int | bytes) -> None:
    photograph = Image.fromarray(data.chelsea()).quantize(16)
    photograph.save(tmp_path / "a.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, _ = ImageFiles(tmp_path)[0]
    assert np.array_equal(np.asarray(image), np.asarray(photograph.convert("RGB")))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (2000, 3)])
def test_the_smallest_images_are_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    write_image(tmp_path / "a.png", size)
    pixels = Preprocess(resize=24, mean=(0.0,) * 3, std=(1.0,) * 3)(ImageFiles(tmp_path)[0][0])
    colour = torch.tensor([200, 100, 50]).view(3, 1, 1) / 255
    torch.testing.assert_close(pixels, colour.expand(3, 24, 24))


# Bad input


def corrupt(path: Path) -> Path:
    """An image cut in half."""
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, format="JPEG")
    path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    return path


def mixed_folder(root: Path) -> list[str]:
    """Fill a folder with good, unusual and broken images; return the names of the broken ones."""
    for name, mode in (("a", "L"), ("c", "CMYK"), ("e", "RGB"), ("k", "YCbCr")):
        write_image(root / f"{ord(name):04d}_x" / f"{name}.jpg", mode=mode)
    write_image(root / "0099_x" / "one.png", (1, 1))
    grey16(root / "0099_x" / "deep.png")
    broken = [root / "0099_x" / f"{name}.jpg" for name in ("b", "text", "zero")]
    corrupt(broken[0])
    broken[1].write_text("not a photograph")
    broken[2].write_bytes(b"")
    return [path.relative_to(root).as_posix() for path in broken]


@pytest.mark.parametrize("zipped", [False, True])
def test_broken_images_are_left_out_with_one_warning(tmp_path: Path, zipped: bool) -> None:
    root = tmp_path / "data"
    broken = mixed_folder(root)
    if zipped:
        root = Path(shutil.make_archive(str(root), "zip", root))
    files = ImageFiles(root)
    with pytest.warns(UserWarning, match="left out") as caught:
        good = files.readable()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("3 of 9 images are left out. The first: ")
    assert [name for name in broken if name in message] == broken[:1]
    assert caught[0].filename == __file__
    assert set(good.names) == set(files.names).difference(broken)
    labels = dict(zip(files.names, files.labels, strict=True))
    assert good.labels == tuple(labels[name] for name in good.names)
    batches = list(iterate_batches(good, Preprocess(resize=24), batch_size=4))
    assert [len(b[0]) for b in batches] == [4, 2]
    assert torch.cat([b[1] for b in batches]).tolist() == list(good.labels)


def test_a_folder_of_readable_images_warns_of_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ImageFiles(tmp_path).readable().names == ("a.png",)


def test_a_folder_without_one_readable_image_is_an_error(tmp_path: Path) -> None:
    corrupt(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 2 images can be read\..*a\.jpg: cannot be read"):
        ImageFiles(tmp_path).readable()


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", (100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"a\.png: cannot be read .*bomb"):
        ImageFiles(tmp_path)[0]


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # PIL's, of TIFF
@pytest.mark.parametrize("name", ["jpg", "png", "tif", "webp", "bmp", "ppm"])
def test_images_cut_anywhere_are_read_or_named(tmp_path: Path, name: str) -> None:
    whole = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name, name)
    Image.fromarray(data.chelsea()).resize((60, 40)).save(whole, format=kind)
    path = tmp_path / f"a.{name}"
    for keep in range(0, len(whole.getvalue()), 97):
        path.write_bytes(whole.getvalue()[:keep])
        with contextlib.suppress(InputError):
            assert ImageFiles(tmp_path)[0][0].mode == "RGB"


@pytest.mark.parametrize("content", [None, b"", b"plain text"])
def test_a_corrupt_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    write_image(tmp_path / "a.jpg")
    broken = tmp_path / "broken.jpg"
    corrupt(broken) if content is None else broken.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.jpg: cannot be read .*Replace the file") as said:
        list(iterate_batches(ImageFiles(tmp_path), Preprocess(resize=24)))
    assert "object at" not in str(said.value)


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.jpg")
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.write(image, "a.jpg")
    data = bytearray(archive.read_bytes())
    data[60] ^= 0xFF  # inside the stored image, so its checksum fails
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read"):
        ImageFiles(archive)[0]


def test_bad_paths_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        ImageFiles(tmp_path / "missing")
    with pytest.raises(InputError, match=r"no image among 0 files.*<class>/<name>\.jpg"):
        ImageFiles(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"not a zip file"):
        ImageFiles(tmp_path / "a.tar")
    write_image(tmp_path / "n99999999" / "a.jpg")
    with pytest.raises(InputError, match="n99999999"):
        ImageFiles(tmp_path)
