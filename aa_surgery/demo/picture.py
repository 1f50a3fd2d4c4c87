"""The demo's picture: each photograph, and its class's confidence as it moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aa_surgery.demo.compare import SIZE
from aa_surgery.demo.result import DemoResult
from aa_surgery.reports.plots import Line, ShiftPanel, plot_shift_panels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["draw_picture"]


def draw_picture(result: DemoResult, squares: Sequence[Image], path: Path) -> Path:
    """Write the picture of a demo's result; `squares` are its photographs, in order."""
    panels = [
        ShiftPanel(
            photo=_walked(square, len(photo.path_before) // 2),
            heading=photo.followed,
            lines=(
                Line(photo.path_before, f"{photo.step_before:.1f} pt/px"),
                Line(photo.path_after, f"{photo.step_after:.1f} pt/px"),
            ),
            crop=SIZE,
        )
        for photo, square in zip(result.photos, squares, strict=True)
    ]
    count = len(result.photos)
    return plot_shift_panels(
        panels,
        ("original", f"anti-aliased ({result.filter} blur), same weights, not fine-tuned"),
        path,
        title="How sure is the network, while the photograph moves pixel by pixel?",
        subtitle=(
            "EfficientNet-Lite0's confidence in the class named above each line. Its crop walks "
            "from the solid frame to the dashed one; pt/px: mean change a pixel, in % points."
        ),
        footer=(
            f"Not fine-tuned: the blur leaves {result.kept} of {count} photographs their top-1 "
            f"class, and the mean confidence in it goes from "
            f"{100 * result.mean('confidence_before'):.0f} % to "
            f"{100 * result.mean('confidence_after'):.0f} %.\n"
            "A steady line near zero is no virtue: weights trained without the blur need "
            "fine-tuning with it."
        ),
        xlabel="px moved, one right and one down in turn",
    )


def _walked(square: Image, steps: int) -> NDArray[np.uint8]:
    """Return the part of the square that a walk of so many steps reaches."""
    side = SIZE + steps
    margin = (square.width - side) // 2
    return np.asarray(square)[margin : margin + side, margin : margin + side]
