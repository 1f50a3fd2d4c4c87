"""Ideal low-pass filter: a box in frequency, with cut-off 1/s."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.memory import memory_format_of
from aa_surgery.methods.method import Method

__all__ = ["METHOD", "IdealPool"]


class IdealPool(Downsample):
    r"""Keep the frequencies below half the new sampling rate, and subsample.

    Along each axis, of `P` samples taken as one period, the bins $k < P / (2 s)$ of the discrete
    Fourier transform are kept and the others dropped, the new rate's Nyquist bin among them, which
    keeps the filter real. That is the product with the matrix

    $M[i, j] = \frac1P \frac{\sin((2K + 1)\pi t / P)}{\sin(\pi t / P)}$, $t = i s - j$,
    $K = \lceil P / (2 s) \rceil - 1$,

    the inverse of the cropped transform, written out: the same numbers as by FFT, faster at the
    sizes of feature maps, and exportable (ONNX has no complex numbers). It is computed in float32
    at least, for each size anew; where TF32 products are allowed, what follows holds to 1e-3.

    The period is the map with `padding_mode="circular"`: shifts of the input, by whole or
    fractional pixels, are then shifts of the output exactly, where the stride divides the size.
    Otherwise it is the map and its mirror image (`2 n` samples, no jump), for `"replicate"` and
    `"zeros"` after borders as wide as the map. Constant maps are kept in all modes but `"zeros"`.
    Bright edges ring: the filter has negative taps and reaches over the whole map. There are no
    parameters.

    Args:
        stride: Subsampling step, one an axis.
        rate: The sampling rate, one an axis, to prepare for; `stride` by default.
        padding_mode: Border: `"reflect"`, `"replicate"`, `"zeros"` or `"circular"`.
        channels_last: Whether maps are `(*, *spatial, C)`.
        device: Nothing is kept on it; so for `dtype`.

    Source: Michaeli et al. 2023 (arXiv:2303.08085); Grabinski et al. 2022 (arXiv:2204.00491).

    >>> IdealPool(stride=(2, 2))(torch.ones(1, 8, 7, 6)).shape
    torch.Size([1, 8, 4, 3])
    """

    def __init__(
        self,
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stride, rate, padding_mode, channels_last)

    def sample(self, x: Tensor) -> Tensor:
        """Return the filtered and subsampled map, `(N, C, *ceil(spatial / stride))`."""
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            for dim, (stride, rate) in enumerate(zip(self.stride, self.rate, strict=True), start=2):
                if rate > 1:
                    y = _multiply(_low_pass(y, dim, stride, rate, self.padding_mode), y, dim)
        return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))


def _multiply(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return the product of the matrix with one axis of `x`, in the form that copies least."""
    if dim == x.ndim - 1:
        return x @ matrix.T
    columns = x.movedim(dim, -2)
    # not `@`, which decides by comparing sizes, so that an export would not be for every size
    product = torch.bmm(
        matrix.expand(math.prod(columns.shape[:-2]), -1, -1), columns.flatten(0, -3)
    )
    return product.view(*columns.shape[:-2], *product.shape[1:]).movedim(-2, dim)


def _low_pass(x: Tensor, dim: int, stride: int, rate: int, padding_mode: str) -> Tensor:
    """Return the matrix, `(ceil(n / stride), n)`, of one axis of `x`."""
    n = x.shape[dim]
    border = n if padding_mode in ("replicate", "zeros") else 0
    length = n + 2 * border
    period = length if padding_mode == "circular" else 2 * length
    i = torch.arange(0, n, stride, device=x.device) + border
    j = torch.arange(period, device=x.device)
    matrix = _dirichlet(i[:, None] - j, period, rate, x.dtype)
    if padding_mode == "circular":
        return matrix
    matrix = matrix[:, :length] + matrix[:, length:].flip(1)
    inner = matrix[:, border : border + n].clone()
    if padding_mode == "replicate":
        inner[:, 0] += matrix[:, :border].sum(1)
        inner[:, -1] += matrix[:, border + n :].sum(1)
    return inner


def _dirichlet(t: Tensor, period: int, rate: int, dtype: torch.dtype) -> Tensor:
    """Return the periodic impulse response of the ideal low-pass filter at the samples `t`."""
    bins = 2 * ((period - 1) // (2 * rate)) + 1
    scale = math.pi / period
    # angles are reduced as whole numbers: in float32, those of many turns would lose digits
    around = torch.minimum(t.abs(), period - t.abs())
    turn = torch.remainder(bins * around, torch.full_like(t, 2 * period))
    below = torch.where(t == 0, 1, torch.sin(around.to(dtype) * scale))
    return torch.where(t == 0, bins, torch.sin(turn.to(dtype) * scale) / below) / period


METHOD = Method(
    name="ideal",
    layer=IdealPool,
    does="an ideal low-pass filter: a box in frequency, with cut-off 1/s",
    source="Michaeli et al. 2023 (arXiv:2303.08085); Grabinski et al. 2022 (arXiv:2204.00491)",
)
