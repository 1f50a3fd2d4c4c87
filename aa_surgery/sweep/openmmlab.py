"""MMPretrain's backbones, and its self-supervised models that pull views of a picture together.

Of its model index, one name stands for each distinct backbone config; classes that are in no config
of the index have one of their own here. Nothing is downloaded, no weights are initialised.
"""

from __future__ import annotations

import inspect
import json
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from aa_surgery.errors import InputError
from aa_surgery.sweep.takes import Takes

__all__ = ["LEFT_OUT", "build", "family_of", "input_size", "names", "takes"]

LEFT_OUT = {
    "mmpretrain CSPNet": "abstract; CSPDarkNet, CSPResNet and CSPResNeXt are in the sweep",
    "mmpretrain swinv2-*-w12_3rdparty_in21k-192px": "mmengine cannot read their configs (KeyError: "
    "'test_pipeline'); ten other SwinTransformerV2 are in the sweep",
    "mmpretrain multi-modal models": "they need mmpretrain[multimodal]; the backbones that encode "
    "their pictures are in the sweep, and a language model has no map",
}
"""What is not among `names()`, and why."""

_NOT_IN_INDEX: dict[str, dict[str, Any]] = {
    "AlexNet": dict(type="AlexNet"),
    "LeNet5": dict(type="LeNet5"),
    "MAEHiViT": dict(type="MAEHiViT"),
    "MobileOne-s0-deployed": dict(type="MobileOne", arch="s0", deploy=True),
    "RepVGG-A0-deployed": dict(type="RepVGG", arch="A0", deploy=True),
    "ResNeSt-50": dict(type="ResNeSt", depth=50),
    "SEResNeXt-50": dict(type="SEResNeXt", depth=50),
    "TIMMBackbone-convnext_atto": dict(type="TIMMBackbone", model_name="convnext_atto"),
    "TIMMBackbone-resnet18": dict(type="TIMMBackbone", model_name="resnet18", features_only=True),
}
_TAKEN: dict[str, Takes] = {
    **dict.fromkeys(("BYOL", "BarlowTwins", "DenseCL", "MoCo", "MoCoV3", "SimCLR"), "views"),
    "SimSiam": "views",
    "SwAV": "crops",
    "SparK": "loss",
}
"""Self-supervised models that are examined whole, by their loss, and what that takes."""

_NO_CHANGE = ("_scope_", "drop_path_rate", "drop_rate", "frozen_stages", "init_cfg", "norm_eval")
_LOCAL_NORMS = {"SyncBN": "BN", "SparseSyncBatchNorm2d": "SparseBatchNorm2d"}
_SIZE = 224

Config = dict[str, Any]


@cache
def names() -> tuple[str, ...]:
    """Return the name of every model.

    Raises:
        InputError: mmpretrain is not installed.
    """
    chosen: dict[str, str] = {}
    for name in _index():
        config = _read(name)
        if config is not None:
            kept = {key: value for key, value in config.items() if key not in _NO_CHANGE}
            chosen.setdefault(json.dumps(kept, sort_keys=True, default=str), name)
    return (*chosen.values(), *_NOT_IN_INDEX)


def family_of(name: str) -> str:
    """Return the class of the backbone; of a self-supervised model that needs views, its own."""
    config = _config(name)
    sparse = config["type"] == "SparK"  # a backbone that runs in there alone
    return str((config["backbone"] if sparse else config)["type"]).rpartition(".")[2]


def takes(name: str) -> Takes:
    """Return what the model's forward takes."""
    model = _config(name)["type"]
    if model in _TAKEN:
        return _TAKEN[model]
    forward = inspect.signature(_registry().get(model).forward)
    masks = {"mask", "importance"} & set(forward.parameters)
    return "masked" if masks else "image"


def build(name: str, **kwargs: Any) -> nn.Module:
    """Return a model with random weights.

    Args:
        name: One of `names()`.
        **kwargs: Keys of its config to change.
    """
    registry = _registry()
    from mmengine.logging import MessageHub
    from mmengine.registry import DefaultScope

    # what a Runner would have said: which package's layers, and how long BYOL's teacher learns
    MessageHub.get_current_instance().update_info("max_iters", 100)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model: nn.Module = registry.build({**_on_one_device(_config(name)), **kwargs})
    return model


def input_size(name: str) -> tuple[int, int, int]:
    """Return channels, height and width that the model was made for."""
    if name == "LeNet5":
        return 1, 32, 32
    if takes(name) in ("views", "crops"):
        return 3, 64, 64  # what a loss reads needs values, and time
    size = _config(name).get("img_size", _SIZE)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return 3, height, width


def _on_one_device(config: Any) -> Any:
    """Return a copy of a config whose batch norms run without a GPU."""
    if isinstance(config, dict):
        return {key: _on_one_device(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_on_one_device(item) for item in config)
    return _LOCAL_NORMS.get(config, config) if isinstance(config, str) else config


@cache
def _config(name: str) -> Config:
    """Return the config of one model."""
    config = _NOT_IN_INDEX.get(name) or _read(name)
    if config is None:
        raise InputError(f"mmpretrain's model index has no {name!r}, or no backbone in it.")
    return config


def _read(name: str) -> Config | None:
    """Return what is examined of a model of the index: its backbone's config, or its own."""
    from mmengine.config import Config as Reader

    try:
        model = Reader.fromfile(_index()[name], lazy_import=False).model.to_dict()
    except KeyError:
        return None  # two of swinv2, see LEFT_OUT
    if model["type"] in _TAKEN:
        return dict(model)
    backbone = model.get("backbone")
    return None if backbone is None else dict(backbone)


@cache
def _index() -> dict[str, Path]:
    """Return the config file of each model of mmpretrain's index, which is that of its hub."""
    _registry()
    import mmpretrain

    root = Path(mmpretrain.__file__).parent / ".mim"
    index = import_module("modelindex.load_model_index").load(str(root / "model-index.yml"))
    index.build_models_with_collections()
    return {model.name: root / model.config for model in index.models}


@cache
def _registry() -> Any:
    """Return mmpretrain's registry of models, filled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ops of mmcv that no backbone needs
            import mmpretrain.models
    except ImportError as error:
        raise InputError(
            f"source 'mmpretrain': mmpretrain cannot be imported ({error}). "
            'Install it: pip install "aa-surgery[mmpretrain]".'
        ) from error
    return mmpretrain.models.MODELS
