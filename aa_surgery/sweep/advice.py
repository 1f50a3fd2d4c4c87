"""What a user can do about a site that the plan leaves."""

from __future__ import annotations

import re

__all__ = ["advice"]

_ADVICE = (
    (r"is above max_stride=", "`apply_antialias(model, max_stride=None)` treats it"),
    (r"bins change with the map", "nothing: it is an average or maximum over the whole map"),
    (r"already a low-pass filter|already an average", "nothing: it is filtered"),
    (r"no whole stride", "resize by a whole factor, or with `mode='bilinear'`"),
    (r"stays as it is\. Do that", "what the reason says"),
    (r"window order, whose", "nothing in the module: the model's other sites are treated"),
    (r"is no plain maximum or mean", "put `aa_surgery.layers.BlurPool` before it in your code"),
    (r"returns? .*indices", "unpooling needs the indices; leave it, or pool without indices"),
)
_OTHER = "write a rule (CONTRIBUTING.md), or blur before the op in the model's code"


def advice(reason: str) -> str:
    """Return what a user can do where a site is left for that reason.

    >>> advice("stride 16 is above max_stride=4")
    '`apply_antialias(model, max_stride=None)` treats it'
    """
    return next((text for pattern, text in _ADVICE if re.search(pattern, reason)), _OTHER)
