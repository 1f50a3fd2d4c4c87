"""Evidence of a low-pass filter: the kernel of a depthwise convolution, and what it lets alias."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["MAX_GAIN", "Kernel", "alias_gain", "depthwise_kernel", "is_lowpass", "same_kernels"]

Kernel = npt.NDArray[np.float64]

MAX_GAIN = 0.5
_GAIN_TOLERANCE = 1e-3
_SUM_TOLERANCE = 1e-3


def depthwise_kernel(args: Mapping[str, Any], module: nn.Module | None) -> Kernel | None:
    """Return the one kernel that a convolution applies to every channel, or None.

    A filter, as against a layer that learned, is depthwise, has no bias, and the same taps, of sum
    1, for each channel.

    Args:
        args: The arguments of `aten::convolution` by name.
        module: The module that runs it: on the meta device, where the weight has no values, the
            filter is read from its `taps`, one sequence an axis.

    Returns:
        The kernel, one axis a spatial axis.
    """
    x, weight = args["input"], args["weight"]
    channels = x.shape[1]
    depthwise = args["groups"] == channels and weight.shape[:2] == (channels, 1)
    if not depthwise or args["bias"] is not None:
        return None
    if weight.is_meta:
        return _kernel_of_taps(module, weight)
    taps = weight.detach()
    if not torch.allclose(taps, taps[:1].expand_as(taps), atol=1e-6):
        return None
    kernel: Kernel = taps[0, 0].to(device="cpu", dtype=torch.float64).numpy()
    rounding = 4 * torch.finfo(weight.dtype).eps * math.sqrt(kernel.size)
    return kernel if abs(kernel.sum() - 1) <= max(_SUM_TOLERANCE, rounding) else None


def _kernel_of_taps(module: nn.Module | None, weight: Tensor) -> Kernel | None:
    taps = getattr(module, "taps", None)
    if taps is None or [len(t) for t in taps] != list(weight.shape[2:]):
        return None
    kernel: Kernel = np.ones(())
    for axis in taps:
        kernel = kernel[..., None] * np.asarray(axis, dtype=np.float64)
    return kernel


def alias_gain(kernels: Sequence[Kernel], stride: Sequence[float]) -> float:
    r"""Return the largest gain of the frequencies that subsampling folds onto a flat map.

    $\max_k \prod_j |H_j(2\pi k_1/s_1, 2\pi k_2/s_2, \ldots)|$ over the alias lattice, `k` not all
    zero, `j` over filters in series. 1 for plain subsampling.

    Args:
        kernels: Filters in series, one axis a spatial axis.
        stride: One an axis; that of a resampling need not be whole.
    """
    lattice = itertools.product(*(range(math.ceil(s)) for s in stride))
    omegas = [[2 * math.pi * k / s for k, s in zip(ks, stride, strict=True)] for ks in lattice]
    gains = [math.prod(_gain(kernel, w) for kernel in kernels) for w in omegas if any(w)]
    return max(gains, default=0.0)


def _gain(kernel: Kernel, omega: Sequence[float]) -> float:
    out = kernel.astype(np.complex128)
    for w in reversed(omega):
        out = out @ np.exp(-1j * w * np.arange(out.shape[-1]))
    return float(abs(out))


def is_lowpass(gain: float) -> bool:
    """Return whether what aliases is at most half of what was there."""
    return gain <= MAX_GAIN + _GAIN_TOLERANCE


def same_kernels(a: Sequence[Kernel], b: Sequence[Kernel]) -> bool:
    """Return whether two series of filters are equal."""
    return len(a) == len(b) and all(map(np.array_equal, a, b))
