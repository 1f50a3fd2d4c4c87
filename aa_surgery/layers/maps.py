"""BlurPool in the places of other ops: on token maps, and instead of an average pool."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.filters import Filter
from aa_surgery.layers import functional as AF
from aa_surgery.layers.pools import BlurPool
from aa_surgery.layers.windows import Ints, extra_places

__all__ = ["AverageBlurPool", "BlurMaps", "dense_space_to_depth"]


class BlurMaps(BlurPool):
    """`BlurPool` over maps with any number of leading axes, such as video tokens.

    Shapes `(*, C, *spatial)`, or `(*, *spatial, C)` with `channels_last=True`.

    >>> BlurMaps("tri-3", stride=(2, 2), channels_last=True)(torch.ones(2, 3, 8, 8, 16)).shape
    torch.Size([2, 3, 4, 4, 16])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered and subsampled maps, laid out as `x`."""
        inner = len(self.stride) + 1
        # sizes are sliced and joined, not listed, so that fx can trace it
        y = self._blurred(x.unsqueeze(0).flatten(0, -inner - 1))
        return y.reshape(x.shape[:-inner] + y.shape[1:])


class AverageBlurPool(BlurPool):
    r"""Low-pass and subsample in the place of an average pool, with its output shape.

    The filter's centre is put where the average's window has its own, $i s - p + (k - 1)/2$, or
    half a pixel before it where the two lengths differ in parity. Below strength 1 the output is
    the mean of what the filter and the average give, weighted with strength and the rest.

    Source: Zhang 2019 (arXiv:1904.11486), section 3.2: AvgPool becomes BlurPool.

    Args:
        kernel_size: The average's window, one an axis; so are `stride` and `padding`.
        ceil_mode: As in `nn.AvgPool2d`.

    >>> AverageBlurPool("rect-2", (2, 2), (2, 2), (0, 0))(torch.arange(4.0).view(1, 1, 2, 2)).item()
    1.5
    """

    def __init__(
        self,
        filter: str | Sequence[float] | Filter,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceil_mode: bool = False,
        padding_mode: str = "reflect",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(filter, stride, None, padding_mode, device=device, dtype=dtype)
        self.kernel_size = tuple(kernel_size)
        self.padding = tuple(padding)
        self.ceil_mode = ceil_mode
        self.before = tuple(
            -math.ceil((k - 1) / 2 - p - (len(t) - 1) / 2 - 0.5)
            for k, p, t in zip(self.kernel_size, self.padding, self.taps, strict=True)
        )
        self.after = tuple(
            extra_places(k, s, p, ceil_mode) + len(t) - 1 - b
            for k, s, p, t, b in zip(
                self.kernel_size, self.stride, self.padding, self.taps, self.before, strict=True
            )
        )
        self.averages = False
        self.average_share: Tensor
        # there at every strength, since EMA copies pair buffers by their order
        self.register_buffer("average_share", self.kernel.new_zeros(()), persistent=False)

    def init_non_persistent_buffers(self) -> None:
        """Fill kernel and share again, as timm asks of a model that left the meta device."""
        super().init_non_persistent_buffers()
        self.set_strength(self.strength)

    def set_strength(self, strength: float) -> None:
        """Mix the average with the filter's output from now on, in place; 1 is the filter alone.

        Args:
            strength: The filter's share, 0 to 1.
        """
        self.strength = strength
        self.averages = strength != 1
        self.average_share.fill_(1 - strength)

    def forward(
        self, x: Tensor, count_include_pad: bool = True, divisor_override: int | None = None
    ) -> Tensor:
        """Return the filtered and subsampled map, of the average pool's shape.

        The arguments are those of the average, whose share is in the output below strength 1.
        """
        kernel = self._kernel_for(x)
        y = AF.blur(x, kernel, self.taps, self.stride, self.padding_mode, self.before, self.after)
        if not self.averages:
            return y
        average = _average(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            count_include_pad,
            divisor_override,
        )
        return torch.lerp(y, average, self.average_share.to(y.dtype))


def _average(
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    counts: bool,
    divisor: int | None,
) -> Tensor:
    if len(kernel) == 1:
        return F.avg_pool1d(x, kernel, stride, padding, ceil_mode, counts)
    if len(kernel) == 3:
        return F.avg_pool3d(x, kernel, stride, padding, ceil_mode, counts, divisor)
    return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, counts, divisor)


def dense_space_to_depth(
    x: Tensor,
    dims: Ints,
    factors: Ints,
    order: Ints,
    joined: tuple[int, int],
) -> Tensor:
    """Merge the patch at every position of a map into its channels, not at one in `factors`.

    Every `factors`-th sample of the result is the patch merging that reshapes, permutes and joins.

    Args:
        x: A map of any layout.
        dims: Its axes that the patches cover.
        factors: The patch's size along each.
        order: Axes of the permuted map: one of `x`, or `x.ndim + j` for the phases of `dims[j]`.
        joined: First and last of those axes that become one.

    >>> x, order = torch.ones(1, 4, 6, 3), (0, 1, 2, 5, 4, 3)
    >>> dense_space_to_depth(x, (1, 2), (2, 2), order, (3, 5)).shape
    torch.Size([1, 3, 5, 12])
    """
    for i, dim in enumerate(dims):
        x = x.unfold(dim, factors[i], 1)
    return x.permute(order).flatten(joined[0], joined[1])
