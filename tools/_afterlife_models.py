"""The models of the after-life table: one a timm family, and some of other libraries."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from aa_surgery import NoEffectWarning, apply_antialias, plan_antialias
from aa_surgery.models import load_model
from aa_surgery.sweep import outside

SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 331, 384, 512)
"""Sides (px) to try: the smallest at which the untouched model trains is taken."""

# The architecture with the fewest parameters of each module of timm 1.0.31.
TIMM = """
    beit_base_patch16_224 halonet_h1 test_byobnet cait_xxs24_224 coat_tiny convit_tiny
    convmixer_768_32 test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s
    cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 test_efficientnet efficientvim_m1
    efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8
    focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0
    hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
    test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050
    mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge
    nest_tiny nextvit_small test_nfnet pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m
    rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d test_resnet
    resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
    starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window16_256
    swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11
    visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224
    vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p
    xcit_nano_12_p8_224
""".split()

# Families of many kinds have more than one.
MORE = """
    mobileone_s0 repvgg_a0 eca_botnext26ts_256 convnext_atto resnet18 resnet50d
    tf_efficientnet_lite0 tf_efficientnetv2_b0 mobilenetv4_conv_small maxvit_pico_rw_256
    poolformer_s12 twins_pcpvt_small
""".split()

OTHERS = """
    torchvision:resnet18 torchvision:swin_t torchvision:densenet121 torchvision:mobilenet_v3_small
    torchvision:fcn_resnet50 transformers:convnext transformers:resnet transformers:segformer
    transformers:swin smp:unet-resnet34 smp:fpn-mobilenet_v2
""".split()

_FEW = (1, 1, 1, 1)
_FEWER: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (
        """beit_base_patch16_224 cait_xxs24_224 convit_tiny deepseek_vit_412m deit_tiny_patch16_224
        gemma4_vit_167m naflexvit_base_patch16_parfac_gap qwen3_vit_88m samvit_base_patch16_224
        tnt_s_legacy_patch16_224 vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224
        xcit_nano_12_p8_224""",
        {"depth": 4},
    ),
    (
        """davit_tiny edgenext_xx_small efficientformer_l1
        inception_next_atto lcnetv2_small maxvit_pico_rw_256 pvt_v2_b0
        swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 swinv2_cr_tiny_224 tiny_vit_5m_224
        twins_pcpvt_small twins_svt_small""",
        {"depths": _FEW},
    ),
    (
        "fastvit_t8 res2next50 resnet50d sequencer2d_s skresnet18 swiftformer_xs tresnet_m",
        {"layers": _FEW},
    ),
    ("hiera_tiny_224 sam2_hiera_tiny", {"stages": _FEW}),
    ("efficientvit_m0 levit_128s pit_ti_224 shvit_s1", {"depth": _FEW[:3]}),
    ("densenet121", {"block_config": (2, 2, 2, 2)}),
    ("efficientvim_m1", {"depths": _FEW[:3]}),
    ("vgg11", {"num_classes": 10}),
)
SMALLER = {name: options for names, options in _FEWER for name in names.split()}
"""Options that make a model shallower: a block that repeats tells nothing new."""


@dataclass(frozen=True)
class Sample:
    """One architecture, as `aa_surgery.models.load_model` or `sweep.outside` names it."""

    name: str

    @property
    def options(self) -> Mapping[str, Any]:
        return SMALLER.get(self.name, {})

    @property
    def family(self) -> str:
        """Return the module that defines it, with the library where that is not timm."""
        library, _, rest = self.name.rpartition(":")
        if library == "torchvision":
            import torchvision

            module = torchvision.models.get_model_builder(rest).__module__
            return module.replace(".models", "")
        if library:
            return outside.family_of(self.name)
        return timm.models.model_entrypoint(self.name).__module__.rpartition(".")[2]

    @property
    def in_timm(self) -> bool:
        return ":" not in self.name

    def build(self, **more: Any) -> nn.Module:
        """Return the untouched model in eval mode, with the same random weights at every call."""
        torch.manual_seed(0)
        options = {**self.options, **more}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hosts warn about their own initialisation
            if self.in_timm or self.name.startswith("torchvision:"):
                return load_model(self.name, **options).eval()
            return outside.build(self.name, **options).eval()


def samples(only: Sequence[str] = ()) -> list[Sample]:
    """Return every sample, or those whose name or family has one of the texts `only`."""
    found = [Sample(name) for name in (*TIMM, *MORE, *OTHERS)]
    chosen = [s for s in found if not only or any(o in f"{s.family} {s.name}" for o in only)]
    return sorted(chosen, key=lambda s: (not s.in_timm, s.family, s.name))


class Subject:
    """One side of a comparison: the untouched model or the anti-aliased one, and its inputs.

    Attributes:
        sample: The architecture.
        treated: Whether surgery is done.
    """

    def __init__(self, sample: Sample, treated: bool) -> None:
        self.sample = sample
        self.treated = treated

    @cached_property
    def _original(self) -> tuple[nn.Module, int]:
        torch.manual_seed(0)
        model = self.sample.build()
        size = smallest_size(model)
        torch.manual_seed(1)
        awaken(model)
        settle(model, torch.cat([noise(2, size), noise(3, size)]))
        return model, size

    @property
    def original(self) -> nn.Module:
        return self._original[0]

    @property
    def size(self) -> int:
        return self._original[1]

    @cached_property
    def model(self) -> nn.Module:
        """The side's model, in eval mode; leave it as it is."""
        return self.unused()

    def fresh(self) -> nn.Module:
        """Return a model equal to `model`, to change at will."""
        try:
            return copy.deepcopy(self.model)
        except Exception:  # then that is one failure, not one of every operation
            return self.unused()

    def unused(self) -> nn.Module:
        """Return a model equal to `model`, that has not run."""
        model = self.sample.build()
        model.load_state_dict(self.original.state_dict())
        if self.treated:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoEffectWarning)  # a net without a site
                apply_antialias(model, **self.options)
        return model

    @cached_property
    def options(self) -> dict[str, Any]:
        """The surgery's: the default, or every stride where the default leaves every site."""
        plan = plan_antialias(self.original)
        return {} if plan.edits else {"max_stride": None}

    def images(self, batch: int = 2) -> Tensor:
        """Return noise `(batch, 3, size, size)`, the same at every call."""
        return noise(batch, self.size)

    @cached_property
    def expected(self) -> list[Tensor]:
        """Outputs of `model` in eager mode for `images()`."""
        return outputs(self.model, self.images())


def noise(batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, size, size, generator=generator)


def outputs(model: Any, x: Tensor) -> list[Tensor]:
    """Run without gradients, and return every tensor of the result."""
    with torch.no_grad():
        return tensors(model(x))


def tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def smallest_size(model: nn.Module) -> int:
    """Return the side (px) that the model is made for; where that is free, the smallest."""
    config = getattr(model, "pretrained_cfg", None) or {}
    default = config.get("input_size", (3, 224, 224))[-1]
    made_for = getattr(getattr(model, "config", None), "image_size", None)  # transformers
    if made_for is not None or config.get("fixed_input_size"):
        return made_for or default
    for size in SIZES:
        try:
            for mode in (True, False):
                outputs(model.train(mode), torch.zeros(2, 3, size, size))
        except Exception:  # whatever a host raises for a size that it cannot take
            continue
        return size
    return default


def awaken(model: nn.Module) -> None:
    """Give norms and zero-initialised scales values, so that no path of the net is silent."""
    for parameter in model.parameters():
        if parameter.ndim <= 1 or not parameter.any():
            parameter.data.uniform_(0.5, 1.0)


def settle(model: nn.Module, x: Tensor) -> None:
    """Give batch norms the statistics of `x`, so that activations of deep nets stay bounded.

    `x` should hold the images of the trials. Channels that hardly vary are not blown up, as the
    errors of half precision would be with them.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    outputs(model.train(), x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=0.1)
    model.eval()
