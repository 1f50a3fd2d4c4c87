"""The choices of the package published with Zhang 2019, where they differ from our defaults.

Facts about `antialiased-cnns` 0.3 as its documentation and behaviour show them: it leaves the
stem convolutions of ResNet, DenseNet and MobileNetV2 alone (`pool_only=True`), splits AlexNet's
stride of 4 in two, and pools ResNet's stem with a window of 2.
"""

from __future__ import annotations

from aa_surgery.rules.edit import Edit, Left, Options
from aa_surgery.sites import Site

__all__ = ["leave_stem", "small_stem_pool", "split_stride_of_4"]

_IMAGE_CHANNELS = 4


def leave_stem(site: Site, options: Options) -> Edit | Left | None:
    """Leave the convolution that reads the image, if its stride is 2."""
    if site.op == "conv" and site.in_channels <= _IMAGE_CHANNELS and site.max_stride == 2:
        return Left(site, "zhang2019 keeps the strided stem convolution")
    return None


def split_stride_of_4(site: Site, options: Options) -> Edit | Left | None:
    """Give half of a stride of 4 to the blur behind the activation (AlexNet's first layer)."""
    if site.op != "conv" or set(site.stride) != {4} or site.activation is None:
        return None
    half = (2,) * site.ndim
    return options.edit(
        site, "post", op_stride=half, blur_stride=half, rate=half, anchor=site.activation
    )


def small_stem_pool(site: Site, options: Options) -> Edit | Left | None:
    """Pool ResNet's stem with a window of 2 and no padding, instead of 3 and 1."""
    if site.op != "max_pool" or site.scope_kind != "ResNet" or set(site.kernel) != {3}:
        return None
    return options.dense_then_blur(site, site.back, pool_kernel=(2,) * site.ndim)
