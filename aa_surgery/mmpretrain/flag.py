"""The `antialias=` key of a model config: read where the model is built, before anything else.

MMEngine builds a model first of all: optimizer, EMA, wrapper and checkpoint come later and see the
changed model. So the key is read by the registries' build functions, which are wrapped here.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from mmengine.model import Sequential
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope, Registry
from mmpretrain.registry import MODELS
from torch import nn

from aa_surgery.errors import InputError, SurgeryError
from aa_surgery.integrations.timm import antialias_options
from aa_surgery.surgery import apply_antialias

__all__ = ["KEY", "antialiased", "read_flags"]

KEY = "antialias"
OPTIONS = tuple(inspect.signature(apply_antialias).parameters)[2:]  # all but the model and a plan

Build = Callable[..., Any]


class _Building(threading.local):
    """The configs that are being built, outermost first."""

    def __init__(self) -> None:
        self.configs: list[Any] = []


_building = _Building()


def read_flags() -> None:
    """Let the MODELS registries of every OpenMMLab package read the key; again is harmless.

    Registries that are made later take the build function of the root.
    """
    for registry in _registries(ROOT):
        registry.build_func = _reading_flags(registry.build_func)


@MODELS.register_module()
def antialiased(of: str | Callable[..., nn.Module], surgery: Any = True, **kwargs: Any) -> Any:
    """Build `of` and anti-alias it; the type for configs in which the key cannot be used.

    New-style configs ignore `custom_imports`: `backbone=dict(type=antialiased, of=ResNet,
    depth=50)` serves there. On the command line it turns any config:
    `--cfg-options model.backbone.type=aa_surgery.mmpretrain.antialiased model.backbone.of=ResNet`.

    Args:
        of: The type that is built, a class or its registered name.
        surgery: What the key `antialias` would hold.
        **kwargs: The arguments of that type.

    Returns:
        The module of type `of` itself: its state_dict has the keys of before.

    Raises:
        SurgeryError: `surgery` is wrong, or the module cannot be treated.

    >>> model = antialiased("ResNet", surgery=dict(filter="tri-4"), depth=18)
    >>> type(model).__name__, model.conv1.stride
    ('ResNet', (2, 2))
    """
    registry = MODELS if DefaultScope.get_current_instance() is None else ROOT
    return registry.build({"type": of, KEY: surgery, **kwargs})


def _registries(registry: Registry) -> Iterator[Registry]:
    yield registry
    for child in registry.children.values():
        yield from _registries(child)


def _reading_flags(build: Build) -> Build:
    if hasattr(build, "reads_antialias_flags"):
        return build

    @wraps(build)
    def build_and_treat(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(cfg, list) and any(_has_flag(item) for item in cfg):
            return Sequential(*(build_and_treat(item, *args, **kwargs) for item in cfg))
        _building.configs.append(cfg)
        try:
            if not _has_flag(cfg):
                return build(cfg, *args, **kwargs)
            rest = cfg.copy()  # the user's config is dumped later, and stored in checkpoints
            flag = rest.pop(KEY)
            return _treated(build(rest, *args, **kwargs), flag)
        finally:
            _building.configs.pop()

    build_and_treat.reads_antialias_flags = True  # type: ignore[attr-defined]
    return build_and_treat


def _has_flag(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and KEY in cfg


def _treated(model: nn.Module, flag: Any) -> nn.Module:
    """Return the model, anti-aliased as the flag says; what is said names the config's path."""
    where = f"{_path()} ({type(model).__name__})"
    try:
        options = antialias_options(flag)
        if options is None:
            return model
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise InputError(f"unknown key {unknown[0]!r}. Use {', '.join(OPTIONS)}.")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            apply_antialias(model, **options)
    except SurgeryError as error:
        raise type(error)(f"{where}: {error}") from error
    for warning in caught:
        warnings.warn(f"{where}: {warning.message}", warning.category, stacklevel=4)
    _warn_if_frozen(model, where)
    return model


def _warn_if_frozen(model: nn.Module, where: str) -> None:
    """Say which treated sites have weights that cannot learn to live with the blur."""
    plan = vars(model).get("_antialias_plan")
    names = (
        [edit.site.scope if edit.site.node else edit.site.name for edit in plan.edits]
        if plan
        else []
    )
    with _as_in_training(model):
        parts = {name: list(model.get_submodule(name).parameters()) for name in names}
        frozen = [
            name
            for name, weights in parts.items()
            if weights and not any(weight.requires_grad for weight in weights)
        ]
    if frozen:
        warnings.warn(
            f"{where}: {len(frozen)} treated sites have frozen weights, which cannot adapt to the "
            f"blur ({', '.join(frozen[:4])}). Lower frozen_stages, or exclude them: "
            f"{KEY}=dict(exclude={frozen[:4]}).",
            stacklevel=5,
        )


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Have stages frozen for a while: most of MMPretrain's backbones do that in `train()` only."""
    modes = [(module, module.training) for module in model.modules()]
    learning = [(weights, weights.requires_grad) for weights in model.parameters()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weights, learns in learning:
            weights.requires_grad = learns


def _path() -> str:
    """Return the key path of the config that is being built, from the outermost, `model`."""
    path = "model"
    for outer, inner in zip(_building.configs, _building.configs[1:], strict=False):
        found = _place_in(outer, inner)
        path += "" if found is None else found
    return f"{path}.{KEY}"


def _place_in(outer: Any, inner: Any) -> str | None:
    """Return where in `outer` the very object `inner` stands, as `.backbone` or `.necks[1]`."""
    items: Any = ()
    if isinstance(outer, Mapping):
        items = ((f".{key}", value) for key, value in outer.items())
    elif isinstance(outer, (list, tuple)):
        items = ((f"[{n}]", value) for n, value in enumerate(outer))
    for step, value in items:
        if value is inner:
            return step
        deeper = _place_in(value, inner)
        if deeper is not None:
            return step + deeper
    return None
