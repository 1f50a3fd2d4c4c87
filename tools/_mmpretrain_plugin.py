"""pytest plugin for `run_mmpretrain_tests.py`: anti-alias every backbone that a test builds.

Loaded by `-p _mmpretrain_plugin` into pytest runs over mmpretrain's own tests, whose files stay as
they are.

Modifications, with `--aa-variant antialiased`: the constructor of each registered backbone class
ends in `apply_antialias`. The tests construct most backbones by their class, not through the
registry that reads `antialias=`; what they get is what the key gives. The outermost class does it
alone, so that a subclass is complete when it is treated. A block of a backbone that is built by
itself stays as it is.

In both variants, weights that a test would download from torchvision or timm are drawn instead:
some of the longest tests ask for them, and no test looks at their values.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import Counter
from typing import Any

import pytest
import timm.models._builder
import torch
import torchvision
from _suite_plugin import Recorder, add_options
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import nn


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config, treat_backbones), "aa_surgery_recorder")
    CheckpointLoader.register_scheme("torchvision://", drawn, force=True)
    timm.models._builder.load_pretrained = lambda *_, **__: None  # what the model has was drawn


def drawn(name: str, map_location: object = None) -> dict[str, torch.Tensor]:
    """Return a state_dict of random weights for `torchvision://resnet50`."""
    return torchvision.models.get_model(name.partition("://")[2], weights=None).state_dict()


def treat_backbones(built: Counter[str], options: Any) -> None:
    """Let the constructors of all backbones anti-alias what they made, and count it."""
    from aa_surgery import apply_antialias
    from aa_surgery.errors import NoEffectWarning
    from aa_surgery.surgery.classes import Antialiased

    def treat(model: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            apply_antialias(model, **(options or {}))
        built["models"] += 1
        built["treated"] += any(isinstance(m, Antialiased) for m in model.modules())

    def ending_in_treatment(cls: type[nn.Module]) -> Any:
        inner = cls.__init__

        @functools.wraps(inner)
        def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            inner(self, *args, **kwargs)
            if type(self) is cls:
                treat(self)

        return __init__

    for cls in backbones():
        cls.__init__ = ending_in_treatment(cls)  # type: ignore[method-assign]


def backbones() -> list[type[nn.Module]]:
    """Return the registered classes that are backbones by their base or by where they stand."""
    classes = {cls for cls in MODELS.module_dict.values() if inspect.isclass(cls)}
    return [
        cls
        for cls in classes
        if issubclass(cls, BaseBackbone) or cls.__module__.startswith("mmpretrain.models.backbones")
    ]
