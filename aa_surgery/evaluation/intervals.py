"""Confidence intervals of proportions, of independent or of clustered trials."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["effective_pairs", "wilson_interval"]

_Z95 = 1.959963984540054


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    r"""Return the 95 % Wilson score interval of a proportion, in %.

    $\frac{p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}$, `z = 1.96`.

    Source: Wilson, Probable inference, JASA 1927.

    >>> [round(v, 1) for v in wilson_interval(90, 100)]
    [82.6, 94.5]
    """
    p, z2 = successes / trials, _Z95**2 / trials
    middle = p + z2 / 2
    half = math.sqrt(z2 * (p * (1 - p) + z2 / 4))
    low, high = ((middle - half) / (1 + z2), (middle + half) / (1 + z2))
    return 100 * max(0.0, low), 100 * min(1.0, high)


def effective_pairs(agreed: Tensor, passes: int) -> float:
    """Return the number of independent pairs that would tell as much as these clustered ones.

    Source: Kish, Survey Sampling, 1965, section 8.2: `n_eff = p (1 - p) / Var(mean)`, the variance
    of the mean being that between images.

    Args:
        agreed: Number of agreeing pairs of each image, `(images,)`.
        passes: Pairs an image.

    >>> import torch
    >>> effective_pairs(torch.tensor([4, 0, 4, 0]), passes=4)
    4.0
    """
    images = len(agreed)
    if passes == 1 or images == 1:
        return float(images)
    fraction = agreed.double() / passes
    p, variance = float(fraction.mean()), float(fraction.var()) / images
    if p in (0.0, 1.0):
        return float(images)
    most = float(images * passes)
    return most if variance == 0 else min(max(p * (1 - p) / variance, float(images)), most)
