"""Names in MMPretrain's model zoo: our configs, and every model of the zoo with the flag on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmpretrain.apis.model import ModelHub

from aa_surgery.errors import InputError
from aa_surgery.mmpretrain.flag import KEY

__all__ = ["SUFFIX", "list_in_zoo"]

SUFFIX = "_blur3"
IMPORTS = "aa_surgery.mmpretrain"

_FIRST = "resnet50-blur3_in1k-pre_8xb32-coslr-30e_in1k"


def list_in_zoo() -> None:
    """Let `mmpretrain.list_models` and `get_model` find anti-aliased models; again is harmless.

    - The configs of this project: `resnet50-blur3_in1k-pre_8xb32-coslr-30e_in1k`.
    - Every model of the zoo with the suffix `_blur3`: `resnet50_8xb32_in1k_blur3` is that model
      with `antialias=True` and, with `pretrained=True`, the un-antialiased weights.

    Raises:
        InputError: The configs of this project are not where they were installed.

    >>> from mmpretrain import list_models
    >>> list_in_zoo()
    >>> list_models("resnet18*blur*")[1::2]
    ['resnet18-blur3_in1k-pre_8xb32-coslr-30e_in1k', 'resnet18_8xb32_in1k_blur3']
    """
    if not ModelHub.has(_FIRST):
        root = _root_of_configs()
        ModelHub.register_model_index(root / "configs" / "model-index.yml", config_prefix=root)
    fill = ModelHub._register_mmpretrain_models
    if not hasattr(fill, "adds_antialiased"):
        ModelHub._register_mmpretrain_models = classmethod(_and_antialiased(fill))


def _and_antialiased(fill: Callable[[], None]) -> Callable[[Any], None]:
    """Return what fills the hub as MMPretrain does, at the first question, then adds ours."""

    def fill_and_add(hub: Any) -> None:
        fill()
        models = hub._models_dict
        for name, model in list(models.items()):
            if isinstance(model.config, str) and "blur" not in name and name + SUFFIX not in models:
                models[name + SUFFIX] = _flagged(model)

    fill_and_add.adds_antialiased = True  # type: ignore[attr-defined]
    return fill_and_add


def _flagged(model: Any) -> Any:
    variant = copy.copy(model)
    variant.data = dict(model.data)
    variant.name = model.name + SUFFIX
    variant.config = _Flagged(model.config)
    return variant


class _Flagged:
    """A config file of the zoo; the hub's copy of it is the config, read and with the flag on."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __deepcopy__(self, memo: dict[int, Any]) -> Config:
        config = Config.fromfile(self.path)
        config.model[KEY] = True
        imports = list(config.get("custom_imports", {}).get("imports", []))
        config.custom_imports = dict(imports=[*imports, IMPORTS], allow_failed_imports=False)
        return config


def _root_of_configs() -> Path:
    """Return the folder that holds `configs/`: this package's, or that of a checkout."""
    here = Path(__file__).parent
    for root in (here, here.parents[1]):
        if (root / "configs" / "model-index.yml").is_file():
            return root
    raise InputError(
        f"no configs/model-index.yml in {here} or {here.parents[1]}. Install aa-surgery again."
    )
