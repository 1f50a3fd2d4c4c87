"""UNets, autoencoders and adapters of `diffusers`, a few channels wide."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from aa_surgery.sweep.libraries.specimen import Library, Specimen, noise

__all__ = ["LIBRARY"]

_TWO = (8, 16)
_UNET: dict[str, Any] = dict(
    sample_size=32,
    in_channels=4,
    out_channels=4,
    block_out_channels=_TWO,
    layers_per_block=1,
    norm_num_groups=4,
)
_TEXT: dict[str, Any] = {**_UNET, "cross_attention_dim": 16, "attention_head_dim": 4}
_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D")
_VAE: dict[str, Any] = dict(
    block_out_channels=_TWO,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
    layers_per_block=1,
    norm_num_groups=4,
)
_IMAGE, _LATENT, _CLIP = (2, 3, 32, 32), (2, 4, 32, 32), (1, 3, 9, 32, 32)

_MODELS: dict[str, tuple[str, dict[str, Any], str, tuple[int, ...]]] = {
    "UNet2DModel": (
        "UNet2DModel",
        {
            **_UNET,
            "in_channels": 3,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 4,
        },
        "step",
        _IMAGE,
    ),
    "UNet2DModel-resnet": (
        "UNet2DModel",
        {
            **_UNET,
            "in_channels": 3,
            "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
            "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
            "downsample_type": "resnet",
        },
        "step",
        _IMAGE,
    ),
    "UNet2DModel-skip": (
        "UNet2DModel",
        {
            **_UNET,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (32, 32),
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            "norm_num_groups": None,
        },
        "step",
        _IMAGE,
    ),
    "UNet2DConditionModel": (
        "UNet2DConditionModel",
        {**_TEXT, "down_block_types": _DOWN, "up_block_types": _UP},
        "text",
        _LATENT,
    ),
    "UNet2DConditionModel-simple": (
        "UNet2DConditionModel",
        {
            **_TEXT,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        },
        "text",
        _LATENT,
    ),
    "UNet3DConditionModel": (
        "UNet3DConditionModel",
        {
            **_TEXT,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        "text",
        (2, 4, 4, 32, 32),
    ),
    "UNetMotionModel": (
        "UNetMotionModel",
        {
            **{k: v for k, v in _TEXT.items() if k != "attention_head_dim"},
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
            "motion_num_attention_heads": 2,
        },
        "text",
        (2, 4, 4, 32, 32),
    ),
    "ControlNetModel": (
        "ControlNetModel",
        {
            **{k: v for k, v in _TEXT.items() if k not in ("out_channels", "sample_size")},
            "down_block_types": _DOWN,
            "conditioning_embedding_out_channels": (8, 16),
        },
        "control",
        _LATENT,
    ),
    "UNet1DModel": ("UNet1DModel", dict(extra_in_channels=16), "step", (2, 2, 256)),
    "AutoencoderKL": ("AutoencoderKL", _VAE, "image", _IMAGE),
    "AsymmetricAutoencoderKL": (
        "AsymmetricAutoencoderKL",
        dict(
            down_block_types=("DownEncoderBlock2D",) * 2,
            down_block_out_channels=_TWO,
            up_block_types=("UpDecoderBlock2D",) * 2,
            up_block_out_channels=_TWO,
            norm_num_groups=4,
        ),
        "image",
        _IMAGE,
    ),
    "AutoencoderTiny": (
        "AutoencoderTiny",
        dict(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
        ),
        "image",
        _IMAGE,
    ),
    "AutoencoderDC": (
        "AutoencoderDC",
        dict(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 16),
            decoder_block_out_channels=(8, 16),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        ),
        "image",
        _IMAGE,
    ),
    "AutoencoderDC-unshuffle": (
        "AutoencoderDC",
        dict(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 16),
            decoder_block_out_channels=(8, 16),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            downsample_block_type="pixel_unshuffle",
            upsample_block_type="pixel_shuffle",
        ),
        "image",
        _IMAGE,
    ),
    "AutoencoderKLTemporalDecoder": (
        "AutoencoderKLTemporalDecoder",
        dict(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
            layers_per_block=1,
        ),
        "frames",
        _IMAGE,
    ),
    "VQModel": (
        "VQModel",
        {**_VAE, "num_vq_embeddings": 16, "latent_channels": 3},
        "image",
        _IMAGE,
    ),
    "AutoencoderKLFlux2": ("AutoencoderKLFlux2", _VAE, "image", _IMAGE),
    "AutoencoderKLCogVideoX": (
        "AutoencoderKLCogVideoX",
        dict(block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=4),
        "image",
        _CLIP,
    ),
    "AutoencoderKLCosmos": (
        "AutoencoderKLCosmos",
        dict(
            encoder_block_out_channels=(8, 8, 8, 8),
            decode_block_out_channels=(8, 8, 8, 8),
            attention_resolutions=(8,),
            resolution=64,
            num_layers=2,
            latent_channels=4,
        ),
        "image",
        _CLIP,
    ),
    "AutoencoderKLHunyuanVideo": (
        "AutoencoderKLHunyuanVideo",
        dict(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4),
        "image",
        _CLIP,
    ),
    "AutoencoderKLHunyuanImage": (
        "AutoencoderKLHunyuanImage",
        dict(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=4,
            sample_size=32,
        ),
        "image",
        _IMAGE,
    ),
    "AutoencoderKLLTXVideo": (
        "AutoencoderKLLTXVideo",
        dict(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
        ),
        "image",
        (1, 3, 9, 64, 64),
    ),
    "AutoencoderKLMochi": (
        "AutoencoderKLMochi",
        dict(
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            latent_channels=4,
            layers_per_block=(1,) * 5,
        ),
        "image",
        (1, 3, 7, 32, 32),
    ),
    "AutoencoderKLMagvit": (
        "AutoencoderKLMagvit",
        dict(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        ),
        "image",
        _CLIP,
    ),
    "AutoencoderKLQwenImage": (
        "AutoencoderKLQwenImage",
        dict(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        "image",
        (1, 3, 1, 32, 32),
    ),
    "AutoencoderKLWan": (
        "AutoencoderKLWan",
        dict(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        "image",
        _CLIP,
    ),
    "AutoencoderOobleck": (
        "AutoencoderOobleck",
        dict(
            encoder_hidden_size=8,
            decoder_channels=8,
            decoder_input_channels=4,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
        ),
        "image",
        (2, 2, 256),
    ),
    "T2IAdapter": (
        "T2IAdapter",
        dict(channels=[8, 16], num_res_blocks=1, downscale_factor=8),
        "image",
        (2, 3, 64, 64),
    ),
    "T2IAdapter-light": (
        "T2IAdapter",
        dict(channels=[8, 16], num_res_blocks=1, downscale_factor=8, adapter_type="light_adapter"),
        "image",
        (2, 3, 64, 64),
    ),
}

_LEFT_OUT = {
    "*Transformer*Model": "tokens: their one sampling op is the patch embedding",
    "Audio*, *Vocoder, *Tokenizer": "sound",
    "Kandinsky3UNet, AutoencoderKLAllegro": "widths that cannot be made small; encodes tiles alone",
    "StableCascadeUNet, I2VGenXLUNet, UNetControlNetXSModel, UNetSpatioTemporalConditionModel": (
        "the blocks of the UNets above, with more conditions"
    ),
}


def _specimen(name: str) -> Specimen:
    kind, options, takes, shape = _MODELS[name]
    model = getattr(import_module("diffusers"), kind)(**options)
    return Specimen(model, *_input(takes, shape))


def _input(takes: str, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, step, text = noise(*shape), torch.tensor(3), noise(shape[0], 5, 16)
    if takes == "step":
        return (x, step), {}
    if takes == "text":
        return (x, step, text), {}
    if takes == "control":
        high, wide = (8 * n // 4 for n in shape[2:])
        return (x, step, text, noise(shape[0], 3, high, wide)), {}
    return (x,), {"num_frames": 1} if takes == "frames" else {}


LIBRARY = Library("diffusers", "diffusers", "diffusers", lambda: _MODELS, _specimen, _LEFT_OUT)
