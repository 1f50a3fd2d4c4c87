"""What find cannot read: forwards that decide on sizes, and functions called as they are."""

from __future__ import annotations

from functools import cache
from types import CodeType
from typing import Any

from torch import fx, nn

from aa_surgery.sites.flow import Flow
from aa_surgery.sites.kinds import each_axis
from aa_surgery.sites.leaves import called_function
from aa_surgery.sites.modules import read_module
from aa_surgery.sites.site import Unread

__all__ = ["read_patch_embedding", "unread_forwards"]

_WAY_OUT = (
    "what it subsamples itself stays as it is. Do that in a module (nn.AvgPool2d, nn.Conv2d), or "
    "blur in front of it with aa_surgery.layers.BlurPool2d(stride=1)"
)
# merges that no trace can tell from joining the heads of an attention: reshapes to (B, N, -1);
# and one of a picture that only a loss reads
_PIXELS = "pixel tokens in window order become the channels of patch tokens, by a reshape"
_TOKEN_MERGES = {
    "timm.models.tnt.TNT": _PIXELS,
    "timm.models.tnt.Block": _PIXELS,
    "mmpretrain.models.backbones.tnt.TNT": _PIXELS,
    "mmpretrain.models.backbones.tnt.TnTLayer": _PIXELS,
    "mmpretrain.models.backbones.hivit.PatchMerge": "it merges tokens in window order, whose "
    "neighbours in the map are not at hand, and may be masked",
    "mmpretrain.models.heads.spark_head.SparKPretrainHead": "it cuts the picture that a loss aims "
    "at into patches, with every pixel",
}
_SAMPLING_NAMES = ("conv", "pool", "interpolate", "unfold", "unshuffle", "resize")


def unread_forwards(flow: Flow) -> tuple[Unread, ...]:
    """Return the scopes that could not be traced, and those that call a function as a leaf.

    Of functions, those count that name a sampling op in their code; most compute a size only.
    """
    found = []
    for path, module in flow.modules.items():
        kind = type(module).__name__
        merge = _TOKEN_MERGES.get(f"{type(module).__module__}.{kind}")
        if merge:
            found.append(Unread(path, kind, f"{merge}; {_WAY_OUT}"))
        elif path in flow.failures:
            found.append(Unread(path, kind, f"{flow.failures[path]}; {_WAY_OUT}"))
        for name in _sampling_functions(flow.functions(path), module):
            reason = f"{name}() decides on sizes, so it is called as it is; {_WAY_OUT}"
            found.append(Unread(path, kind, reason))
    return tuple(found)


def _sampling_functions(nodes: list[fx.Node], module: nn.Module) -> list[str]:
    found = []
    for node in nodes:
        function = called_function(node, module)
        if function is None:
            continue
        if _names_sampling(function.__code__):
            found.append(function.__name__)
    return found


@cache
def _names_sampling(code: CodeType) -> bool:
    return any(word in name for name in code.co_names for word in _SAMPLING_NAMES)


def read_patch_embedding(module: nn.Module) -> dict[str, Any] | None:
    """Return the fields of a patch embedding that cuts the image itself, in an unread forward.

    It is known by what it declares: a `patch_size`, a linear layer that reads whole patches, and
    no strided convolution inside (timm's `Gemma4PatchEmbed`).
    """
    size = each_axis(getattr(module, "patch_size", None), 2)
    if size is None or max(size) == 1 or any(read_module(m) for m in module.modules()):
        return None
    pixels = size[0] * size[1]
    linear = [m for m in module.children() if isinstance(m, nn.Linear)]
    if not any(m.in_features % pixels == 0 for m in linear):
        return None
    return dict(op="space_to_depth", kernel=size, stride=size)
