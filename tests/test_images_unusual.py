"""Images that are deep, huge, linked, or beside their classes."""

from __future__ import annotations

import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aa_surgery.errors import InputError
from aa_surgery.evaluation import ImageFiles

RAMP = np.linspace(0, 1, 48 * 48).reshape(48, 48)


def write_image(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)
    return path


def tiff_of(values: np.ndarray, kind: int) -> bytes:
    """A TIFF of one channel, written by hand: PIL writes no unsigned or signed ones."""
    data = values.tobytes()
    rows, columns = values.shape
    tags = [
        *((256, columns), (257, rows), (258, 8 * values.itemsize), (259, 1), (262, 1), (273, 8)),
        *((277, 1), (278, rows), (279, len(data)), (339, kind)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size, with no more pixels than fit into a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("dtype", "kind", "top"),
    [
        *((np.uint16, 1, 2**16 - 1), (np.int16, 2, 2**15 - 1), (np.uint32, 1, 2**32 - 1)),
        *((np.int32, 2, 2**31 - 1), (np.float32, 3, 1), (np.float32, 3, 255)),
        *((np.float32, 3, 65535), (np.float32, 3, 1e6)),
    ],
)
def test_deep_tones_keep_their_order_and_range(
    tmp_path: Path, dtype: Any, kind: int, top: float
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff_of((RAMP * top).astype(dtype), kind))
    levels = np.asarray(ImageFiles(tmp_path)[0][0])
    assert levels.shape == (48, 48, 3)
    assert np.abs(levels - 255 * RAMP[..., None]).max() <= 1


def test_16_bits_in_every_format(tmp_path: Path) -> None:
    values = (RAMP * 65535).astype(np.uint16)
    for suffix in ("png", "tif", "ppm"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(values).save(path, format="PPM" if suffix == "ppm" else None)
        levels = np.asarray(ImageFiles(path)[0][0])
        assert np.abs(levels - 255 * RAMP[..., None]).max() <= 1, suffix


def test_what_is_no_number_is_black(tmp_path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    levels = np.asarray(ImageFiles(tmp_path)[0][0])
    assert not levels[0, :3].any()
    assert levels[-1, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "size", [(1, 30000), (30000, 1), (60000, 60000), (2**30, 2**30), (5001, 5)]
)
def test_sizes_are_refused_before_any_pixel_is_read(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with pytest.raises(InputError, match=r"bomb\.png: cannot be read .*(px, one side|bomb)"):
        ImageFiles(tmp_path)[0]
    write_image(tmp_path / "good.png")
    with pytest.warns(UserWarning, match="1 of 2 images are left out"):
        assert ImageFiles(tmp_path).readable().names == ("good.png",)


def test_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="MiB, more than"):
        ImageFiles(tmp_path)[0]


@pytest.mark.parametrize("size", [2**25, 2**30])
def test_members_of_zips_are_refused_by_their_headers(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z, z.open("a.png", "w") as member:
        for _ in range(size // 2**20):
            member.write(bytes(2**20))

    def read(*_: Any) -> bytes:
        raise AssertionError("unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "read", read)
    with pytest.raises(InputError, match=r"a\.png: cannot be read .*(packed into one|MiB)"):
        ImageFiles(archive)[0]


def test_symbolic_links_are_followed_and_lead_nowhere_twice(tmp_path: Path) -> None:
    cats = write_image(tmp_path / "elsewhere" / "cats" / "1.png").parent
    write_image(tmp_path / "elsewhere" / "2.png")
    root = tmp_path / "root"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(cats)
    (root / "dog" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "dog" / "again").symlink_to(root)
    (root / "dog" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    files = ImageFiles(root)
    assert files.names == ("cat/1.png", "dog/2.png")
    assert files.labels == (0, 1)
    (tmp_path / "link").symlink_to(root)
    assert ImageFiles(tmp_path / "link").names == files.names
    assert files[0][0].size == (8, 8)


CLASSES = {
    "folder order": ["cat", "dog", "owl"],
    "index": ["0002_cat", "0005_dog", "0009_owl"],
    "wordnet id": ["n01440764", "n01443537", "n01484850"],
}
STRAYS = ("empty/", ".hidden/a.png", "__MACOSX/a.png", "apart/README.txt", "cover.png")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("source", CLASSES)
def test_what_lies_beside_the_classes_renumbers_none(
    tmp_path: Path, source: str, zipped: bool
) -> None:
    def read(root: Path) -> ImageFiles:
        target = root
        if zipped:
            target = tmp_path / "a.zip"
            with zipfile.ZipFile(target, "w") as archive:
                for path in sorted(root.rglob("*")):
                    archive.write(path, path.relative_to(root))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            files = ImageFiles(target)
        assert len(caught) <= 1
        assert len(caught) == 0 or caught[0].filename == __file__
        return files

    root = tmp_path / "root"
    for kind in CLASSES[source]:
        write_image(root / kind / "a.png")
    clean = read(root)
    strays = STRAYS if source == "folder order" else (*STRAYS, "apart/a.png", "0/b.png")
    for stray in strays:
        if stray.endswith("/"):
            (root / stray).mkdir()
        elif stray.endswith(".txt"):
            (root / stray).parent.mkdir()
            (root / stray).write_text("no image")
        else:
            write_image(root / stray)
        files = read(root)
        assert (files.names, files.labels) == (clean.names, clean.labels), stray
        assert files.label_source == source


def test_images_beside_one_folder_have_no_label_and_are_kept(tmp_path: Path) -> None:
    write_image(tmp_path / "cover.png")
    write_image(tmp_path / "photographs" / "a.png")
    files = ImageFiles(tmp_path)
    assert files.labels == (None, None)
    assert files.label_source == "none"


def test_a_file_that_is_a_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    write_image(tmp_path / "a.png")
    assert ImageFiles(tmp_path).names == ("a.png",)
