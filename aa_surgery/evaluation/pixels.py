"""From a file's bytes to an 8-bit RGB image; what is too large is refused before it is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

from aa_surgery.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["UNREADABLE", "check_member", "check_size", "decode"]

# what PIL and zipfile raise for damaged, encrypted and foreign files
UNREADABLE = (
    *(EOFError, OSError, RuntimeError, SyntaxError, ValueError, NotImplementedError),
    *(BadZipFile, struct.error, zlib.error),
)
_MOST_BYTES = 2**29  # of one file: a photograph of 170 megapixels, three bytes each, not packed
_MOST_RATIO = 500  # of a zip's member: images are packed already, and a bomb has 1000
_FLAT_BYTES = 2**24  # up to which a member may be packed as well as it likes
_MOST_ASPECT = 1000  # the short side is enlarged to the model's size, and the long one with it
_BITS, _FORMAT = 258, 339  # TIFF's tags
_UNSIGNED, _SIGNED = 1, 2


def check_size(size: int) -> None:
    """Refuse to read a file of so many bytes.

    Raises:
        InputError: There are more than an image has.
    """
    if size > _MOST_BYTES:
        raise InputError(f"{size / 2**20:.0f} MiB, more than {_MOST_BYTES // 2**20} MiB")


def check_member(member: ZipInfo) -> None:
    """Refuse to unpack a zip's member that is a bomb.

    Raises:
        InputError: It is larger than an image, or packed as no image is.
    """
    check_size(member.file_size)
    packed = max(member.compress_size, 1)
    if member.file_size > _FLAT_BYTES and member.file_size > _MOST_RATIO * packed:
        raise InputError(f"{member.file_size / packed:.0f} bytes are packed into one, as in a bomb")


def decode(data: bytes) -> Image:
    """Decode one image as 8-bit RGB: deeper ones are scaled by their type, transparency dropped.

    Raises:
        InputError: It has another shape than a picture has.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:  # of its header alone; PIL refuses a bomb of pixels
        short, long = sorted(image.size)
        if long > _MOST_ASPECT * max(short, 1):
            raise InputError(
                f"{image.width}x{image.height} px, one side more than {_MOST_ASPECT} times the "
                "other"
            )
        return _rgb(image)


def _rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode[:1] in "IF":  # PIL would clip to 8 bits, which is white
        tones = _tones(image).clip(0, 1)
        image = Image.fromarray(np.rint(255 * tones).astype(np.uint8))
    if "transparency" in image.info:  # else PIL warns of a palette with transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def _tones(image: Image) -> npt.NDArray[np.float64]:
    """Return an image of one channel, of 16 or 32 bits or floats, on the scale 0 to 1."""
    values: Any = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
        top = float(values.max(initial=0))
        # floats have no range of their own: that of the numbers that they were made from
        return values / next((scale for scale in (1, 255, 65535) if top <= scale), top)
    tags: Any = getattr(image, "tag_v2", {})
    bits = int(tags.get(_BITS, (16,))[0])
    kind = int(tags.get(_FORMAT, (_UNSIGNED,))[0])
    if kind == _SIGNED:
        return values.astype(np.float64) / (2 ** (bits - 1) - 1)
    if bits == 32:
        values = values.astype(np.int32).view(np.uint32)  # PIL has no unsigned ones
    return values.astype(np.float64) / (2**bits - 1)
