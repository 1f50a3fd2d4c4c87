"""Methods of subsampling without aliasing: one file each, and one line in the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aa_surgery.errors import MethodError, shown
from aa_surgery.methods.adaptive import METHOD as ADAPTIVE
from aa_surgery.methods.aps import METHOD as APS
from aa_surgery.methods.blur import METHOD as BLUR
from aa_surgery.methods.conv3d import METHOD as CONV3D
from aa_surgery.methods.group_conv import METHOD as GROUP_CONV
from aa_surgery.methods.ideal import METHOD as IDEAL
from aa_surgery.methods.learned import METHOD as LEARNED
from aa_surgery.methods.learned import alias_penalty
from aa_surgery.methods.lps import METHOD as LPS
from aa_surgery.methods.lps import set_temperature
from aa_surgery.methods.method import Method
from aa_surgery.methods.wavelet import METHOD as WAVELET

__all__ = [
    "METHODS",
    "Method",
    "alias_penalty",
    "list_methods",
    "resolve_method",
    "set_temperature",
]

_TABLE = (
    BLUR,
    LEARNED,
    GROUP_CONV,
    CONV3D,
    ADAPTIVE,
    APS,
    LPS,
    IDEAL,
    WAVELET,
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}


def list_methods() -> list[str]:
    """Return the names that `apply_antialias(method=...)` takes."""
    return list(METHODS)


def resolve_method(method: str | Mapping[str, Any] | Method) -> Method:
    """Return the method of a name, or of `{"name": ..., option: value}`.

    Raises:
        MethodError: There is no such method, or it has no such option or value of it.

    >>> resolve_method("blur").source
    'Zhang 2019, arXiv:1904.11486'
    """
    if isinstance(method, Method):
        return method
    options = dict(method) if isinstance(method, Mapping) else {"name": method}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in METHODS:
        raise MethodError(f"method {shown(name)} is unknown. Use one of {', '.join(METHODS)}.")
    if isinstance(method, Mapping) and name == BLUR.name and not options:
        # most likely somebody looks for the options of the blur, which are those of the surgery
        raise MethodError(
            f"method={dict(method)!r}: the blur has no options of its own. Its filter, placement "
            "and border are arguments beside method; leave method out."
        )
    return METHODS[name].with_options(options)
