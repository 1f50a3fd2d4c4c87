"""Every vision model of Hugging Face `transformers`, from its configuration's defaults, made small.

Models are found, not listed: the classes that take `pixel_values` first, of every module that
defines some. A configuration is made small by what its attributes are called, and grown again where
the model then does not run.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from aa_surgery.sweep.libraries.specimen import (
    Library,
    Specimen,
    first_that_runs,
    fits,
    noise,
)

__all__ = ["LIBRARY", "shrunk"]

_LAYERS = ("layers", "depth", "depths", "num_blocks", "layer_depths", "repeats", "coefficient")
_WIDTHS = (
    *("hidden_size", "hidden_sizes", "intermediate_size", "ffn_dim", "d_model", "embed_dim"),
    *("hidden_dim", "embedding_dim", "mlp_dim", "head_dim", "feature_size", "projection_dim"),
)
_SIDE, _LARGEST, _FRAMES, _GRID = 64, 128, 4, 4

_LEFT_OUT = {
    "models that need text, prompts or a session beside the image": "their vision towers, which "
    "are classes of their own, are in the sweep",
    "XModel, where a class with a head has the same configuration": "the head's class holds it",
    "timm_backbone, timm_wrapper, vision_encoder_decoder": "they wrap other models",
}
_ASKED: dict[str, dict[str, Any]] = {
    name: {"out_indices": [3, 5, 7, 11], "num_hidden_layers": 12, "image_size": 224}
    for name in ("BeitForSemanticSegmentation", "Data2VecVisionForSemanticSegmentation")
} | {"UperNetForSemanticSegmentation": {"image_size": 224}}
"""What a class asks of its configuration, whose defaults lack it.

On a smaller image their pyramid of pools has more bins than the map has samples.
"""

_WRAPPERS = ("Timm", "VisionEncoderDecoder", "LightGlue")
_INPUTS = ("pixel_values", "pixel_values_videos", "hidden_states")
_KNOWN = {*_INPUTS, "grid_thw", "image_grid_thw", "bool_masked_pos"}


@cache
def _classes() -> dict[str, Any]:
    """Return every vision model's class by its name."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: dict[str, Any] = {}
    for module in _modules():
        classes = [kind for kind in _models_of(module) if _takes_images(kind)]
        headed = {kind.config_class for kind in classes if not kind.__name__.endswith("Model")}
        for kind in classes:
            bare = kind.__name__.endswith("Model") and kind.config_class in headed
            if not bare and not kind.__name__.startswith(_WRAPPERS):
                found[kind.__name__] = kind
    return found


def _modules() -> Iterator[Any]:
    """Yield the modules of models that speak of pixels."""
    root = Path(str(import_module("transformers").__file__)).parent / "models"
    for path in sorted(root.glob("*/modeling_*.py")):
        if "pixel_values" in path.read_text():
            yield import_module(f"transformers.models.{path.parent.name}.{path.stem}")


def _models_of(module: Any) -> list[Any]:
    base: Any = import_module("transformers").PreTrainedModel
    named: list[Any] = [getattr(module, name) for name in getattr(module, "__all__", ())]
    models: list[Any] = [k for k in named if inspect.isclass(k) and issubclass(k, base)]
    return [k for k in models if k.config_class and not k.__name__.endswith("PreTrainedModel")]


def _takes_images(kind: Any) -> bool:
    first = kind.main_input_name
    return first in _INPUTS[:2] and _required(kind) <= _KNOWN


def _required(kind: Any) -> set[str]:
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.default is p.empty and p.kind in plain}


def _names() -> Iterable[str]:
    return sorted(_classes())


def _specimen(name: str) -> Specimen:
    kind = getattr(
        import_module("transformers"), name
    )  # of all its modules only this one is imported
    ways = [(True, True), (True, False), (False, True), (False, False)]
    tries = [(few, narrow, video) for few, narrow in ways for video in (False, True)]
    return first_that_runs([partial(_made, kind, *way) for way in tries])


def _made(kind: Any, few: bool, narrow: bool, video: bool) -> Specimen:
    config = shrunk(kind.config_class(), few, narrow)
    for name, value in _ASKED.get(kind.__name__, {}).items():
        setattr(config, name, value)
    with torch.device("meta"):
        fits(kind(config))  # before the memory is asked for
    return Specimen(kind(config), (), _input(kind, config, video))


def shrunk(config: Any, few: bool, narrow: bool) -> Any:
    """Return a small configuration, made anew so that what follows from its values does.

    Args:
        config: A `PretrainedConfig`.
        few: Leave two layers of each stage.
        narrow: Divide widths by four.
    """
    inner = import_module("transformers").PretrainedConfig
    changes: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, inner):
            changes[name] = shrunk(value, few, narrow)
        elif name == "use_pretrained_backbone":
            changes[name] = False
        elif name == "image_size":
            changes[name] = _each(value, lambda n: min(n, _LARGEST))
        elif few and name.endswith(_LAYERS):
            changes[name] = _each(value, lambda n: min(n, 2))
        elif narrow and name.endswith(_WIDTHS):
            changes[name] = _each(value, lambda n: n // 4 if n >= 64 and not n % 4 else n)
    default = type(config)()
    values = {n: v for n, v in vars(config).items() if v != getattr(default, n, None)}
    kept = {n.removeprefix("_"): v for n, v in (values | changes).items() if v is not None}
    return type(config)(**kept)


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_each(item, change) for item in value)
    return (
        change(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    )


def _input(kind: Any, config: Any, video: bool) -> dict[str, Any]:
    """Return what the forward takes, by what its parameters are called."""
    taken = _required(kind) | {kind.main_input_name}
    channels = _found(config, ("num_channels", "in_channels", "in_chans")) or 3
    grid = next((n for n in taken if n.endswith("grid_thw")), None)
    first = next(name for name in _INPUTS if name in taken)
    if grid is not None:  # patches, cut by the processor
        patch = _found(config, ("patch_size",)) or 14
        times = _found(config, ("temporal_patch_size",)) or 1
        rows = noise(_GRID * _GRID, channels * times * patch * patch)
        return {first: rows, grid: torch.tensor([[1, _GRID, _GRID]])}
    size = _found(config, ("image_size",)) or _SIDE
    high, wide = size if isinstance(size, (list, tuple)) else (size, size)
    if not video:
        return {first: noise(2, channels, high, wide)}
    frames = _found(config, ("num_frames", "frames_per_clip")) or _FRAMES
    found = {first: noise(1, min(frames, 16), channels, high, wide)}
    if "bool_masked_pos" in taken:
        tubes = (frames // config.tubelet_size) * (high // config.patch_size) ** 2
        found["bool_masked_pos"] = (torch.arange(tubes) % 2 == 0)[None]
    return found


def _found(config: Any, names: Iterable[str]) -> Any:
    """Return the first of the attributes that the configuration, or one inside it, has."""
    inner = [getattr(config, n, None) for n in ("vision_config", "backbone_config")]
    for holder in (config, *inner):
        for name in names:
            if getattr(holder, name, None) is not None:
                return getattr(holder, name)
    return None


LIBRARY = Library("transformers", "transformers", "transformers", _names, _specimen, _LEFT_OUT)
