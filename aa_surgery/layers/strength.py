"""The strength of a model's blurs: from none, which is the untouched network, to their filters."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real

from torch import nn

from aa_surgery.errors import FilterError, UnsupportedModelError, shown
from aa_surgery.layers.downsample import Downsample

__all__ = ["get_strength", "set_strength"]


def set_strength(model: nn.Module, strength: float) -> int:
    r"""Let every blur of `model` filter with $(1 - a)\,\delta + a h$ in each axis, in place.

    `h` is the blur's own filter and $\delta$ the identity: at $a = 0$ the model is the untouched
    network, at $a = 1$ bit-equal the antialiased one. The gain at the frequencies that fold onto a
    flat map is $1 - a$ where that of `h` is 0. Where a blur stands in the place of an average pool,
    the outputs of both are mixed instead; the layer of another method is mixed with plain sampling.

    The filter itself (`BlurPool.filter`) stays, state_dict keys too; `h` needs no new graph under
    `torch.compile`. A backward pass must not be under way: it needs the filter of its forward. A
    copy of the model (EMA) has blurs of its own, to be set with it.

    Not weakened is what surgery changes without a blur: `F.interpolate(antialias=True)`, which is
    on or off, the smaller window of the stem's max-pool in `preset="zhang2019"`, and convolutions
    that a method has replaced, which start as the untouched ones.

    Args:
        model: An antialiased model, or one with `BlurPool` layers; compiled or wrapped too.
        strength: `a`, 0 to 1.

    Returns:
        The number of blurs set.

    Raises:
        FilterError: The strength is no number in 0..1; nothing was changed.
        UnsupportedModelError: The model has no blur, or is none.

    >>> from aa_surgery.layers import BlurPool
    >>> blur = BlurPool("tri-3", stride=(2, 2))
    >>> set_strength(blur, 0.5), blur.taps[0]
    (1, (0.125, 0.75, 0.125))
    """
    # a truth value is a number to Python, and would switch the filters on or off
    is_number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not (is_number and 0 <= strength <= 1):
        raise FilterError(
            f"strength {shown(strength)}: it mixes the identity (0) with the whole filter (1). "
            "Give a number from 0 to 1."
        )
    blurs = _blurs(model)
    for blur in blurs:
        if blur.strength != strength:
            blur.set_strength(float(strength))
    return len(blurs)


def get_strength(model: nn.Module) -> float:
    """Return the strength that all blurs of `model` have.

    Raises:
        UnsupportedModelError: The model has no blur, or its blurs differ in strength.

    >>> from aa_surgery.layers import BlurPool
    >>> get_strength(BlurPool("tri-3"))
    1.0
    """
    strengths = {blur.strength for blur in _blurs(model)}
    if len(strengths) > 1:
        raise UnsupportedModelError(
            f"the blurs of {type(model).__name__} have strengths from {min(strengths):g} to "
            f"{max(strengths):g}. Set one for all: set_strength(model, 1.0), or ask a part of it."
        )
    return strengths.pop()


def _blurs(model: nn.Module) -> list[Downsample]:
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a torch.nn.Module, got {type(model).__name__}.")
    blurs = list(dict.fromkeys(_outermost(model)))
    if not blurs:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no blur whose strength could be set. "
            "Anti-alias it first: apply_antialias(model)."
        )
    return blurs


def _outermost(module: nn.Module) -> Iterator[Downsample]:
    """Yield the layers, but not those inside of another, which are weakened with it."""
    if isinstance(module, Downsample):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)
