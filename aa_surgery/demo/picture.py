"""The demo's picture: each photograph, and its class's confidence as it moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aa_surgery.demo.result import DemoResult
from aa_surgery.demo.weights import SIZE
from aa_surgery.reports.plots import Line, ShiftPanel, plot_shift_panels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["draw_picture"]


def draw_picture(result: DemoResult, squares: Sequence[Image], path: Path) -> Path:
    """Write the picture of a demo's result; `squares` are its photographs, in order."""
    drawn = (result.original, result.recalibrated)
    panels = [
        ShiftPanel(
            photo=_walked(square, len(views[0].path) // 2),
            heading=views[0].followed,
            lines=[Line(view.path, f"{view.step:.1f} pt/px") for view in views],
            crop=SIZE,
        )
        for square, *views in zip(squares, *(model.photos for model in drawn), strict=True)
    ]
    return plot_shift_panels(
        panels,
        ("original", f"anti-aliased ({result.filter} blur), recalibrated, nothing trained"),
        path,
        title="How sure is the network, while the photograph moves pixel by pixel?",
        subtitle=(
            "EfficientNet-Lite0's confidence in the class named above each line. Its crop walks "
            "from the solid frame to the dashed one; pt/px: mean change a pixel, in % points."
        ),
        footer=_footer(result),
        xlabel="px moved, one right and one down in turn",
    )


def _footer(result: DemoResult) -> str:
    original, blurred, recalibrated = result.models
    confidences = [f"{100 * model.confidence:.0f} %" for model in result.models]
    return (
        f"Recalibrated on {result.adapted_on}: no labels, no training, all weights the original's."
        f"\nOf {len(original.photos)} photographs {recalibrated.kept} keep their top-1 class "
        f"({blurred.kept} blurred alone); mean confidence in it: {confidences[2]} "
        f"(blurred alone {confidences[1]}, original {confidences[0]})."
    )


def _walked(square: Image, steps: int) -> NDArray[np.uint8]:
    """Return the part of the square that a walk of so many steps reaches."""
    side = SIZE + steps
    margin = (square.width - side) // 2
    return np.asarray(square)[margin : margin + side, margin : margin + side]
