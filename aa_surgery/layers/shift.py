"""Shifting a map by half a window, so that shifted windows attend around its border."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ShiftForWindows"]


class ShiftForWindows(nn.Module):
    """Roll a map of tokens by as many positions as its windows are shifted.

    An axis that has one window only is not shifted, as in Swin.

    Args:
        shift: Positions, one an axis; negative ones roll to the front.
        window: Size of the windows, one an axis.

    >>> import torch
    >>> ShiftForWindows((-1, -1), (2, 2))(torch.arange(4.0).view(1, 1, 4, 1)).flatten().tolist()
    [1.0, 2.0, 3.0, 0.0]
    """

    def __init__(self, shift: tuple[int, ...], window: tuple[int, ...]) -> None:
        super().__init__()
        self.shift = shift
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Return the map rolled, `(N, H, W, C)`."""
        shift: list[int] = []
        for i, s in enumerate(self.shift):
            shift.append(0 if self.window[i] >= x.shape[i + 1] else s)
        return x.roll(shift, [1, 2])

    def extra_repr(self) -> str:
        """Return what `repr` shows of the layer."""
        return f"shift={self.shift}, window={self.window}"
