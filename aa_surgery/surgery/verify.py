"""Whether each treatment of a model is whole, told without running it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from aa_surgery.treated import lost_halves

__all__ = ["LostHalf", "Verification", "verify"]


@dataclass(frozen=True)
class LostHalf:
    """A site of which one half of the treatment is gone.

    Attributes:
        site: Its name in the model that was treated.
        module: The module that still carries the other half.
        message: What is gone, and what to do.
    """

    site: str
    module: str
    message: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        lost: The sites of which one half of the treatment is gone.
    """

    lost: tuple[LostHalf, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every treatment is whole."""
        return not self.lost

    def __str__(self) -> str:
        return "\n".join(lost.message for lost in self.lost) or "every treatment is whole"


def verify(model: nn.Module) -> Verification:
    """Say of an anti-aliased model whether each treatment is still whole; nothing is run.

    A convolution that runs dense and the blur behind its activation are two modules. Where one of
    them was replaced, converted, fused or taken out, the model's next call raises a
    `HalfTreatedError`; `verify` says so before.

    Args:
        model: Any module. One without anti-aliasing has nothing to lose.

    >>> from aa_surgery import apply_antialias
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3))
    >>> verify(apply_antialias(net)).ok
    True
    >>> net[1] = nn.ReLU()
    >>> verify(net).lost[0].site
    '0'
    """
    lost = [LostHalf(half.site, name, half.describe()) for name, half in lost_halves(model)]
    return Verification(tuple(lost))
