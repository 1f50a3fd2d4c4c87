"""`blur`: a fixed low-pass filter."""

from __future__ import annotations

from aa_surgery.layers.pools import BlurPool
from aa_surgery.methods.method import Method

__all__ = ["METHOD"]

METHOD = Method(
    name="blur",
    layer=BlurPool,
    does="a fixed low-pass filter, then every stride-th sample",
    source="Zhang 2019, arXiv:1904.11486",
    filter="tri-3",
    stands_for_average=True,
)
