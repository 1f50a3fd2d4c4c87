"""timm: register `aa_<name>` for every architecture of the installed timm."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm.models
from timm.models import DefaultCfg
from torch import nn

from aa_surgery.errors import InputError
from aa_surgery.integrations import antialiased
from aa_surgery.methods import list_methods

__all__ = ["FAMILY_ALIASES", "PREFIX", "Entrypoint", "antialias_options", "register"]

PREFIX = "aa_"

FAMILY_ALIASES: dict[str, str] = {
    "coatnet": "coatnet_0_rw_224",
    "convnext": "convnext_tiny",
    "convnextv2": "convnextv2_tiny",
    "cspnet": "cspresnet50",
    "densenet": "densenet121",
    "dla": "dla34",
    "edgenext": "edgenext_small",
    "efficientnet": "efficientnet_b0",
    "efficientnetv2": "efficientnetv2_rw_t",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "ghostnet": "ghostnet_100",
    "hrnet": "hrnet_w18",
    "inception": "inception_v3",
    "levit": "levit_128",
    "maxvit": "maxvit_tiny_tf_224",
    "mobilenet": "mobilenetv3_large_100",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3": "mobilenetv3_large_100",
    "mobilenetv4": "mobilenetv4_conv_small",
    "mobilevit": "mobilevit_s",
    "nfnet": "nfnet_l0",
    "poolformer": "poolformer_s12",
    "pvt": "pvt_v2_b1",
    "regnet": "regnety_032",
    "regnetx": "regnetx_032",
    "regnety": "regnety_032",
    "repvgg": "repvgg_b0",
    "res2net": "res2net50_26w_4s",
    "resnest": "resnest50d",
    "resnet": "resnet50",
    "resnetv2": "resnetv2_50",
    "resnext": "resnext50_32x4d",
    "swin": "swin_tiny_patch4_window7_224",
    "swinv2": "swinv2_tiny_window8_256",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg16_bn",
    "vit": "vit_small_patch16_224",
}
"""Family name to the architecture that `aa_<family>` builds: the family's usual small baseline.

A family that the installed timm has no such architecture for, or whose name is itself a model
there, deprecated ones included, is not offered.
"""


@dataclass(frozen=True)
class Entrypoint:
    """A timm entry point: build `target` as timm would, then anti-alias it.

    Attributes:
        name: The name in timm's registry, `aa_<target>` or `aa_<family>`.
        target: The un-prefixed architecture; looked up at each call, so that this pickles, and
            follows a registration that is overwritten.
    """

    name: str
    target: str

    def __post_init__(self) -> None:
        """Carry what timm's registry reads of a function."""
        # The dataclass is frozen, and its own `__module__` is not the one to file it under.
        vars(self).update(
            __name__=self.name,
            __qualname__=self.name,
            __module__=antialiased.__name__,
            __doc__=f"Build timm's `{self.target}` with anti-aliased downsampling.",
        )

    def __call__(
        self,
        pretrained: bool = False,
        antialias: bool | str | Sequence[float] | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        """Build the model; weights are loaded before the surgery, which keeps their keys.

        Args:
            pretrained: As for the un-prefixed name.
            antialias: `True` or `None` for the defaults, `False` for the untouched model, a
                filter (name or taps), a method's name, or the keywords of `apply_antialias`.
            **kwargs: Every other keyword, as for the un-prefixed name.

        Raises:
            InputError: `antialias` is none of these.
        """
        options = antialias_options(antialias)
        model = timm.models.model_entrypoint(self.target)(pretrained=pretrained, **kwargs)
        if options is not None:
            from aa_surgery.surgery import apply_antialias

            apply_antialias(model, **options)
        cfg = getattr(model, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            # timm rebuilds an exported model from this name; without the prefix it would come
            # back without its filters.
            model.default_cfg = model.pretrained_cfg = {**cfg, "architecture": PREFIX + self.target}
        return model


def antialias_options(antialias: Any) -> dict[str, Any] | None:
    """Return the keywords for `apply_antialias` that a config flag means; `None` for no surgery.

    Raises:
        InputError: It is neither a bool, a filter, nor a mapping of keywords.

    >>> antialias_options("tri-4"), antialias_options("aps"), antialias_options(False)
    ({'filter': 'tri-4'}, {'method': 'aps'}, None)
    """
    if antialias is False:
        return None
    if antialias is None or antialias is True:
        return {}
    if isinstance(antialias, Mapping):
        return dict(antialias)
    if isinstance(antialias, str) and antialias in list_methods():
        return {"method": antialias}
    if isinstance(antialias, (str, Sequence)):
        return {"filter": antialias}
    raise InputError(
        f"antialias={antialias!r}: expected True, False, a filter such as 'tri-3', a method such "
        "as 'aps', or a dict of apply_antialias' keywords such as dict(filter='tri-4', "
        "placement='pre')."
    )


def register() -> list[str]:
    """Register `aa_<name>` for every architecture that timm has, and return the names added.

    Pretrained tags, deprecated names and the family aliases come along. `import aa_surgery` calls
    this; call it again for what was registered with timm later. Names that exist are kept, so
    that a second call adds nothing.

    >>> import timm
    >>> timm.is_model("aa_resnet50"), register()
    (True, [])
    """
    names = [n for n in timm.models.list_models() if not n.startswith(PREFIX)]
    targets = {PREFIX + name: name for name in names}
    known = set(names)
    for family, target in FAMILY_ALIASES.items():
        if target in known and not timm.models.is_model(family):
            targets[PREFIX + family] = target
    added = [name for name in targets if not timm.models.is_model(name)]
    for name in added:
        _register(Entrypoint(name, targets[name]))
    _register_deprecated()
    return added


def _register(entry: Entrypoint) -> None:
    """Give timm the entry point, with the target's pretrained configurations."""
    cfgs = timm.models.get_arch_pretrained_cfgs(entry.target)
    if cfgs:
        # timm's copies hold the hub's id in full, so that the weights stay the original's.
        by_tag = {cfg.tag or "": cfg for cfg in cfgs.values()}
        antialiased.default_cfgs[entry.name] = DefaultCfg(
            tags=deque(by_tag),
            cfgs=by_tag,
            is_pretrained=any(cfg.has_weights for cfg in by_tag.values()),
        )
    setattr(antialiased, entry.name, entry)
    timm.models.register_model(entry)


def _register_deprecated() -> None:
    """Let a deprecated name work with the prefix as without: unlisted, with timm's warning."""
    moved: dict[str, str | None] = {}
    for old, current in timm.models.get_deprecated_models().items():
        new = None if current is None else PREFIX + current
        if old.startswith(PREFIX) or timm.models.is_model(PREFIX + old):
            continue
        if new is None or hasattr(antialiased, new.partition(".")[0]):
            moved[PREFIX + old] = new
    timm.models.register_model_deprecations(antialiased.__name__, moved)
