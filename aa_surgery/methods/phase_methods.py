"""What the methods that convolve phases have in common: which sites they take, and how."""

from __future__ import annotations

import math

from torch import nn

from aa_surgery.layers.phase_conv import PhaseConv
from aa_surgery.sites import Site
from aa_surgery.sites.kinds import pads_to_same

__all__ = ["no_phases_to_convolve", "replace"]


def replace(cls: type[PhaseConv], conv: nn.Conv1d | nn.Conv2d, *, kernel_size: int) -> PhaseConv:
    """Make the module for a convolution, which keeps its window: `kernel_size` is the layer's."""
    return cls.from_conv(conv, same=pads_to_same(conv))


def no_phases_to_convolve(site: Site, least: int = 2) -> str:
    """Say why a convolution over the phases cannot stand at a site; empty if it can.

    Args:
        site: The site.
        least: The number of phases that the convolution needs.
    """
    if site.op in ("space_to_depth", "unfold"):
        return "patch merging already keeps every phase of each channel"
    if site.op in ("slice", "interpolate"):
        return f"{site.op} has no dense form to take the phases of"
    if site.ndim > 2:
        return "a map of three axes: it convolves those of one or two"
    phases = math.prod(site.stride)
    return f"needs {least} phases, has {phases}" if phases < least else ""
