"""Adaptive blur: a low-pass filter predicted for each place and group of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aa_surgery.errors import MethodError
from aa_surgery.filters import Filter, kernel_nd, resolve_filter
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.memory import memory_format_of
from aa_surgery.layers.padding import pad_axes, pad_to
from aa_surgery.methods.method import Method
from aa_surgery.sites import Site

__all__ = ["METHOD", "AdaptiveBlurPool"]

# Weight of a tap of the window that the filter to start from does not have.
_NO_TAP = 1e-8
# LayerScale's start in ConvNeXt: as good as 0, yet gradients reach what it multiplies.
_SMALL = 1e-6


class AdaptiveBlurPool(Downsample):
    r"""Low-pass each place with a filter predicted from what is there, and subsample.

    $y_c[i] = \sum_n w_{g(c)}[i, n]\, x_c[i s + n - b]$ with
    $w_g[i, \cdot] = \mathrm{softmax}_n\,(\gamma\,\mathrm{BN}(\mathrm{conv}(x))[i] + \beta)_g$. The
    softmax runs over the window of one group, so each filter is positive and sums to 1: constant
    maps are kept. Filters are predicted at the output's places only. $\beta$ starts at the
    logarithm of the filter given and $\gamma$ at 1e-6, so the layer starts as `BlurPool`, in
    training and evaluation alike. Both stand outside the norm, so that frameworks which initialise
    convolutions and norms anew (MMEngine) leave that start alone.

    In circular padding, shifts by multiples of the stride are kept exactly in evaluation mode. In
    training mode the norm needs more than one output a channel, and its running statistics are
    buffers in the state_dict, the only ones.

    Source: Zou et al. 2020 (arXiv:2008.09604); window and start of this package.

    Args:
        filter: The filter to start from, of positive taps.
        stride: Subsampling step of both axes.
        rate: The sampling rate of both axes to prepare for; `stride` by default.
        padding_mode: Border: `"reflect"`, `"replicate"`, `"zeros"` or `"circular"`.
        channels_last: Whether maps are `(*, *spatial, C)`.
        channels: `C`.
        groups: Filters a place. The largest divisor of `C` that is not above this is taken.
        kernel_size: Window of the convolution that predicts (px), in the axes that are filtered,
            and the least window of the filters, which are longer where `filter` is: 7 x 7 for
            `tri-3` at stride 4.

    Raises:
        MethodError: The map is not 2-D, a tap is not positive, or an option is below 1.

    >>> AdaptiveBlurPool("tri-3", stride=(2, 2), channels=12)(torch.ones(2, 12, 7, 6)).shape
    torch.Size([2, 12, 4, 3])
    """

    def __init__(
        self,
        filter: str | Sequence[float] | Filter = "tri-3",
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
        *,
        channels: int,
        groups: int = 8,
        kernel_size: int = 3,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stride, rate, padding_mode, channels_last)
        if len(self.stride) != 2:
            raise MethodError(_only_2d(len(self.stride)))
        for option, value in (("groups", groups), ("kernel_size", kernel_size)):
            if value < 1:
                raise MethodError(f"method 'adaptive': {option}={value}. Give 1 or more.")
        self.filter = resolve_filter(filter)
        self.start = tuple(self.filter.taps(r) for r in self.rate)
        if min(min(taps) for taps in self.start) <= 0:
            raise MethodError(
                f"method 'adaptive': filter {self.filter.name!r} has taps that are not positive, "
                'which a softmax cannot start from. Use one that has none: "tri-3", "rect-2", '
                '"binomial-5".'
            )
        self.groups = max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0)
        view = [kernel_size if r > 1 else 1 for r in self.rate]
        self.window = tuple(max(v, len(t)) for v, t in zip(view, self.start, strict=True))
        logits = self.groups * self.window[0] * self.window[1]
        self.conv = nn.Conv2d(
            channels,
            logits,
            (view[0], view[1]),
            self.stride,
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.norm = nn.BatchNorm2d(logits, affine=False, device=device, dtype=dtype)
        self.scale = nn.Parameter(torch.empty(logits, device=device, dtype=dtype))
        self.logits = nn.Parameter(torch.empty(logits, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Go back to the filter given, with new weights for what predicts."""
        self.conv.reset_parameters()
        self.norm.reset_parameters()
        nn.init.constant_(self.scale, _SMALL)
        lead = [_border(w) - _border(len(t)) for w, t in zip(self.window, self.start, strict=True)]
        rest = [w - len(t) - a for w, t, a in zip(self.window, self.start, lead, strict=True)]
        kernel = pad_axes(
            kernel_nd(self.start), [lead[0], rest[0], lead[1], rest[1]], "constant"
        ).clamp(min=_NO_TAP)
        with torch.no_grad():
            self.logits.copy_(kernel.log().flatten().repeat(self.groups))

    def filters(self, x: Tensor) -> Tensor:
        """Return the filters predicted for a map that is padded for them.

        Args:
            x: `(N, C, H + window - 1, W + window - 1)`.

        Returns:
            `(N, groups, taps, ceil(H / stride), ceil(W / stride))`, which sums to 1 over the taps;
            float32 at least.
        """
        for dim, (window, view) in enumerate(
            zip(self.window, self.conv.kernel_size, strict=True), start=2
        ):
            x = x.narrow(dim, _border(window) - _border(view), x.shape[dim] - window + view)
        logits = self.norm(self.conv(x)) * self.scale[:, None, None] + self.logits[:, None, None]
        exact = torch.promote_types(logits.dtype, torch.float32)
        return logits.unflatten(1, (self.groups, -1)).softmax(dim=2, dtype=exact)

    def sample(self, x: Tensor) -> Tensor:
        """Return the filtered and subsampled map, `(N, C, *ceil((H, W) / stride))`."""
        rows, columns = self.window
        before = [_border(rows), _border(columns)]
        after = [rows - 1 - before[0], columns - 1 - before[1]]
        # on the CPU, autocast pads in float32
        padded = pad_to(x, before, after, self.padding_mode).to(x.dtype)
        filters = self.filters(padded).to(x.dtype).unbind(2)
        windows = padded.unfold(2, rows, self.stride[0]).unfold(3, columns, self.stride[1])
        windows = windows.unflatten(1, (self.groups, -1))
        places = [place for row in windows.unbind(-2) for place in row.unbind(-1)]
        y = filters[0][:, :, None] * places[0]
        # one tap after the other: what is kept for the gradient are views of the padded map
        for weight, place in zip(filters[1:], places[1:], strict=True):
            y = torch.addcmul(y, weight[:, :, None], place)
        # joined, not flattened, which would compare sizes: an export would not be for every size
        return torch.cat(y.unbind(1), dim=1).contiguous(memory_format=memory_format_of(x))

    def extra_repr(self) -> str:
        """Return what `repr` shows of the layer."""
        return f"{self.filter.name!r}, groups={self.groups}, {super().extra_repr()}"


def _border(length: int) -> int:
    """Return how many taps of a window stand before its own place."""
    return (length - 1) // 2


def _only_2d(axes: int) -> str:
    return (
        f"method 'adaptive' predicts filters for 2-D maps, and this one has {axes} axis or axes. "
        'Use method="learned" or "blur" there.'
    )


def _refuses(site: Site) -> str:
    return "" if site.ndim == 2 else _only_2d(site.ndim)


METHOD = Method(
    name="adaptive",
    layer=AdaptiveBlurPool,
    does="a low-pass filter predicted for each place and group of channels",
    source="Zou et al. 2020 (arXiv:2008.09604)",
    filter="tri-3",
    options={"groups": 8, "kernel_size": 3},
    per_channel=True,
    refuses=_refuses,
    note="starts as the fixed filter",
)
