"""Adaptive polyphase sampling: keep the phase of largest norm."""

from __future__ import annotations

from torch import Tensor

from aa_surgery.layers.polyphase import Polyphase, phase_energies
from aa_surgery.methods.method import Method

__all__ = ["METHOD", "AdaptivePolyphaseSampling"]


class AdaptivePolyphaseSampling(Polyphase):
    r"""Keep, of each image, the phase of largest l2 norm.

    $k = \arg\max_k \sum_{c, u} x[c, s u + k]^2$, taken in float32 at least. No parameters.

    Source: Chaman and Dokmanic 2021 (arXiv:2011.14214), section 3; of stride 1, PolyOrder of Ding
    et al. 2023 (arXiv:2306.07470).

    >>> import torch
    >>> x = torch.arange(64.0).view(1, 1, 8, 8)
    >>> layer = AdaptivePolyphaseSampling(stride=(2, 2), padding_mode="circular")
    >>> bool((layer(x.roll((2, 4), (2, 3))) == layer(x).roll((1, 2), (2, 3))).all())
    True
    """

    def choose(self, x: Tensor) -> Tensor:
        """Return the number of the phase of largest norm, `(N,)`."""
        return phase_energies(x, self.rate, self.padding_mode).argmax(1)


METHOD = Method(
    name="aps",
    layer=AdaptivePolyphaseSampling,
    does="keeps the phase of largest norm, one for all that reads a map",
    source="Chaman and Dokmanic 2021 (arXiv:2011.14214); Ding et al. 2023 (arXiv:2306.07470)",
    filter="identity",
    shares_phase=True,
    note="exact under circular shifts, with circular padding and sizes that the strides divide, "
    "where nothing else in the model knows positions",
)
