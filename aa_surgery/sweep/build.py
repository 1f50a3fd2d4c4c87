"""A subject's model and inputs, on the meta device or with values."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.sweep import openmmlab, outside
from aa_surgery.sweep.catalogue import Subject

__all__ = ["build", "default_size", "inputs", "outputs", "run"]

_FRAMES = 16
_VIEWS = {"views": 2, "crops": 8}
_BESIDE: dict[str, tuple[Any, ...]] = {"masked": (None,), "loss": (None, "loss")}
_SIZE = 224


def build(subject: Subject, device: str = "meta", **kwargs: Any) -> nn.Module:
    """Return the model with random weights, in eval mode; with values, the same at every call."""
    try:
        return _created(subject, device, kwargs)
    except RuntimeError:
        if device != "meta":
            raise
        # torchvision's RegNet computes its widths with tensors, and needs their values.
        return _created(subject, "cpu", kwargs).to("meta")


def _created(subject: Subject, device: str, kwargs: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")  # hosts warn about their own initialisation
        model = _create(subject, kwargs)
        model.eval()  # which returns None in mmpretrain
        return model


def _create(subject: Subject, kwargs: dict[str, Any]) -> nn.Module:
    if subject.source == "timm":
        import timm

        return timm.create_model(subject.name, **kwargs)
    if subject.source == "torchvision":
        from torchvision import models

        return models.get_model(subject.name, **_torchvision_options(subject), **kwargs)
    if subject.source == "mmpretrain":
        return openmmlab.build(subject.name, **kwargs)
    return outside.build(subject.name, **kwargs)


def _torchvision_options(subject: Subject) -> dict[str, Any]:
    from torchvision import models

    parameters = inspect.signature(models.get_model_builder(subject.name)).parameters
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in parameters:
        options["weights_backbone"] = None
    if subject.family in ("googlenet", "inception"):
        options["init_weights"] = False  # their own takes scipy a minute
    if subject.takes == "detection" and not subject.name.startswith("ssd"):
        options |= {"min_size": 128, "max_size": 160}
        if "rcnn" in subject.name:
            # a few boxes: the heads of keypoints and masks run on each of them
            options |= {"box_score_thresh": 0.0, "box_detections_per_img": 4}
            options["rpn_post_nms_top_n_test"] = 32
        else:
            options["score_thresh"] = 0.0
    elif subject.takes == "detection":
        options["score_thresh"] = 0.0
    return options


def default_size(subject: Subject, model: nn.Module) -> tuple[int, int, int]:
    """Return channels, height and width that the model was made for."""
    if subject.source == "mmpretrain":
        return openmmlab.input_size(subject.name)
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if "input_size" in config:
        channels, height, width = config["input_size"]
        return channels, height, width
    size = getattr(getattr(model, "config", None), "image_size", None) or _SIZE
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return 3, height, width


def inputs(
    subject: Subject,
    size: tuple[int, int, int],
    batch: int = 1,
    device: str = "meta",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Any, ...]:
    """Return the positional arguments of the forward: noise, the same at every call.

    Args:
        subject: The architecture.
        size: Channels, height and width, px.
        batch: Images.
        device: `"meta"` or `"cpu"`.
        dtype: Of the images.
        seed: Of the noise.
    """
    channels, height, width = size
    frames = (_FRAMES,) if subject.takes == "video" else ()
    batch = max(batch, 2) if subject.takes in _VIEWS else batch  # a contrast needs another image
    shape = (batch, channels, *frames, height, width)
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        if device == "meta":
            return torch.empty(shape, device="meta", dtype=dtype)
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    if subject.takes == "detection":
        return (list(noise()),)
    if subject.takes in _VIEWS:
        return [noise() for _ in range(_VIEWS[subject.takes])], None, "loss"
    if subject.takes == "pair":
        return noise(), noise()
    return noise(), *_BESIDE.get(subject.takes, ())


def run(model: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
    """Run the forward without gradients, and return its outputs by their place."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # of masks and orders that a loss draws
        return outputs(model(*arguments))


def outputs(result: Any, place: str = "output") -> dict[str, Tensor]:
    """Return every tensor of a forward's result, by its place in the structure.

    >>> list(outputs({"out": torch.zeros(1), "aux": [torch.zeros(1)]}))
    ["output['out']", "output['aux'][0]"]
    """
    if isinstance(result, Tensor):
        return {place: result}
    items: Any = ()
    if isinstance(result, Mapping):
        items = result.items()
    elif isinstance(result, (list, tuple)):
        items = enumerate(result)
    return {k: v for key, value in items for k, v in outputs(value, f"{place}[{key!r}]").items()}
