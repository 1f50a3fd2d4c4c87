"""Pictures, by matplotlib, without a display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aa_surgery.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Line", "ShiftPanel", "plot_shift_panels"]

_LEFT = 0.025  # of the figure's width: where photographs and texts begin
_INK, _FAINT, _GRID = "#222222", "#767676", "#e3e3e3"
_COLOURS = ("#d1495b", "#00798c", "#8a5fb0", "#4f772d")  # apart in hue and in lightness


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        confidence: In 0..1, one a position.
        note: What stands at the line's end.
    """

    confidence: Sequence[float]
    note: str


@dataclass(frozen=True)
class ShiftPanel:
    """One photograph and how a class's confidence moves with it.

    Attributes:
        photo: uint8 `(H, W, 3)`.
        heading: The class that is followed.
        lines: One a model, in the order of the legend.
        crop: Side of the square that the network sees, px; framed at both ends of the walk.
    """

    photo: NDArray[np.uint8]
    heading: str
    lines: Sequence[Line]
    crop: int


def plot_shift_panels(
    panels: Sequence[ShiftPanel],
    legend: Sequence[str],
    path: str | Path,
    title: str,
    subtitle: str = "",
    footer: str = "",
    xlabel: str = "px moved",
) -> Path:
    """Draw a photograph and its confidence lines in each panel, and write a PNG.

    Args:
        panels: Two a row.
        legend: Name of each line, in its colour under the title.
        path: The PNG to write; its folder must exist.
        title: What is seen.
        subtitle: How it was measured.
        footer: What the reader must know to judge it.
        xlabel: Of the horizontal axis, px.

    Returns:
        The path.

    Raises:
        InputError: There is no panel, or a panel has another number of lines than the legend.
        ImportError: matplotlib is not installed.
    """
    if not panels or any(len(p.lines) != len(legend) for p in panels):
        raise InputError(
            f"{len(panels)} panels, {len(legend)} names: give at least one panel, and each as many "
            "lines as names."
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'the picture needs matplotlib. Install it with pip install "aa-surgery[demo]".'
        ) from error
    rows = -(-len(panels) // 2)
    height = 2.45 * rows + 2.35
    figure = Figure(figsize=(13, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows,
        7,
        width_ratios=[1, 0.27, 1.75, 0.58, 1, 0.27, 1.75],
        left=_LEFT,
        right=0.925,
        top=1 - 1.68 / height,
        bottom=1.32 / height,
        wspace=0,
        hspace=0.36,
    )
    for number, panel in enumerate(panels):
        row, column = number // 2, 4 * (number % 2)
        _draw_photo(figure.add_subplot(grid[row, column]), panel)
        chart = figure.add_subplot(grid[row, column + 2])
        _draw_lines(chart, panel, xlabel if number >= len(panels) - 2 else "")
    _write_texts(figure, height, title, subtitle, footer, legend)
    target = Path(path)
    figure.savefig(target)
    return target


def _draw_photo(axes: Axes, panel: ShiftPanel) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(panel.photo, interpolation="lanczos")
    last = panel.photo.shape[0] - panel.crop
    for corner, style in ((0, "-"), (last, (0, (3, 2)))):
        side = panel.crop - 2
        axes.add_patch(
            Rectangle((corner, corner), side, side, fill=False, ec="white", lw=1.1, ls=style)
        )
    axes.set_axis_off()


def _draw_lines(axes: Axes, panel: ShiftPanel, xlabel: str) -> None:
    axes.set_title(panel.heading, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=7)
    steps = len(panel.lines[0].confidence) - 1
    ends = _spaced([100 * line.confidence[-1] for line in panel.lines], gap=15)
    for line, end, colour in zip(panel.lines, ends, _COLOURS, strict=False):
        percent = 100 * np.asarray(line.confidence)
        axes.plot(percent, color=colour, lw=2, solid_joinstyle="round", clip_on=False)
        axes.text(
            1.02 * steps, end, line.note, color=colour, fontsize=10, va="center", fontweight="bold"
        )
    ticks = range(0, steps + 1, max(1, steps // 4))
    axes.set(xlim=(0, steps), ylim=(0, 100), yticks=(0, 50, 100), xticks=ticks)
    axes.set_yticklabels(["0", "50", "100%"])
    axes.set_xlabel(xlabel, fontsize=10, color=_FAINT)
    axes.grid(axis="y", color=_GRID, lw=1)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=_FAINT)


def _spaced(values: Sequence[float], gap: float) -> list[float]:
    """Push labels apart to at least `gap`, in their order, within 0..100."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(values[i], placed[-1] + gap) if placed else values[i])
    excess = max(0.0, placed[-1] - 100)
    result = [0.0] * len(values)
    for place, i in zip(placed, order, strict=True):
        result[i] = place - excess
    return result


def _write_texts(
    figure: Figure, height: float, title: str, subtitle: str, footer: str, legend: Sequence[str]
) -> None:
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    def at(inches: float) -> float:
        return 1 - inches / height

    figure.text(_LEFT, at(0.45), title, fontsize=19, fontweight="bold", color=_INK)
    figure.text(_LEFT, at(0.8), subtitle, fontsize=11, color=_FAINT)
    names: list[Any] = [
        TextArea(f"— {name}", textprops={"color": colour, "fontsize": 12.5, "fontweight": "bold"})
        for name, colour in zip(legend, _COLOURS, strict=False)
    ]
    figure.add_artist(
        AnchoredOffsetbox(
            loc="lower left",
            child=HPacker(children=names, pad=0, sep=22),
            bbox_to_anchor=(_LEFT, at(1.22)),
            bbox_transform=figure.transFigure,
            frameon=False,
            pad=0,
            borderpad=0,
        )
    )
    figure.text(_LEFT, 0.2 / height, footer, fontsize=11, color=_INK, linespacing=1.45)
