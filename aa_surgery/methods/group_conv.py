"""`group-conv`: the phases of each channel in a grouped convolution, then 1x1."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.errors import MethodError
from aa_surgery.layers.phase_conv import PhaseConv, PhaseDownsample
from aa_surgery.methods.method import Method
from aa_surgery.methods.phase_methods import no_phases_to_convolve, replace

__all__ = ["METHOD", "GroupConvDownsample", "PhaseGroupConv"]


class PhaseGroupConv(PhaseConv):
    r"""Convolve the `P` phases of each channel by itself, then mix the channels.

    $y_o = b_o + \sum_c \sum_{j<m} A_{o,c,j} \sum_p B_{c,j,p} * x_{c,p}$, with `m = width / C_in`
    filters a channel; the paper's width is `lcm(C_in, C_out)`. Parameters, with `k` the kernel on
    the phases: `width * P * k^2 + width * C_out`, and that many multiply-adds an output sample.

    A strided kernel is `A B`, channel by channel, where `m` reaches its number of taps or of
    outputs. If taps are fewer, `B` starts as one filter a tap and `A` as the kernel; else `B` as
    the kernel and `A` as ones: exact, without a small singular value, and each entry learns.
    Further filters start at random and unread.

    Source: Tsai et al., "Making CNN Shift Invariant Again and Again", section 3.3.1.

    Args: see `PhaseConv`.

    Raises:
        MethodError: The width is no multiple of the channels read.

    >>> conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
    >>> x = torch.randn(2, 3, 9, 7)
    >>> torch.allclose(PhaseGroupConv.from_conv(conv)(x), conv(x), atol=1e-6)
    True
    """

    @staticmethod
    def paper_width(in_channels: int, out_channels: int) -> int:
        """Return the least common multiple."""
        return math.lcm(in_channels, out_channels)

    @staticmethod
    def least_width(in_channels: int, out_channels: int, groups: int, taps: Tensor) -> int:
        """Return a filter a channel for each tap or each output that reads it."""
        return in_channels * min(int(taps.sum()), out_channels // groups)

    def _shapes(self) -> tuple[tuple[int, ...], int]:
        if self.width < 1 or self.width % self.in_channels:
            raise MethodError(
                f"PhaseGroupConv of {self.in_channels} channels: width={self.width} does not give "
                f"each one as many filters. Give a multiple of {self.in_channels}."
            )
        return (self.width, self.phases, *self.taps), self.width

    @torch.no_grad()
    def _start(self, kernel: Tensor, taps: Tensor, groups: int) -> None:
        outs, reads = self.out_channels // groups, self.in_channels // groups
        by_group = kernel.flatten(2).unflatten(0, (groups, outs))  # (groups, outs, reads, taps)
        places = taps.flatten().nonzero()[:, 0].to(kernel.device)
        if len(places) <= outs:
            filters = _eye(taps.numel(), kernel)[places]
            mix = by_group[..., places]
        else:
            filters = by_group.transpose(1, 2).flatten(0, 1)
            mix = _eye(outs, kernel)[:, None]
        count, each = filters.shape[-2], torch.arange(groups, device=kernel.device)
        a_channel = self.width // self.in_channels
        self.phase_weight.view(self.in_channels, a_channel, -1)[:, :count] = filters
        self.mix_weight.zero_()
        mixed = self.mix_weight.view(groups, outs, groups, reads, a_channel)
        mixed[each, :, each, :, :count] = mix

    def _filtered(self, phases: Tensor) -> Tensor:
        conv = F.conv1d if len(self.stride) == 1 else F.conv2d
        return conv(phases.flatten(1, 2), self.phase_weight, groups=self.in_channels)


class GroupConvDownsample(PhaseDownsample):
    """`PhaseGroupConv` as the layer of a site that is no plain convolution.

    >>> x = torch.randn(2, 8, 7, 6)
    >>> torch.equal(GroupConvDownsample(channels=8)(x), x[..., ::2, ::2])
    True
    """

    conv_class = PhaseGroupConv


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


METHOD = Method(
    name="group-conv",
    layer=GroupConvDownsample,
    does="a grouped convolution over the phases of each channel, then 1x1",
    source="Tsai et al., Making CNN Shift Invariant Again and Again",
    options={"kernel_size": 3},
    per_channel=True,
    stands_before=False,
    replacement=partial(replace, PhaseGroupConv),
    refuses=no_phases_to_convolve,
    note="starts as the op it replaces: train it",
)
