"""The models of `vit-pytorch`, one a module, at 64 px and a few layers."""

from __future__ import annotations

import importlib
from typing import Any

from aa_surgery.sweep.libraries.specimen import Library, Specimen, filled, noise

__all__ = ["LIBRARY"]

_SIDE, _FRAMES = 64, 8

_COMMON: dict[str, Any] = dict(
    image_size=_SIDE,
    image_patch_size=8,
    patch_size=8,
    frames=_FRAMES,
    frame_patch_size=2,
    num_classes=10,
    dim=32,
    depth=2,
    heads=2,
    dim_head=16,
    mlp_dim=64,
    dropout=0.0,
)
_STAGES: dict[str, Any] = dict(dim=16, depth=(1, 1, 1, 1), window_size=2)
_HEADS = (1, 2, 2, 2)
_ND = dict(ndim=3, input_shape=(8, 32, 32), patch_size=(2, 8, 8))

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ats_vit": ("ViT", dict(max_tokens_per_depth=(32, 16))),
    "attn_residual_with_dca_simple_vit": ("SimpleViT", {}),
    "cait": ("CaiT", dict(cls_depth=1)),
    "cct": (
        "CCT",
        dict(img_size=_SIDE, embedding_dim=32, n_conv_layers=2, num_layers=2, num_heads=2),
    ),
    "cct_3d": (
        "CCT",
        dict(img_size=32, num_frames=_FRAMES, embedding_dim=32, num_layers=2, num_heads=2),
    ),
    "cross_vit": ("CrossViT", dict(sm_dim=16, lg_dim=32, sm_patch_size=8, depth=1)),
    "crossformer": (
        "CrossFormer",
        dict(
            dim=(64, 64, 64, 64),
            depth=(1, 1, 1, 1),
            global_window_size=(4, 2, 2, 1),
            local_window_size=2,
        ),
    ),
    "cvt": ("CvT", dict(s2_emb_dim=64, s3_emb_dim=96, s3_depth=2)),
    "deepvit": ("DeepViT", {}),
    "jet_vit": ("JetViT", {}),
    "jumbo_vit": ("JumboViT", {}),
    "learnable_memory_vit": ("ViT", {}),
    "levit": ("LeViT", dict(image_size=128, depth=1, mlp_mult=2)),
    "local_vit": ("LocalViT", dict(dim=_SIDE)),
    "look_vit": ("LookViT", dict(patch_size=16, highres_patch_size=8)),
    "looped_vit": ("LoopedViT", dict(pre_loop_depth=1, num_looped_blocks=1, post_loop_depth=1)),
    "max_vit": ("MaxViT", _STAGES),
    "max_vit_with_registers": ("MaxViT", _STAGES),
    "mobile_vit": (
        "MobileViT",
        dict(
            image_size=(64, 64),
            patch_size=(2, 2),
            dims=[16, 16, 16],
            channels=[8, 8, 16, 16, 16, 16, 16, 16, 16, 16, 32],
        ),
    ),
    "mp3": ("ViT", {}),
    "na_vit": ("NaViT", dict(channels=3)),
    "nest": ("NesT", dict(num_hierarchies=3, block_repeats=(1, 1, 1))),
    "normalized_vit": ("nViT", {}),
    "parallel_vit": ("ViT", {}),
    "pit": ("PiT", dict(depth=(1, 1, 1))),
    "regionvit": ("RegionViT", dict(dim=(64, 64, 64, 64), depth=(1, 1, 1, 1), window_size=4)),
    "rvt": ("RvT", {}),
    "scalable_vit": (
        "ScalableViT",
        {
            **_STAGES,
            "heads": _HEADS,
            "reduction_factor": (8, 4, 2, 1),
            "window_size": (16, 8, 4, 2),
        },
    ),
    "sep_vit": ("SepViT", {**_STAGES, "heads": _HEADS}),
    "simple_flash_attn_vit": ("SimpleViT", {}),
    "simple_flash_attn_vit_3d": ("SimpleViT", {}),
    "simple_uvit": ("SimpleUViT", {}),
    "simple_vit": ("SimpleViT", {}),
    "simple_vit_1d": ("SimpleViT", dict(seq_len=_SIDE)),
    "simple_vit_3d": ("SimpleViT", {}),
    "simple_vit_attn_residual": ("SimpleViTAttnResidual", {}),
    "simple_vit_orthog_residual_update": ("SimpleViT", {}),
    "simple_vit_with_fft": ("SimpleViT", dict(freq_patch_size=8)),
    "simple_vit_with_hyper_connections": ("SimpleViT", dict(num_residual_streams=2)),
    "simple_vit_with_patch_dropout": ("SimpleViT", {}),
    "simple_vit_with_qk_norm": ("SimpleViT", {}),
    "simple_vit_with_register_tokens": ("SimpleViT", {}),
    "simple_vit_with_relative_proj_pos_bias": ("SimpleViT", {}),
    "simple_vit_with_sparse_gating": ("SimpleViTWithSparseGating", {}),
    "simple_vit_with_specialized_cls": ("SimpleViT", {}),
    "simple_vit_with_value_residual": ("SimpleViT", {}),
    "t2t": ("T2TViT", {}),
    "twins_svt": (
        "TwinsSVT",
        {
            **{f"s{i}_emb_dim": 16 * i for i in (1, 2, 3, 4)},
            **{f"s{i}_{k}": 2 for i in (1, 2, 3, 4) for k in ("local_patch_size", "global_k")},
            "s3_depth": 1,
        },
    ),
    "vit": ("ViT", {}),
    "vit_1d": ("ViT", dict(seq_len=_SIDE)),
    "vit_3d": ("ViT", {}),
    "vit_5": ("ViT", {}),
    "vit_detpool": ("ViTDetPool", {}),
    "vit_for_small_dataset": ("ViT", {}),
    "vit_nd": ("ViTND", _ND),
    "vit_nd_pope": ("ViTND", {**_ND, "dim_head": 24}),
    "vit_nd_rotary": ("ViTND", {**_ND, "dim_head": 24}),
    "vit_with_decorr": ("ViT", {}),
    "vit_with_keel_post_ln": ("ViT", {}),
    "vit_with_patch_dropout": ("ViT", {}),
    "vit_with_patch_merger": ("ViT", {}),
    "vivit": ("ViViT", dict(spatial_depth=1, temporal_depth=1, use_flash_attn=False)),
    "vivit_with_moss": ("ViViT", dict(spatial_depth=1, temporal_depth=1, use_flash_attn=False)),
    "wwt": ("WWT", dict(num_slots=4)),
    "xcit": ("XCiT", dict(cls_depth=1)),
}

_LEFT_OUT = {
    "dino, es_vit, lejepa, levjepa, levjepa_nd, mae, mpp, simmim, distill": "losses around one of "
    "the models above",
    "na_vit_nested_tensor, na_vit_nested_tensor_3d": "nested tensors have no map",
    "vaat, vat, vat_siglip": "policies on the features of the models above",
}


_VIDEO = {"cct_3d", "simple_flash_attn_vit_3d", "simple_vit_3d", "vit_3d", "vivit"} | {
    "vivit_with_moss"
}
_SEQUENCE = {"simple_vit_1d", "vit_1d"}


def _specimen(name: str) -> Specimen:
    kind, own = _MODELS[name]
    make = getattr(importlib.import_module(f"vit_pytorch.{name}"), kind)
    return Specimen(filled(make, _COMMON, **own), _input(name, own))


def _input(name: str, own: dict[str, Any]) -> tuple[Any, ...]:
    if name in _VIDEO:
        side = own.get("img_size", _SIDE)
        return (noise(2, 3, _FRAMES, side, side),)
    if name in _SEQUENCE:
        return (noise(2, 3, _SIDE),)
    if "input_shape" in own:
        return (noise(2, 3, *own["input_shape"]),)
    if name == "na_vit":
        return (list(noise(2, 3, _SIDE, _SIDE)),)
    size = own.get("image_size", _SIDE)
    high, wide = size if isinstance(size, tuple) else (size, size)
    return (noise(2, 3, high, wide),)


LIBRARY = Library(
    "vit-pytorch", "vit_pytorch", "vit-pytorch", lambda: _MODELS, _specimen, _LEFT_OUT
)
