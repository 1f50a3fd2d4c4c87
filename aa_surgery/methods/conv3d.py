"""`conv3d`: a 3-D convolution along the axis of the phases, then 1x1."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.errors import MethodError
from aa_surgery.layers.phase_conv import PhaseConv, PhaseDownsample
from aa_surgery.methods.method import Method
from aa_surgery.methods.phase_methods import no_phases_to_convolve, replace

__all__ = ["METHOD", "Conv3dDownsample", "PhaseConv3d"]

_DEPTH = 3  # kernel along the axis of the phases


class PhaseConv3d(PhaseConv):
    r"""Convolve three successive phases at a time, then mix what all of the triples give.

    $z_{f,j} = \sum_{d<3} \sum_c K_{f,c,d} * x_{c,j+d}$ for $j = 0 \dots P - 3$, and
    $y_o = b_o + \sum_{f,j} A_{o,f,j}\, z_{f,j}$; the paper's width is `C_out` filters. Parameters,
    with `k` the kernel on the phases: `width * C_in / groups * 3 * k^2 + (P - 2) * width * C_out`;
    the first term counts `P - 2` times among the multiply-adds of an output sample.

    One filter has one kernel for all triples, so `C_out` filters hold no strided kernel that
    has taps in more than three phases. They start as `C_out` filters for each triple that is needed
    to cover those phases, or, where that is fewer, as one filter a tap and channel, which all of
    the triples share; further filters start at random and unread.

    Source: Tsai et al., "Making CNN Shift Invariant Again and Again", section 3.3.2.

    Args: see `PhaseConv`.

    Raises:
        MethodError: The stride gives fewer than three phases, or the width is no multiple of
            `groups`.

    >>> conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
    >>> x = torch.randn(2, 3, 9, 7)
    >>> torch.allclose(PhaseConv3d.from_conv(conv)(x), conv(x), atol=1e-6)
    True
    """

    @staticmethod
    def paper_width(in_channels: int, out_channels: int) -> int:
        """Return the channels given."""
        return out_channels

    @staticmethod
    def least_width(in_channels: int, out_channels: int, groups: int, taps: Tensor) -> int:
        """Return the filters of all triples, or those of all taps where they are fewer."""
        return min(len(_triples(taps)) * out_channels, int(_shared(taps).sum()) * in_channels)

    def _shapes(self) -> tuple[tuple[int, ...], int]:
        if self.phases < _DEPTH:
            raise MethodError(
                f"PhaseConv3d of stride {self.stride}: its kernel spans {_DEPTH} phases, there are "
                f'{self.phases}. Use method="group-conv".'
            )
        if self.width < 1 or self.width % self.groups:
            raise MethodError(
                f"PhaseConv3d of {self.groups} groups: width={self.width} does not give each one "
                f"as many filters. Give a multiple of {self.groups}."
            )
        # phases beside channels: channels_last is for weights of four axes
        shape = (self.width, self.in_channels // self.groups * _DEPTH, *self.taps)
        return shape, self.width * (self.phases - _DEPTH + 1)

    @torch.no_grad()
    def _start(self, kernel: Tensor, taps: Tensor, groups: int) -> None:
        outs, reads = self.out_channels // groups, self.in_channels // groups
        kernel = kernel.flatten(3).unflatten(0, (groups, outs))  # (groups, outs, reads, P, taps)
        triples, shared = _triples(taps), _shared(taps).flatten()
        if len(triples) * outs <= int(shared.sum()) * reads:
            filters, mix = _by_triple(kernel, triples)
        else:
            filters, mix = _by_tap(kernel, shared)
        each, count = torch.arange(groups, device=kernel.device), mix.shape[2]
        # (groups, filters, reads, 3, taps) and (groups, outs, groups, filters, triples)
        weight = self.phase_weight.view(groups, -1, reads, *filters.shape[3:])
        weight[:, :count] = filters
        self.mix_weight.zero_()
        mixed = self.mix_weight.view(groups, outs, groups, self.width // groups, -1)
        mixed[each, :, each, :count] = mix

    def _filtered(self, phases: Tensor) -> Tensor:
        conv = F.conv2d if len(self.stride) == 1 else F.conv3d
        kernel = self.phase_weight.unflatten(1, (-1, _DEPTH))
        return conv(phases, kernel, groups=self.groups).flatten(1, 2)


class Conv3dDownsample(PhaseDownsample):
    """`PhaseConv3d` as the layer of a site that is no plain convolution.

    >>> x = torch.randn(2, 8, 7, 6)
    >>> torch.equal(Conv3dDownsample(channels=8)(x), x[..., ::2, ::2])
    True
    """

    conv_class = PhaseConv3d


def _triples(taps: Tensor) -> list[tuple[int, int]]:
    """Return the triples of phases that cover all taps: where each starts, and is first needed."""
    last = len(taps) - _DEPTH
    found: list[tuple[int, int]] = []
    for phase in taps.flatten(1).any(1).nonzero()[:, 0].tolist():
        if not found or phase >= found[-1][0] + _DEPTH:
            found.append((min(phase, last), phase))
    return found


def _shared(taps: Tensor) -> Tensor:
    """Return which taps `(3, *taps)` filters need that all triples share.

    A triple reads its first phase; the last triple reads all of its own.
    """
    last = len(taps) - _DEPTH
    return torch.cat((taps[: last + 1].any(0, keepdim=True), taps[last + 1 :]))


def _by_triple(kernel: Tensor, triples: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return filters that are the kernel's own triples of phases, and where each is read."""
    groups, outs, reads, phases, taps = kernel.shape
    filters = kernel.new_zeros(groups, len(triples), outs, reads, _DEPTH, taps)
    mix = kernel.new_zeros(groups, outs, len(triples), outs, phases - _DEPTH + 1)
    for i, (start, needed) in enumerate(triples):
        own = kernel[..., needed : start + _DEPTH, :]
        filters[:, i, ..., needed - start :, :] = own
        mix[:, :, i, :, start] = torch.eye(outs, dtype=kernel.dtype, device=kernel.device)
    return filters.flatten(1, 2), mix.flatten(2, 3)


def _by_tap(kernel: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Return filters that are one tap of one channel each, and the kernel that weighs them."""
    groups, outs, reads, phases, taps = kernel.shape
    places = shared.nonzero()[:, 0].to(kernel.device)
    one_tap = torch.eye(_DEPTH * taps, dtype=kernel.dtype, device=kernel.device)[places]
    one_channel = torch.eye(reads, dtype=kernel.dtype, device=kernel.device)
    filters = torch.einsum("nt,ic->nict", one_tap, one_channel).flatten(0, 1)
    mix = kernel.new_zeros(groups, outs, reads, phases - _DEPTH + 1, _DEPTH, taps)
    for phase in range(phases):
        triple = min(phase, phases - _DEPTH)
        mix[..., triple, phase - triple, :] = kernel[..., phase, :]
    mix = mix.flatten(4)[..., places].permute(0, 1, 4, 2, 3).flatten(2, 3)
    return filters.unflatten(-1, (_DEPTH, taps)).expand(groups, -1, -1, -1, -1), mix


METHOD = Method(
    name="conv3d",
    layer=Conv3dDownsample,
    does="a 3-D convolution along the axis of the phases, then 1x1",
    source="Tsai et al., Making CNN Shift Invariant Again and Again",
    options={"kernel_size": 3},
    per_channel=True,
    stands_before=False,
    replacement=partial(replace, PhaseConv3d),
    refuses=partial(no_phases_to_convolve, least=_DEPTH),
    note="starts as the op it replaces: train it",
)
