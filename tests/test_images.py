"""Photographs from folders and zips: their labels, their preprocessing, and broken ones."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
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


# Bad input


def corrupt(path: Path) -> Path:
    """An image cut in half."""
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, format="JPEG")
    path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    return path


@pytest.mark.parametrize("content", [None, b"", b"plain text"])
def test_a_corrupt_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    write_image(tmp_path / "a.jpg")
    broken = tmp_path / "broken.jpg"
    corrupt(broken) if content is None else broken.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.jpg: cannot be read .*Replace the file"):
        list(iterate_batches(ImageFiles(tmp_path), Preprocess(resize=24)))


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
