"""Models of libraries that users bring: Hugging Face `transformers`, `segmentation_models_pytorch`.

Each is built from its configuration's defaults with random weights; nothing is downloaded.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from aa_surgery.errors import InputError

__all__ = ["build", "family_of", "names"]

_TRANSFORMERS = {
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification"),
    "convnextv2": ("ConvNextV2Config", "ConvNextV2ForImageClassification"),
    "pvt": ("PvtConfig", "PvtForImageClassification"),
    "pvt_v2": ("PvtV2Config", "PvtV2ForImageClassification"),
    "resnet": ("ResNetConfig", "ResNetForImageClassification"),
    "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation"),
    "swin": ("SwinConfig", "SwinForImageClassification"),
    "swinv2": ("Swinv2Config", "Swinv2ForImageClassification"),
}
_DECODERS = {"unet": "Unet", "fpn": "FPN"}
_ENCODERS = ("resnet34", "efficientnet-b0", "mobilenet_v2")


def names() -> list[str]:
    """Return `library:name` of every model; a library that is missing shows when it is built."""
    smp = [f"smp:{decoder}-{encoder}" for decoder in _DECODERS for encoder in _ENCODERS]
    return [*(f"transformers:{name}" for name in _TRANSFORMERS), *smp]


def family_of(name: str) -> str:
    """Return the library and the module that defines a model."""
    library, _, rest = name.partition(":")
    return f"{library}.{rest.partition('-')[0]}"


def build(name: str, **kwargs: Any) -> nn.Module:
    """Return a model with random weights.

    Args:
        name: One of `names()`.
        **kwargs: Options of its configuration.

    Raises:
        InputError: Its library is not installed.
    """
    library, _, rest = name.partition(":")
    if library == "transformers":
        host = _host("transformers")
        config, model = (getattr(host, attribute) for attribute in _TRANSFORMERS[rest])
        return model(config(**kwargs))
    decoder, _, encoder = rest.partition("-")
    host = _host("segmentation_models_pytorch")
    return getattr(host, _DECODERS[decoder])(encoder_name=encoder, encoder_weights=None, **kwargs)


def _host(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise InputError(
            f"source 'outside': {library} cannot be imported ({error}). "
            'Install it: pip install "aa-surgery[sweep]".'
        ) from error
