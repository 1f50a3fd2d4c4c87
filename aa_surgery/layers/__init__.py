"""Tensor layers: they know nothing of models, sites or plans."""

from aa_surgery.layers.functional import (
    PADDING_MODES,
    blur,
    canonical_form,
    dense_avg_pool,
    dense_max_pool,
)
from aa_surgery.layers.pools import (
    BlurPool,
    BlurPool1d,
    BlurPool2d,
    BlurPool3d,
    MaxBlurPool1d,
    MaxBlurPool2d,
    MaxBlurPool3d,
)

__all__ = [
    "PADDING_MODES",
    "BlurPool",
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "MaxBlurPool1d",
    "MaxBlurPool2d",
    "MaxBlurPool3d",
    "blur",
    "canonical_form",
    "dense_avg_pool",
    "dense_max_pool",
]
