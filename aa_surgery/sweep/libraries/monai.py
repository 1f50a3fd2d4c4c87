"""The networks of `MONAI`, in two dimensions where they can, else in three; 32 to 256 voxels."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from aa_surgery.sweep.libraries.specimen import Library, Specimen, filled, noise

__all__ = ["LIBRARY"]

_COMMON: dict[str, Any] = dict(
    spatial_dims=2,
    in_channels=3,
    out_channels=2,
    num_classes=2,
    channels=(8, 16, 32),
    strides=(2, 2),
    pretrained=False,
    hidden_size=32,
    mlp_dim=64,
    num_layers=2,
    num_heads=2,
)
_ATTENTION: dict[str, Any] = dict(
    channels=(8, 16, 16),
    attention_levels=(False, False, True),
    num_res_blocks=1,
    norm_num_groups=4,
)
_SENETS = ("SEResNet50", "SEResNet101", "SEResNext50", "SEResNext101")
_SENET: dict[str, Any] = dict(spatial_dims=2, in_channels=3, num_classes=2, layers=(1, 1, 1, 1))
_SWIN: dict[str, Any] = dict(feature_size=12, num_heads=(3, 6, 12, 24))
_FLAT, _DEEP = (2, 3, 64, 64), (2, 1, 32, 32, 32)

_MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "AHNet": ("AHNet", dict(layers=(1, 1, 1, 1)), (2, 3, 256, 256)),
    "AttentionUnet": ("AttentionUnet", {}, _FLAT),
    "AttentionUnet-3d": ("AttentionUnet", dict(spatial_dims=3, in_channels=1), _DEEP),
    "AutoEncoder": ("AutoEncoder", dict(strides=(2, 2, 2)), _FLAT),
    "AutoencoderKL": ("AutoencoderKL", _ATTENTION, _FLAT),
    "AutoencoderKL-3d": ("AutoencoderKL", {**_ATTENTION, "spatial_dims": 3}, (2, 3, 16, 16, 16)),
    "BasicUNet": ("BasicUNet", {}, _FLAT),
    "BasicUNet-3d": ("BasicUNet", dict(spatial_dims=3, in_channels=1), _DEEP),
    "BasicUNetPlusPlus": ("BasicUNetPlusPlus", {}, _FLAT),
    "Classifier": ("Classifier", dict(in_shape=(3, 64, 64), classes=2, strides=(2, 2, 2)), _FLAT),
    "ControlNet": (
        "ControlNet",
        {**_ATTENTION, "conditioning_embedding_num_channels": (8, 16)},
        _FLAT,
    ),
    "Critic": ("Critic", dict(in_shape=(3, 64, 64), strides=(2, 2, 2)), _FLAT),
    "DenseNet121": ("DenseNet121", {}, _FLAT),
    "DenseNet121-3d": ("DenseNet121", dict(spatial_dims=3, in_channels=1), (2, 1, 64, 64, 64)),
    "DiffusionModelUNet": (
        "DiffusionModelUNet",
        {**_ATTENTION, "num_head_channels": 4},
        _FLAT,
    ),
    "DiffusionModelUNet-3d": (
        "DiffusionModelUNet",
        {**_ATTENTION, "num_head_channels": 4, "spatial_dims": 3},
        (2, 3, 16, 16, 16),
    ),
    "Discriminator": ("Discriminator", dict(in_shape=(3, 64, 64), strides=(2, 2, 2)), _FLAT),
    "DynUNet": (
        "DynUNet",
        dict(kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2)),
        _FLAT,
    ),
    "DynUNet-3d": (
        "DynUNet",
        dict(
            spatial_dims=3,
            in_channels=1,
            kernel_size=(3, (3, 3, 1), 3),
            strides=(1, (2, 2, 1), 2),
            upsample_kernel_size=((2, 2, 1), 2),
        ),
        _DEEP,
    ),
    "EfficientNetBN-b0": ("EfficientNetBN", dict(model_name="efficientnet-b0"), _FLAT),
    "EfficientNetBN-b0-3d": (
        "EfficientNetBN",
        dict(model_name="efficientnet-b0", spatial_dims=3, in_channels=1),
        _DEEP,
    ),
    "EfficientNetBNFeatures": ("EfficientNetBNFeatures", dict(model_name="efficientnet-b1"), _FLAT),
    "FlexibleUNet": ("FlexibleUNet", dict(backbone="efficientnet-b0"), _FLAT),
    "FlexibleUNet-resnet18": ("FlexibleUNet", dict(backbone="resnet18"), _FLAT),
    "GlobalNet": (
        "GlobalNet",
        dict(image_size=(64, 64), num_channel_initial=8, depth=3),
        _FLAT,
    ),
    "HighResNet": ("HighResNet", {}, _FLAT),
    "HoVerNet": ("HoVerNet", dict(mode="fast"), (2, 3, 256, 256)),
    "LocalNet": ("LocalNet", dict(num_channel_initial=8, extract_levels=(0, 1, 2)), _FLAT),
    "MILModel": ("MILModel", dict(mil_mode="att_trans"), (2, 2, 3, 64, 64)),
    "MaskedAutoEncoderViT": (
        "MaskedAutoEncoderViT",
        dict(img_size=64, patch_size=16, decoder_hidden_size=32, decoder_num_heads=2),
        _FLAT,
    ),
    "MedNeXt": ("MedNeXt", dict(init_filters=8), _FLAT),
    "MedNeXt-3d": ("MedNeXt", dict(spatial_dims=3, in_channels=1, init_filters=8), _DEEP),
    "MultiScalePatchDiscriminator": (
        "MultiScalePatchDiscriminator",
        dict(num_d=2, num_layers_d=2, channels=8, minimum_size_im=64),
        _FLAT,
    ),
    "PatchDiscriminator": ("PatchDiscriminator", dict(channels=8), _FLAT),
    "Quicknat": ("Quicknat", dict(num_channels=3, num_filters=8), _FLAT),
    "RegUNet": ("RegUNet", dict(num_channel_initial=8, depth=3), _FLAT),
    "Regressor": (
        "Regressor",
        dict(in_shape=(3, 64, 64), out_shape=(2,), strides=(2, 2, 2)),
        _FLAT,
    ),
    "ResNetFeatures-3d": (
        "ResNetFeatures",
        dict(model_name="resnet18", spatial_dims=3, in_channels=1),
        _DEEP,
    ),
    "SENet154": ("SENet154", _SENET, _FLAT),
    **{name: (name, _SENET, _FLAT) for name in _SENETS},
    "SPADEAutoencoderKL": ("SPADEAutoencoderKL", {**_ATTENTION, "label_nc": 3}, _FLAT),
    "SPADEDiffusionModelUNet": (
        "SPADEDiffusionModelUNet",
        {**_ATTENTION, "label_nc": 3, "num_head_channels": 4},
        _FLAT,
    ),
    "SPADENet": (
        "SPADENet",
        dict(label_nc=3, input_shape=[64, 64], channels=[16, 32, 32], z_dim=8, in_channels=3),
        _FLAT,
    ),
    "SegResNet": ("SegResNet", {}, _FLAT),
    "SegResNet-3d": ("SegResNet", dict(spatial_dims=3, in_channels=1), _DEEP),
    "SegResNetDS": ("SegResNetDS", dict(init_filters=8), _FLAT),
    "SegResNetDS2": ("SegResNetDS2", dict(init_filters=8), _FLAT),
    "SegResNetVAE": ("SegResNetVAE", dict(input_image_size=(64, 64)), _FLAT),
    "SwinUNETR": ("SwinUNETR", _SWIN, _FLAT),
    "SwinUNETR-3d": (
        "SwinUNETR",
        {**_SWIN, "spatial_dims": 3, "in_channels": 1},
        (1, 1, 64, 64, 64),
    ),
    "SwinUNETR-v2": ("SwinUNETR", {**_SWIN, "use_v2": True}, _FLAT),
    "TorchVisionFCModel": (
        "TorchVisionFCModel",
        dict(model_name="resnet18", in_channels=None),
        (2, 3, 224, 224),
    ),
    "UNETR": ("UNETR", dict(img_size=64, feature_size=8), _FLAT),
    "UNETR-3d": ("UNETR", dict(img_size=32, feature_size=8, spatial_dims=3, in_channels=1), _DEEP),
    "UNet": ("UNet", {}, _FLAT),
    "UNet-residual-3d": ("UNet", dict(spatial_dims=3, in_channels=1, num_res_units=2), _DEEP),
    "VNet": ("VNet", dict(in_channels=1), (2, 1, 64, 64)),
    "VNet-3d": ("VNet", dict(spatial_dims=3, in_channels=1), _DEEP),
    "VQVAE": (
        "VQVAE",
        dict(
            channels=(8, 16),
            num_res_layers=1,
            num_res_channels=(8, 16),
            downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
            upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
            num_embeddings=8,
            embedding_dim=8,
        ),
        _FLAT,
    ),
    "VarAutoEncoder": (
        "VarAutoEncoder",
        dict(in_shape=(3, 64, 64), latent_size=8, strides=(2, 2, 2)),
        _FLAT,
    ),
    "ViT": ("ViT", dict(img_size=64, patch_size=16, classification=True), _FLAT),
    "ViT-perceptron": ("ViT", dict(img_size=64, patch_size=16, proj_type="perceptron"), _FLAT),
    "ViTAutoEnc": ("ViTAutoEnc", dict(img_size=64, patch_size=16), _FLAT),
    "VoxelMorph": ("VoxelMorph", {}, (2, 1, 64, 64)),
    "VoxelMorphUNet": (
        "VoxelMorphUNet",
        dict(
            in_channels=2, unet_out_channels=8, channels=(8, 16, 16, 16), final_conv_channels=(8, 8)
        ),
        (2, 2, 64, 64),
    ),
}

_LEFT_OUT = {
    "DiNTS, Transchex, VISTA3D, HyenaNDUNETR, NaViT": "searched cells, text, prompts, packages "
    "that are not installed, packed patches",
    "DAF3D, AHNet in 3-D": "minutes a forward on a CPU",
    "FullyConnectedNet, DecoderOnlyTransformer, Generator, NetAdapter": "no map is sampled, or "
    "another network stands inside",
}


def _specimen(name: str) -> Specimen:
    kind, own, shape = _MODELS[name]
    model: nn.Module = filled(getattr(import_module("monai.networks.nets"), kind), _COMMON, **own)
    return Specimen(model, _input(kind, shape))


def _input(kind: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
    x, step = noise(*shape), torch.tensor([1, 5])
    if kind == "DiffusionModelUNet":
        return x, step
    if kind == "ControlNet":
        return x, step, noise(2, 1, 128, 128)
    if kind == "SPADEDiffusionModelUNet":
        return x, step, noise(2, 3, 64, 64)
    if kind in ("SPADEAutoencoderKL", "SPADENet"):
        return x, x
    if kind == "VoxelMorph":
        return x, x.flip(-1)
    return (x,)


LIBRARY = Library("monai", "monai", "monai", lambda: _MODELS, _specimen, _LEFT_OUT)
