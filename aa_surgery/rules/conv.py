"""Strided convolutions."""

from __future__ import annotations

from aa_surgery.methods import Method
from aa_surgery.rules.edit import Edit, Left, Options
from aa_surgery.sites import Site

__all__ = [
    "blur_after_activation",
    "blur_before_conv",
    "blur_then_pointwise",
    "replace_conv",
]


def replace_conv(site: Site, options: Options) -> Edit | Left | None:
    """Put the method's own module in the place of the convolution, where it has one.

    Only a convolution with the forward of torch, or of timm's SAME padding, is replaced: what
    another forward does with its weight is not known.
    """
    if site.op != "conv" or options.method.replacement is None or site.node or site.opaque:
        return None
    return options.edit(site, "replace")


def blur_then_pointwise(site: Site, options: Options) -> Edit | Left | None:
    """Give a strided 1x1 convolution its samples filtered: blur and subsample, conv at stride 1.

    Equal to blurring behind the convolution, since the two commute, and `stride**2` cheaper.
    """
    if site.op != "conv" or site.opaque or set(site.kernel) != {1} or any(site.padding):
        return None
    if not options.method.stands_before:
        return None
    return options.edit(
        site,
        "pre",
        op_stride=(1,) * site.ndim,
        blur_stride=site.stride,
        rate=site.stride,
        anchor=site.front,
    )


def blur_after_activation(site: Site, options: Options) -> Edit | Left | None:
    """Run the convolution at stride 1, and blur and subsample behind its activation.

    The paper's order (Zhang 2019, section 3.2): the non-linearity makes new high frequencies, so
    the filter comes after it. Where no activation follows, a filter in front of the convolution
    does the same for `1 / stride**2` of the cost, so `"auto"` leaves that to the next rule.
    """
    if site.op != "conv" or site.opaque or site.output is None:
        return None
    if options.placement == "pre" and options.method.stands_before:
        return None
    if options.placement == "auto" and not _dense_is_better(site, options.method):
        return None
    if site.activation is not None:
        return options.dense_then_blur(site, site.activation)
    # not behind the norm, which may be converted or merged without the convolution
    note = "no activation follows: blurred behind the convolution"
    return options.dense_then_blur(site, site.back, note=note)


def _dense_is_better(site: Site, method: Method) -> bool:
    """Whether `"auto"` runs the convolution at stride 1."""
    if not method.stands_before:
        return True
    overlaps = not site.kernel or any(k > s for k, s in zip(site.kernel, site.stride, strict=True))
    # rolled to its phase, a map has samples of the far border within windows that overlap
    return overlaps and (site.activation is not None or method.shares_phase)


def blur_before_conv(site: Site, options: Options) -> Edit | Left | None:
    """Blur in front of the convolution, which keeps its stride."""
    if site.op != "conv":
        return None
    note = site.opaque or site.unseen
    if options.placement == "post" and not note:
        note = "its output could not be followed: blurred before instead"
    return options.blur_before(site, note)
