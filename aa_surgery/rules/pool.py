"""Strided maximum and average pools."""

from __future__ import annotations

from aa_surgery.rules.edit import Edit, Left, Options
from aa_surgery.sites import Anchor, Site

__all__ = ["blur_after_max", "blur_for_average"]


def blur_after_max(site: Site, options: Options) -> Edit | Left | None:
    """Take the maximum at stride 1, then blur and subsample (Zhang 2019, MaxBlurPool)."""
    if site.op != "max_pool":
        return None
    return _dense_then_blur(site, options)


def blur_for_average(site: Site, options: Options) -> Edit | Left | None:
    """Blur and subsample in the place of the average (Zhang 2019).

    With `placement="post"`, or a filter of one tap, the average stays: at stride 1, then the blur.
    """
    if site.op != "avg_pool":
        return None
    if options.placement == "post" or options.filter.is_identity:
        return _dense_then_blur(site, options)
    return options.edit(site, "replace", blur_stride=site.stride, rate=site.stride)


def _dense_then_blur(site: Site, options: Options) -> Edit:
    return options.edit(
        site,
        "post",
        op_stride=(1,) * site.ndim,
        blur_stride=site.stride,
        rate=site.stride,
        anchor=behind_op(site),
    )


def behind_op(site: Site) -> Anchor:
    """Return the place right behind a site's op."""
    if site.node and ":" in site.name:
        return Anchor("node", site.scope, site.node, site.given)
    return Anchor("after", site.name)
