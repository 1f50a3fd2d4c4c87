"""ATen ops that are samplers by themselves: convolutions, pools, resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Sampling", "read_sampling"]


@dataclass(frozen=True)
class Sampling:
    """What one op does to the sampling rate.

    Attributes:
        op: The report's word.
        stride: One an axis of the map.
        size_in: Spatial size of the input, px.
        size_out: Spatial size of the output, px.
        note: What the op itself does against aliasing; `""` for nothing.
        antialiased: Whether that is a low-pass filter that follows the stride.
    """

    op: str
    stride: tuple[float, ...]
    size_in: tuple[int, ...]
    size_out: tuple[int, ...]
    note: str = ""
    antialiased: bool = False


def read_sampling(
    name: str, args: Mapping[str, Any], shape: Sequence[int], out: Sequence[int], ndim: int
) -> Sampling | None:
    """Return how an op samples its map; None where the rate stays.

    A pool to one sample (a window as large as the map, an adaptive pool) is global: it leaves no
    position to sample.

    Args:
        name: The ATen op, without namespace and overload.
        args: Its arguments by name.
        shape: Shape of its input.
        out: Shape of its result.
        ndim: Number of spatial axes, the last ones of both.
    """
    size_in, size_out = tuple(shape[-ndim:]), tuple(out[-ndim:])
    if "convolution" in name:
        stride = () if args["transposed"] else _each(args["stride"], ndim)
        return _strided("conv", stride, size_in, size_out)
    if "adaptive" in name:
        return _resampled("adaptive_pool", size_in, size_out, "average only", floor=2)
    if "upsample" in name:
        smooth = name.endswith("_aa")
        note = "antialias=True" if smooth else ""
        return _resampled("interpolate", size_in, size_out, note, antialiased=smooth)
    if name.startswith("fractional_max_pool"):
        return _resampled("max_pool", size_in, size_out)
    if name.startswith(("max_pool", "avg_pool")):
        return _pooled(name[:8], args, size_in, size_out)
    if name.startswith("grid_sampler"):
        return _resampled("interpolate", size_in, size_out)
    return None


def _each(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * ndim if len(given) == 1 else given


def _strided(
    op: str,
    stride: tuple[int, ...],
    size_in: tuple[int, ...],
    size_out: tuple[int, ...],
    note: str = "",
) -> Sampling | None:
    falls = any(s > 1 and n > 1 for s, n in zip(stride, size_in, strict=False))
    return Sampling(op, stride, size_in, size_out, note) if falls else None


def _pooled(
    op: str, args: Mapping[str, Any], size_in: tuple[int, ...], size_out: tuple[int, ...]
) -> Sampling | None:
    kernel = _each(args["kernel_size"], len(size_in))
    given = _each(args["stride"], len(size_in)) if args["stride"] else kernel
    if len(kernel) == 2 and kernel[0] == given[0] == size_in[0] == 1:
        # 1-D pools run as 2-D ones over a map of one row
        kernel, given, size_in, size_out = kernel[1:], given[1:], size_in[1:], size_out[1:]
    stride = tuple(1 if m == 1 else s for s, m in zip(given, size_out, strict=True))
    width = "x".join(str(k) for k in dict.fromkeys(kernel))
    return _strided(op, stride, size_in, size_out, f"average only: Rect-{width}" * (op[0] == "a"))


def _resampled(
    op: str,
    size_in: tuple[int, ...],
    size_out: tuple[int, ...],
    note: str = "",
    antialiased: bool = False,
    floor: int = 1,
) -> Sampling | None:
    """Read an op that is given its output size, of which `floor` samples count as sampling."""
    ratio = [n / m if n > m >= floor else 1.0 for n, m in zip(size_in, size_out, strict=True)]
    if all(r == 1 for r in ratio):
        return None
    stride = tuple(int(r) if r.is_integer() else round(r, 3) for r in ratio)
    return Sampling(op, stride, size_in, size_out, note, antialiased)
