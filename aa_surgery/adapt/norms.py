"""The norms of a model whose outputs can be scaled and shifted a channel, by what they store."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from aa_surgery.treated import inserted

__all__ = ["AffineNorm", "Norm", "RunningNorm", "find_norms"]


@dataclass(frozen=True)
class Norm:
    r"""A norm, watched at a tensor (the tap) that is an affine map of what it gives a channel.

    All numbers about channels are float64 on the CPU.

    Attributes:
        name: Of the module, in its model.
        module: The norm.
        shape: Of the channels: `(C,)`, or the normalised shape of a layer norm over several axes.
        last: Whether the channels are the last axes of the tap, instead of the second one.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    last: bool = False

    def other_axes(self, tap: Tensor) -> list[int]:
        """Return the axes of a tap that are not its channels."""
        rank = tap.ndim
        return list(range(rank - len(self.shape))) if self.last else [0, *range(2, rank)]

    def spread(self, values: Tensor, tap: Tensor) -> Tensor:
        """Return a value a channel so that it broadcasts over a tap."""
        shape = self.shape if self.last else (*self.shape, *[1] * (tap.ndim - 2))
        return values.to(tap).view(shape)

    def tap(self, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Show `see` every tap; what it returns, if anything, is what the forward goes on with."""
        raise NotImplementedError

    def largest_scale(self) -> Tensor:
        """Return the largest scale that the norm can absorb."""
        return torch.tensor(math.inf, dtype=torch.float64)

    def output_moments(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of the output, from those of the tap."""
        raise NotImplementedError

    def on_tap(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and shift of the tap by which the output gets `scale` and `shift`."""
        raise NotImplementedError

    def absorb(self, scale: Tensor, shift: Tensor) -> None:
        """Let the norm from now on return `scale * output + shift`; unchanged for 1 and 0."""
        raise NotImplementedError


class RunningNorm(Norm):
    r"""A norm by running statistics: every kind of batch norm, synchronised and frozen ones too.

    Its tap is the input $x$; its output, without the affine parameters, is
    $z = (x - \mu) / \sqrt{v + \epsilon}$. Only the buffers $\mu$ and $v$ change.
    """

    def tap(self, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Show `see` every input."""
        return self.module.register_forward_pre_hook(lambda _, args: _first(see(args[0]), args))

    def largest_scale(self) -> Tensor:
        """Return the scale at which the running variance is 0."""
        return ((self._var + self._eps) / self._eps).sqrt()

    def output_moments(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of `z`."""
        variance = self._var + self._eps
        return (mean - self._mean) / variance.sqrt(), var / variance

    def on_tap(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return what turns `x` so that `z` is scaled and shifted."""
        return scale, self._mean * (1 - scale) + (self._var + self._eps).sqrt() * shift

    def absorb(self, scale: Tensor, shift: Tensor) -> None:
        """Change the running mean and variance."""
        mean = self._mean - (self._var + self._eps).sqrt() * shift / scale
        gain = scale**-2
        var = (self._var * gain + self._eps * (gain - 1)).clamp_min(0)
        _tensor(self.module, "running_mean").copy_(mean)
        _tensor(self.module, "running_var").copy_(var)

    @property
    def _mean(self) -> Tensor:
        return _tensor(self.module, "running_mean").cpu().double()

    @property
    def _var(self) -> Tensor:
        return _tensor(self.module, "running_var").cpu().double()

    @property
    def _eps(self) -> float:
        return float(getattr(self.module, "eps", 0.0))


class AffineNorm(Norm):
    """A layer, group or instance norm with weight and bias; its tap is its output.

    Where the module goes on with an activation (timm's `GroupNormAct`), the tap is before it.
    """

    def tap(self, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Show `see` every output."""
        act = getattr(self.module, "act", None)
        if isinstance(act, nn.Module):
            return act.register_forward_pre_hook(lambda _, args: _first(see(args[0]), args))
        return self.module.register_forward_hook(lambda _, args, output: see(output))

    def output_moments(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return them as they are."""
        return mean, var

    def on_tap(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return them as they are."""
        return scale, shift

    def absorb(self, scale: Tensor, shift: Tensor) -> None:
        """Change weight and bias."""
        for name, more in (("weight", torch.zeros_like(shift)), ("bias", shift)):
            values = _tensor(self.module, name)
            flat = values.cpu().double().flatten()
            values.copy_((flat * scale + more).view_as(values))


def find_norms(model: nn.Module) -> dict[str, Norm]:
    """Return the norms of a model that can absorb a scale and a shift a channel, by name.

    Not among them: norms without running statistics and affine parameters, those with a weight
    alone (RMS norm), and batch norms that do not track (`track_running_stats=False`).

    >>> net = nn.Sequential(nn.BatchNorm2d(8), nn.LayerNorm(8), nn.GroupNorm(2, 8, affine=False))
    >>> [(name, type(norm).__name__) for name, norm in find_norms(net).items()]
    [('0', 'RunningNorm'), ('1', 'AffineNorm')]
    """
    found: dict[str, Norm] = {}
    ours = inserted(model.modules())
    for name, module in model.named_modules():
        if module in ours:
            continue  # part of what the surgery put in, which the original does not have
        if _has(module, "running_mean", "running_var"):
            found[name] = RunningNorm(name, module, tuple(_tensor(module, "running_mean").shape))
        elif isinstance(module, _AFFINE) and _has(module, "weight", "bias"):
            shape = tuple(_tensor(module, "weight").shape)
            found[name] = AffineNorm(name, module, shape, last=_is_last(module))
    return found


_AFFINE = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def _is_last(module: nn.Module) -> bool:
    """Tell torch's layer norm from the layer norms for maps `(N, C, H, W)`, which say so by name.

    They are timm's `LayerNorm2d`, torchvision's, OpenMMLab's `LN2d` and many others.
    """
    names = (cls.__name__ for cls in type(module).__mro__)
    return isinstance(module, nn.LayerNorm) and not any("2d" in n.lower() for n in names)


def _has(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), Tensor) for name in names)


def _tensor(module: nn.Module, name: str) -> Tensor:
    values: Tensor = getattr(module, name)
    return values.detach()


def _first(value: Tensor | None, args: tuple[object, ...]) -> tuple[object, ...] | None:
    return None if value is None else (value, *args[1:])
