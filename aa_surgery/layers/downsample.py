"""What every layer that stands at a downsampling site has in common."""
# Without the future import of annotations: TorchScript reads those of a class as objects.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.errors import FilterError, InputError, MethodError, shown
from aa_surgery.layers.padding import PADDING_MODES
from aa_surgery.layers.plain import subsample

__all__ = ["Downsample", "Unscriptable"]


class Unscriptable:
    """Mixin of the layers that `torch.jit.script` cannot read: it is told so by name."""

    def __prepare_scriptable__(self) -> nn.Module:
        raise MethodError(
            f"{type(self).__name__} cannot be scripted. Use torch.export or torch.jit.trace, "
            "or method='blur', which can."
        )


class Downsample(Unscriptable, nn.Module):
    r"""Base of the layers that subsample a map without aliasing.

    A subclass defines `sample`, from `(N, C, *spatial)` to `(N, C, *ceil(spatial / stride))`. Of
    stride 1 and another rate, a layer prepares the map for an op behind it that has the stride.
    Maps of integers or booleans, which have no mean, are subsampled alone.

    Args:
        stride: Subsampling step, one an axis; its length is the number of spatial axes.
        rate: The sampling rate, one an axis, to prepare for; `stride` by default.
        padding_mode: Border: `"reflect"`, `"replicate"`, `"zeros"` or `"circular"`.
        channels_last: Whether maps are `(*, *spatial, C)`, as tokens are, instead of
            `(*, C, *spatial)`.

    Raises:
        FilterError: The padding mode is unknown.
        InputError: The input has too few axes.
    """

    def __init__(
        self,
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(padding_mode, str) or padding_mode not in PADDING_MODES:
            raise FilterError(
                f"padding_mode {shown(padding_mode)} is unknown. Use one of {PADDING_MODES}."
            )
        self.stride = tuple(stride)
        self.rate = tuple(rate) if rate is not None else self.stride
        self.padding_mode = padding_mode
        self.channels_last = channels_last
        self.strength = 1.0

    def set_strength(self, strength: float) -> None:
        r"""Give $(1 - a)\,x[::s] + a\,y$ from now on, `y` being the layer's own output.

        Args:
            strength: `a`, 0 to 1.
        """
        self.strength = strength

    def init_non_persistent_buffers(self) -> None:
        """Fill the buffers that no state_dict holds; this layer has none."""

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        # `to_empty` gives these buffers memory that nothing has written, and no state_dict will
        before = dict(self._buffers)
        ours = [before[name] for name in self._non_persistent_buffers_set]

        def moved_or_made(tensor: Tensor) -> Any:
            try:
                return fn(tensor)
            except NotImplementedError:  # there are no values on the meta device to move
                if not any(tensor is buffer for buffer in ours):
                    raise
                return fn(torch.empty_like(tensor, device="cpu"))

        super()._apply(moved_or_made, recurse)
        moved = [b for n, b in self._buffers.items() if b is not None and b is not before[n]]
        if moved and all(type(b) in (Tensor, nn.Buffer) and not b.is_meta for b in moved):
            with torch.no_grad():
                self.init_non_persistent_buffers()
        return self

    def _leave_meta(self, x: Tensor) -> None:
        """Fill what is still on the meta device, where weights that are assigned do not reach."""
        asleep = {n: b for n, b in self._buffers.items() if b is not None and b.is_meta}
        if asleep and not x.is_meta:
            with torch.inference_mode(False), torch.no_grad():
                for name, buffer in asleep.items():
                    self._buffers[name] = torch.empty_like(buffer, device=x.device)
                self.init_non_persistent_buffers()

    def sample(self, x: Tensor) -> Tensor:
        """Return the subsampled map, `(N, C, *ceil(spatial / stride))`, of `(N, C, *spatial)`."""
        raise NotImplementedError(f"{type(self).__name__} defines no sample(x)")

    def forward(self, x: Tensor) -> Tensor:
        """Return the subsampled map, laid out as `x`."""
        inner = len(self.stride) + 1
        if x.ndim < inner:
            raise InputError(
                f"{type(self).__name__} over {inner - 1} axes: expected a map with {inner} axes, "
                f"or a batch of them, got shape {tuple(x.shape)}. Give maps of that shape."
            )
        self._leave_meta(x)
        maps = x if x.ndim == inner + 1 else x.unsqueeze(0).flatten(0, -inner - 1)
        if self.channels_last:
            maps = maps.movedim(-1, 1)
        y = self._mixed(maps) if x.is_floating_point() else subsample(maps, self.stride)
        if self.channels_last:
            y = y.movedim(1, -1)
        return y if x.ndim == inner + 1 else y.reshape(x.shape[:-inner] + y.shape[1:])

    def _mixed(self, maps: Tensor) -> Tensor:
        y = self.sample(maps)
        if self.strength != 1:
            y = torch.lerp(subsample(maps, self.stride), y, self.strength)
        return y

    def extra_repr(self) -> str:
        """Return what `repr` shows of the layer."""
        rate = f", rate={self.rate}" if self.rate != self.stride else ""
        strength = f", strength={self.strength:g}" if self.strength != 1 else ""
        return f"stride={self.stride}{rate}, padding_mode={self.padding_mode!r}{strength}"
