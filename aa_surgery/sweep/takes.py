"""What the forward of an architecture takes."""

from __future__ import annotations

from typing import Literal

__all__ = ["Takes"]

Takes = Literal["image", "video", "pair", "detection", "masked", "loss", "views", "crops"]
"""A batch of images `(N, C, H, W)`; of videos `(N, C, T, H, W)`; a pair of image batches; a list of
images; a batch and no mask; or, with `mode="loss"`, a batch, a list of two, or of eight."""
