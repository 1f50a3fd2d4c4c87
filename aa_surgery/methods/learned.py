"""Learned blur: one low-pass filter a channel and axis, trained, starting from a named filter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery.errors import MethodError, UnsupportedModelError
from aa_surgery.filters import Filter, Taps, resolve_filter
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.padding import pad_to
from aa_surgery.methods.method import Method

__all__ = ["METHOD", "LearnedBlurPool", "alias_penalty"]


class LearnedBlurPool(Downsample):
    r"""Low-pass each channel with a filter of its own, which is trained, and subsample.

    Along each axis, channel `c` has the taps $h + d_c$: `h` those of the filter given, $d_c$ a
    symmetric change that sums to 0. Its outer values are the parameter `change`, `(C, free)`,
    which starts at 0; the middle one or two take what balances them. So the taps are symmetric and
    sum to 1 whatever is learned, for any filter to start from (a softmax could not make the
    negative taps of `halfband-7`); the response is linear in the parameter, `alias_penalty` a
    convex quadratic; and weight decay pulls towards the filter given, not towards the identity.
    Positive taps, and with them a gain of at most 1, are not enforced.

    Of an axis with `m` taps `ceil(m / 2) - 1` are free: none of `identity` and `rect-2`. In
    circular padding, shifts by multiples of the stride are kept exactly, as by `BlurPool`.

    Source: Zhang 2019 (arXiv:1904.11486), where filters trained without constraints lose their
    effect; parametrisation of this package.

    Args:
        filter: The filter to start from, of symmetric taps.
        stride: Subsampling step, one an axis (1 to 3 axes).
        rate: The sampling rate, one an axis, to prepare for; `stride` by default.
        padding_mode: Border: `"reflect"`, `"replicate"`, `"zeros"` or `"circular"`.
        channels_last: Whether maps are `(*, *spatial, C)`.
        channels: `C`.

    Raises:
        MethodError: The filter is not symmetric.

    >>> layer = LearnedBlurPool("tri-3", stride=(2, 2), channels=8)
    >>> layer(torch.ones(1, 8, 7, 6)).shape, layer.change.shape
    (torch.Size([1, 8, 4, 3]), torch.Size([8, 2]))
    """

    taps: Tensor

    def __init__(
        self,
        filter: str | Sequence[float] | Filter = "tri-3",
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
        *,
        channels: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stride, rate, padding_mode, channels_last)
        self.filter = resolve_filter(filter)
        self.channels = channels
        self.start = tuple(_symmetric(self.filter, r) for r in self.rate)
        self.lengths = [len(taps) for taps in self.start]
        self.free = [(m + 1) // 2 - 1 for m in self.lengths]
        self.register_buffer(
            "taps", torch.empty(sum(self.lengths), device=device, dtype=dtype), persistent=False
        )
        change = torch.empty(channels, sum(self.free), device=device, dtype=dtype)
        self.change = nn.Parameter(change) if any(self.free) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Go back to the filter given."""
        self.init_non_persistent_buffers()
        if self.change is not None:
            nn.init.zeros_(self.change)

    def init_non_persistent_buffers(self) -> None:
        """Fill the taps to start from, as timm asks of a model that left the meta device."""
        self.taps.copy_(torch.tensor([t for taps in self.start for t in taps]))

    def filters(self) -> list[Tensor]:
        """Return the taps of each axis as they are now, `(C, m)`; `(1, m)` if none is free."""
        start = self.taps.split(self.lengths)
        if self.change is None:
            return [taps[None] for taps in start]
        change = self.change.split(self.free, dim=1)
        return [h + _balanced(d, len(h)) for h, d in zip(start, change, strict=True)]

    def sample(self, x: Tensor) -> Tensor:
        """Return the filtered and subsampled map, `(N, C, *ceil(spatial / stride))`."""
        kernel = torch.ones((), dtype=self.taps.dtype, device=self.taps.device)
        for taps in self.filters():
            kernel = kernel[..., None] * taps.view(len(taps), 1, *[1] * (kernel.ndim - 2), -1)
        before = [(m - 1) // 2 for m in self.lengths]
        after = [m - 1 - b for m, b in zip(self.lengths, before, strict=True)]
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(before) - 1]
        return conv(
            pad_to(x, before, after, self.padding_mode),
            kernel.to(x.dtype).expand(self.channels, *kernel.shape[1:]),
            stride=self.stride,
            groups=self.channels,
        )

    def alias_gains(self) -> Tensor:
        r"""Return $H(2\pi k/s)$ of every channel and axis, `k = 1 .. s - 1`, flat."""
        gains = []
        for taps, rate in zip(self.filters(), self.rate, strict=True):
            n = torch.arange(taps.shape[1], device=taps.device) - (taps.shape[1] - 1) / 2
            k = torch.arange(1, rate, device=taps.device)
            response = taps.float() @ torch.cos(2 * math.pi / rate * k * n[:, None])
            gains.append(response.expand(self.channels, -1).flatten())
        return torch.cat(gains)

    def extra_repr(self) -> str:
        """Return what `repr` shows of the layer."""
        return f"{self.filter.name!r}, channels={self.channels}, {super().extra_repr()}"


def alias_penalty(model: nn.Module) -> Tensor:
    r"""Return the mean of $|H(2\pi k/s)|^2$ over the learned blurs' channels, axes and `k`.

    The power that folds onto a flat map: 0 for the family of `tri-3`, 1 for plain subsampling.
    Add it to the loss, times a weight, so that training cannot trade the filters away.

    Args:
        model: A model with learned blurs; compiled or wrapped too.

    Returns:
        A scalar, float32, differentiable.

    Raises:
        UnsupportedModelError: The model has no learned blur.

    >>> alias_penalty(LearnedBlurPool("tri-3", channels=8)).item() < 1e-12
    True
    """
    layers = [module for module in model.modules() if isinstance(module, LearnedBlurPool)]
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no learned blur whose gain could be penalised. "
            'Make them first: apply_antialias(model, method="learned").'
        )
    return torch.cat([layer.alias_gains() for layer in layers]).square().mean()


def _symmetric(filter: Filter, rate: int) -> Taps:
    taps = filter.taps(rate)
    if not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(taps, taps[::-1], strict=True)):
        raise MethodError(
            f"method 'learned': the taps {list(taps)} are not symmetric, which the learned ones "
            'stay. Start from a named filter, such as filter="tri-3", or from symmetric taps.'
        )
    return taps


def _balanced(outer: Tensor, length: int) -> Tensor:
    """Return the symmetric change, of sum 0, that has these values before its middle."""
    odd = length % 2
    middle = -outer.sum(1, keepdim=True) * (1 + odd)
    half = torch.cat([outer, middle], dim=1)
    return torch.cat([half, half[:, : half.shape[1] - odd].flip(1)], dim=1)


METHOD = Method(
    name="learned",
    layer=LearnedBlurPool,
    does="a trained low-pass filter for each channel and axis, symmetric and of sum 1",
    source="Zhang 2019 (arXiv:1904.11486)",
    filter="tri-3",
    per_channel=True,
    note="starts as the fixed filter; add alias_penalty(model) to the loss",
)
