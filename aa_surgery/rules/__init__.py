"""Rules: a site and the user's options in, an edit or a reason out.

A rule is a pure function `(Site, Options) -> Edit | Left | None`; None hands the site to the next
one. `DEFAULT_RULES` is the whole policy, in order: the first answer counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aa_surgery.rules.conv import (
    blur_after_activation,
    blur_before_conv,
    blur_then_pointwise,
    replace_conv,
)
from aa_surgery.rules.edit import Edit, Left, Options
from aa_surgery.rules.leave import leave_large_stride, leave_problem, leave_refused
from aa_surgery.rules.pool import blur_after_max, blur_for_average
from aa_surgery.rules.sample import align_windows, antialias_resize, blur_before_sampling
from aa_surgery.rules.zhang2019 import leave_stem, small_stem_pool, split_stride_of_4
from aa_surgery.sites import Site

__all__ = ["DEFAULT_RULES", "PRESETS", "Edit", "Left", "Options", "Preset", "Rule"]

Rule = Callable[[Site, Options], "Edit | Left | None"]

DEFAULT_RULES: tuple[Rule, ...] = (
    leave_problem,
    leave_large_stride,
    leave_refused,
    replace_conv,
    blur_after_max,
    blur_for_average,
    blur_then_pointwise,
    blur_after_activation,
    blur_before_conv,
    blur_before_sampling,
    align_windows,
    antialias_resize,
)


@dataclass(frozen=True)
class Preset:
    """Named choices: rules asked first, and defaults of the options."""

    rules: tuple[Rule, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "zhang2019": Preset(
        rules=(leave_stem, split_stride_of_4, small_stem_pool), defaults={"filter": "tri-4"}
    ),
}
