"""Learnable polyphase sampling: a small network chooses the phase."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery.errors import MethodError, UnsupportedModelError
from aa_surgery.filters import Filter
from aa_surgery.layers.padding import pad_to
from aa_surgery.layers.polyphase import Polyphase, phases_of
from aa_surgery.methods.method import Method

__all__ = ["METHOD", "LearnablePolyphaseSampling", "set_temperature"]

# A soft mixture of more rolled maps leaves nothing of what an op of that stride looks at.
_MOST_MIXED = 16


class PhaseScore(nn.Module):
    """How much a phase is liked: the mean of conv3x3, ReLU, conv3x3, `(M, C, *spatial)` to `(M,)`.

    The last convolution has no bias, as all phases would get the same.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        axes: int,
        padding_mode: str,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.conv1 = conv(channels, hidden, 3, device=device, dtype=dtype)
        self.conv2 = conv(hidden, hidden, 3, bias=False, device=device, dtype=dtype)
        self.border = (1,) * axes
        self.padding_mode = padding_mode

    def forward(self, phases: Tensor) -> Tensor:
        """Return one number a phase, `(M,)`, float32 at least."""
        x = F.relu(self.conv1(self._padded(phases)))
        x = self.conv2(self._padded(x))
        return x.flatten(1).mean(1, dtype=torch.promote_types(x.dtype, torch.float32))

    def _padded(self, x: Tensor) -> Tensor:
        return pad_to(x, self.border, self.border, self.padding_mode)


class LearnablePolyphaseSampling(Polyphase):
    r"""Keep, of each image, the phase that a small network prefers.

    $k = \arg\max_k f(x_k)$; `f` is the mean of conv3x3, ReLU, conv3x3 over channels and positions,
    the same for every phase. In training $y = \sum_k w_k x_k$, `w` being
    $\mathrm{softmax}((f(x_k) + g_k)/\tau)$ with Gumbel noise `g`. $9 c h + h + 9 h^2$ parameters
    in 2-D, `c` channels and `h` hidden ones.

    It starts at random: pretrained weights need fine-tuning. More than 16 rolled maps are not
    mixed, but drawn (`hard`).

    Source: Rojas-Gomez et al. 2022 (arXiv:2210.08001), sections 4.1 and 5.

    Args:
        channels: Channels of the map.
        hidden: Channels between the convolutions; an eighth of `channels`, at least 8, by default.
        tau: Temperature; see `set_temperature`.
        hard: Whether training, too, takes one phase, with the mixture's gradient.

    Raises:
        MethodError: The temperature or the number of hidden channels is not positive.

    >>> layer = LearnablePolyphaseSampling(stride=(2, 2), channels=16)
    >>> layer(torch.ones(1, 16, 7, 8)).shape
    torch.Size([1, 16, 4, 4])
    """

    def __init__(
        self,
        filter: str | Sequence[float] | Filter = "identity",
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
        *,
        channels: int,
        hidden: int | None = None,
        tau: float = 1.0,
        hard: bool = False,
        leads: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            filter,
            stride,
            rate,
            padding_mode,
            channels_last,
            leads=leads,
            device=device,
            dtype=dtype,
        )
        hidden = max(channels // 8, 8) if hidden is None else hidden
        if hidden < 1:
            raise MethodError(f"lps: hidden={hidden} channels. Give 1 or more.")
        self.tau = _positive(tau)
        self.hard = hard
        if leads:
            self.score = PhaseScore(channels, hidden, len(self.rate), padding_mode, device, dtype)

    def reset_parameters(self) -> None:
        """Draw the network's weights anew."""
        if self.leads:
            self.score.conv1.reset_parameters()
            self.score.conv2.reset_parameters()

    def follow(self, leader: Polyphase) -> None:
        """Take the phases that `leader` chooses from now on, and drop the own network."""
        led = self.leads
        super().follow(leader)
        if led:
            del self.score

    def choose(self, x: Tensor) -> Tensor:
        """Return the number of the preferred phase, `(N,)`; in training weights, `(N, phases)`."""
        axes = len(self.rate)
        phases = phases_of(x, self.rate, self.padding_mode)
        phases = phases.movedim(tuple(range(-axes, 0)), tuple(range(1, axes + 1)))
        scores: Tensor = self.score(phases.contiguous().flatten(0, axes))
        logits = scores.unflatten(0, (x.shape[0], -1))
        if not self.training:
            return logits.argmax(1)
        rolled = self.stride != self.rate
        hard = self.hard or (rolled and math.prod(self.rate) > _MOST_MIXED)
        return F.gumbel_softmax(logits, self.tau, hard, dim=1)


def set_temperature(model: nn.Module, tau: float) -> int:
    r"""Let every learnable polyphase layer of `model` draw its phases at temperature `tau`.

    The paper lowers it while training, until what is drawn is what `eval` chooses.

    Returns:
        The number of layers set.

    Raises:
        MethodError: The temperature is not positive.
        UnsupportedModelError: The model has no such layer.

    >>> set_temperature(LearnablePolyphaseSampling(channels=16), 0.5)
    1
    """
    tau = _positive(tau)
    layers = [m for m in model.modules() if isinstance(m, LearnablePolyphaseSampling)]
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no learnable polyphase layer whose temperature could be "
            'set. Make some first: apply_antialias(model, method="lps").'
        )
    for layer in layers:
        layer.tau = tau
    return len(layers)


def _positive(tau: float) -> float:
    if not tau > 0:
        raise MethodError(f"lps: temperature tau={tau!r}. Give a number above 0.")
    return float(tau)


METHOD = Method(
    name="lps",
    layer=LearnablePolyphaseSampling,
    does="keeps the phase that a small network prefers, one for all that reads a map",
    source="Rojas-Gomez et al. 2022 (arXiv:2210.08001)",
    filter="identity",
    options={"hidden": None, "tau": 1.0, "hard": False},
    per_channel=True,
    shares_phase=True,
    note="starts at random, so fine-tune; exact under circular shifts, in eval mode, with circular "
    "padding and sizes that the strides divide, where nothing else in the model knows positions",
)
