r"""Choosing one of a map's phases, image by image, instead of always the first.

A map has $\prod_a r_a$ phases at rate `r`: `x[..., i::r, j::r]`. A circular shift of the map
permutes them, and shifts each. A choice that depends on what a phase holds, not on its number,
follows the permutation; so what is chosen is the same up to a shift of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.errors import InputError, MethodError
from aa_surgery.filters import Filter, resolve_filter
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.functional import by_image
from aa_surgery.layers.memory import memory_format_of
from aa_surgery.layers.padding import pad_to
from aa_surgery.layers.pools import BlurPool

__all__ = [
    "Polyphase",
    "SharedPhases",
    "mix_phases",
    "phase_energies",
    "phases_of",
    "pick_phase",
]


def phases_of(x: Tensor, rate: Sequence[int], padding_mode: str) -> Tensor:
    """Return the phases of a map side by side, `(N, C, *ceil(spatial / rate), *rate)`.

    Sizes that `rate` does not divide are extended at the end by the border of `padding_mode`.

    >>> phases_of(torch.arange(5.0).view(1, 1, 5), (2,), "replicate")[0, 0].T
    tensor([[0., 2., 4.],
            [1., 3., 4.]])
    """
    x = _extended(x, rate, rate, padding_mode)
    for dim, r in enumerate(rate, start=2):
        x = x.unfold(dim, r, r)
    return x


def phase_energies(x: Tensor, rate: Sequence[int], padding_mode: str) -> Tensor:
    r"""Return $\sum_{c, u} x_k[c, u]^2$ of each phase `k`, `(N, prod(rate))`, float32 at least.

    Phases of unequal length are made equal by the border of `padding_mode`; where that is zeros,
    by the nearest sample, since zeros would favour the first phases.
    """
    energy = by_image(_energy, x.detach())
    phases = phases_of(energy, rate, "replicate" if padding_mode == "zeros" else padding_mode)
    inner = tuple(range(1, 2 + len(rate)))
    return phases.sum(inner).flatten(1)


def pick_phase(
    x: Tensor, index: Tensor, stride: Sequence[int], rate: Sequence[int], padding_mode: str
) -> Tensor:
    r"""Return one phase of each image: $y[u] = x[r u + k]$, or $x[(u + k) \bmod n]$ unsampled.

    Args:
        x: `(N, C, *spatial)`.
        index: The number of each image's phase, `(N,)`, the last axis counting fastest.
        stride: `rate` on an axis that is sampled, 1 on one that is rolled, so that phase 0 is the
            one chosen, for an op behind it that samples.
        rate: The number of phases, one an axis.
        padding_mode: Extends sampled axes that `rate` does not divide.

    Returns:
        `(N, C, *ceil(spatial / stride))`.

    >>> x = torch.arange(6.0).view(1, 1, 6)
    >>> pick_phase(x, torch.tensor([1]), (3,), (3,), "circular")
    tensor([[[1., 4.]]])
    >>> pick_phase(x, torch.tensor([1]), (1,), (3,), "circular")
    tensor([[[1., 2., 3., 4., 5., 0.]]])
    """
    shift: list[Tensor] = []
    for r in reversed(rate):
        shift.insert(0, index % r)
        index = index // r
    x = _extended(x, stride, rate, padding_mode)
    if tuple(stride) == tuple(rate) and all(isinstance(n, int) for n in x.shape[2:]):
        return _selected(x, shift, rate)
    return _gathered(x, shift, stride)


def mix_phases(
    x: Tensor, weights: Tensor, stride: Sequence[int], rate: Sequence[int], padding_mode: str
) -> Tensor:
    r"""Return $\sum_k w_k\, y_k$, `y_k` being what `pick_phase` gives of phase `k`.

    The phases are samples of one window, so that the mixture is a convolution with the weights.

    Args:
        x: `(N, C, *spatial)`.
        weights: One an image and phase, `(N, prod(rate))`.
        stride: As in `pick_phase`; so are the next two.
        rate: The number of phases, one an axis.
        padding_mode: Extends sampled axes.

    >>> mix_phases(torch.arange(4.0).view(1, 1, 4), torch.tensor([[0.5, 0.5]]), (2,), (2,), "zeros")
    tensor([[[0.5000, 2.5000]]])
    """
    memory_format = memory_format_of(x)
    x = _extended(x, stride, rate, padding_mode)
    rolled = [0 if s == r else r - 1 for s, r in zip(stride, rate, strict=True)]
    x = pad_to(x, [0] * len(rolled), rolled, "circular")
    images, channels = x.shape[:2]
    kernel = weights.to(x.dtype).unflatten(1, (1, 1, *rate))
    kernel = kernel.expand(-1, channels, *kernel.shape[2:]).flatten(0, 1)
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(rate) - 1]
    y = conv(x.flatten(0, 1)[None], kernel, stride=tuple(stride), groups=images * channels)
    return y[0].unflatten(0, (images, channels)).contiguous(memory_format=memory_format)


class SharedPhases:
    """What layers on one lattice share: the phase of each image, chosen by the one that leads.

    A copy of a model shares within the copy. What is stored belongs to one forward, and is neither
    copied nor pickled. Replicas of `nn.DataParallel` would overwrite each other's.
    """

    def __init__(self) -> None:
        self.choice: Tensor | None = None

    def write(self, choice: Tensor) -> Tensor:
        """Store and return a choice: numbers of phases, `(N,)`, or weights, `(N, phases)`."""
        self.choice = choice
        return choice

    def read(self, images: int) -> Tensor:
        """Return the choice for a batch.

        Raises:
            InputError: None was made yet, or it was made for a batch of another size.
        """
        if self.choice is None:
            raise InputError(
                "this layer takes the phase that another one chooses, and that one has not run. "
                "Run the whole model, or the block that holds both."
            )
        if self.choice.shape[0] != images:
            raise InputError(
                f"this layer takes the phase that another one chooses, which last ran on "
                f"{self.choice.shape[0]} images, not on these {images}. "
                "Run the whole model, or the block that holds both, on one batch."
            )
        return self.choice

    def __getstate__(self) -> dict[str, Tensor | None]:
        return {"choice": None}


class Polyphase(Downsample):
    r"""Base of the layers that choose a phase; a subclass defines `choose`.

    With `stride` equal to `rate` the layer subsamples: $y[u] = x[s u + k]$. With `stride` 1 it
    rolls each image so that an op behind it, of stride `rate`, reads the phase chosen; the map is
    rolled as a circle whatever `padding_mode` says, so that nothing of it is lost.

    Law: with `padding_mode="circular"` and sizes that `rate` divides, a circular shift of the
    input gives the same output, circularly shifted (rolled: by a multiple of `rate`).

    Args:
        filter: Low-pass in front of the choice; `"identity"` for none.
        leads: Whether the layer chooses; if not, it takes the choice of the one that it `follow`s.

    Raises:
        MethodError: An axis has a stride that is neither 1 nor its rate.
    """

    def __init__(
        self,
        filter: str | Sequence[float] | Filter = "identity",
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
        *,
        leads: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stride, rate, padding_mode, channels_last)
        if any(s not in (1, r) for s, r in zip(self.stride, self.rate, strict=True)):
            raise MethodError(
                f"{type(self).__name__}(stride={self.stride}, rate={self.rate}): an axis is either "
                "subsampled by its rate, or prepared for it. Give stride=rate, or stride 1."
            )
        self.filter = resolve_filter(filter)
        self.blur: BlurPool | None = None
        if not self.filter.is_identity:
            ones = (1,) * len(self.rate)
            self.blur = BlurPool(
                self.filter, ones, self.rate, padding_mode, device=device, dtype=dtype
            )
        self.leads = leads
        self.phases = SharedPhases()

    def follow(self, leader: Polyphase) -> None:
        """Take the phases that `leader` chooses from now on; it must run first.

        Raises:
            MethodError: The leader has other phases.
        """
        if leader.rate != self.rate:
            raise MethodError(
                f"a layer of rate {self.rate} cannot take the phases of one of rate "
                f"{leader.rate}: they are not the same. Let each choose by itself."
            )
        self.leads = False
        self.phases = leader.phases

    def choose(self, x: Tensor) -> Tensor:
        """Return numbers of phases, `(N,)`, or weights, `(N, prod(rate))`."""
        raise NotImplementedError(f"{type(self).__name__} defines no choose(x)")

    def sample(self, x: Tensor) -> Tensor:
        """Return the phase chosen, `(N, C, *ceil(spatial / stride))`."""
        if self.blur is not None:
            x = self.blur(x)
        if math.prod(self.rate) == 1:
            return x
        if self.leads:
            choice = self.phases.write(self.choose(x))
        else:
            choice = self.phases.read(x.shape[0])
        take = mix_phases if choice.is_floating_point() else pick_phase
        return take(x, choice, self.stride, self.rate, self.padding_mode)

    def extra_repr(self) -> str:
        """Return what `repr` shows of the layer."""
        follows = "" if self.leads else ", leads=False"
        return f"{self.filter.name!r}, {super().extra_repr()}{follows}"


def _energy(x: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.square().sum(1, keepdim=True)


def _extended(x: Tensor, stride: Sequence[int], rate: Sequence[int], padding_mode: str) -> Tensor:
    """Extend the sampled axes at their end to a multiple of the rate.

    What a symbolic size lacks is not known, so it gets the most; who reads windows of `rate`
    samples ignores what is left over.
    """
    after = [
        0 if s != r else -n % r if isinstance(n, int) else r - 1
        for n, s, r in zip(x.shape[2:], stride, rate, strict=True)
    ]
    return pad_to(x, [0] * len(after), after, padding_mode)


def _selected(x: Tensor, shift: Sequence[Tensor], rate: Sequence[int]) -> Tensor:
    """Return $y[u] = x[r u + k]$ from a view of each axis as `(h, r)`: the cheapest, by far."""
    where: list[Any] = [torch.arange(x.shape[0], device=x.device), slice(None)]
    for axis, (k, r) in enumerate(zip(shift, rate, strict=True)):
        x = x.unflatten(2 + 2 * axis, (-1, r))
        where += [slice(None), k]
    return x[tuple(where)]


def _gathered(x: Tensor, shift: Sequence[Tensor], stride: Sequence[int]) -> Tensor:
    r"""Return $y[u] = x[(s u + k) \bmod n]$ for each image's own `k`, `shift`, one an axis."""
    positions = x.new_zeros(x.shape[0], dtype=torch.long)
    for k, n, s in zip(shift, x.shape[2:], stride, strict=True):
        along = (torch.arange(0, n - s + 1, s, device=x.device) + k[:, None]) % n
        along = along.unflatten(1, (1,) * (positions.ndim - 1) + (-1,))
        positions = positions[..., None] * n + along
    # pixels are taken with all their channels: tokens, the usual input here, lie like that
    pixels = x.flatten(2).transpose(1, 2)
    images = torch.arange(x.shape[0], device=x.device).view(-1, *[1] * len(stride))
    return pixels[images, positions].movedim(-1, 1).contiguous(memory_format=memory_format_of(x))
