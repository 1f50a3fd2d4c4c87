"""Build a model from a name: timm's, torchvision's, or any callable's."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from aa_surgery.errors import InputError, SurgeryError, shown

__all__ = ["load_model"]

TORCHVISION = "torchvision:"
_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")


def load_model(name: str, /, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the model that `name` stands for.

    Args:
        name: A timm name, with or without a pretrained tag (`resnet50`, `resnet50.a1_in1k`,
            `hf-hub:timm/resnet50.a1_in1k`, `local-dir:PATH`); `torchvision:resnet50`; or
            `package.module:callable`, where the callable returns an `nn.Module`; the package is
            looked for in the working folder first. A plain name that timm does not have is
            looked up in torchvision.
        pretrained: Load the pretrained weights. A callable must have that parameter for it.
        **kwargs: Passed to whatever builds the model, e.g. `num_classes=10`.

    Raises:
        InputError: The name is unknown, the model cannot be built, or its weights cannot be had.

    >>> type(load_model("torchvision:resnet18")).__module__
    'torchvision.models.resnet'
    """
    import timm

    if not isinstance(name, str):
        raise InputError(f"model {shown(name)}: expected a name, such as 'resnet50'.")
    if name.startswith(TORCHVISION):
        return _from_torchvision(name.removeprefix(TORCHVISION), name, pretrained, kwargs)
    if name.startswith(_HUB_PREFIXES):
        return _build(name, timm.create_model, name, pretrained=pretrained, **kwargs)
    if timm.is_model(name):
        _check_tag(name)
        return _build(name, timm.create_model, name, pretrained=pretrained, **kwargs)
    if ":" in name:
        return _from_callable(name, pretrained, kwargs)
    if name in _torchvision_names():
        return _from_torchvision(name, name, pretrained, kwargs)
    raise InputError(_unknown(name))


def _check_tag(name: str) -> None:
    """Refuse a pretrained tag that timm does not know for the architecture."""
    import timm.models

    arch, _, tag = name.partition(".")
    tags = [n.partition(".")[2] for n in timm.models.get_arch_pretrained_cfgs(arch)]
    if tag and tags and tag not in tags:
        raise InputError(
            f"model {name!r}: {arch} has no pretrained tag {tag!r}{_close(tag, tags)} "
            f"Its tags: {', '.join(filter(None, tags)) or 'none'}."
        )


def _unknown(name: str) -> str:
    """Say that nothing has that name, with the nearest ones that exist."""
    import timm

    arch = name.partition(".")[0]
    ours = timm.list_models("aa_*") if arch.startswith("aa_") else []
    names = timm.list_models(exclude_filters="aa_*") + _torchvision_names() + ours
    return (
        f"model {name!r} is unknown{_close(arch, names)} "
        "Give a timm name (timm.list_models('*resnet*') lists them), torchvision:NAME, "
        "or package.module:callable."
    )


def _close(name: str, names: Iterable[str]) -> str:
    """Return `. Did you mean ...?`, or a full stop where nothing is near."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.6)
    return f". Did you mean {', '.join(near)}?" if near else "."


def _build(name: str, builder: Callable[..., Any], /, *args: Any, **kwargs: Any) -> nn.Module:
    """Call a host's builder, its failures turned into one error that names the model."""
    try:
        model = builder(*args, **kwargs)
    except SurgeryError:
        raise
    # a host, or a user's own code, raises anything over an argument, a tag or a download
    except (Exception, SystemExit) as error:
        weights = (
            " Offline? Build it without the pretrained weights, and load a checkpoint file."
            if kwargs.get("pretrained") and isinstance(error, OSError)
            else ""
        )
        text = str(error).strip().rstrip(".") or type(error).__name__
        raise InputError(f"model {name!r} cannot be built: {text}.{weights}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {name!r}: expected a torch.nn.Module, got {type(model).__name__}. "
            "Name a callable that returns one."
        )
    return model


def _torchvision_names() -> list[str]:
    """Return torchvision's names, none where torchvision cannot be imported."""
    try:
        import torchvision.models
    except ImportError:
        return []
    return list(torchvision.models.list_models())


def _from_torchvision(arch: str, name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    try:
        import torchvision.models
    except ImportError as error:
        raise InputError(
            f"model {name!r} needs torchvision ({error}): pip install 'aa-surgery[demo]'."
        ) from error
    if arch not in _torchvision_names():
        close = _close(arch, _torchvision_names())
        raise InputError(
            f"model {name!r}: torchvision has no {arch!r}{close} "
            "torchvision.models.list_models() lists its names."
        )
    parameters = inspect.signature(torchvision.models.get_model_builder(arch)).parameters
    defaults: dict[str, Any] = {}
    if "weights_backbone" in parameters and not pretrained:
        # Detection and segmentation models download their backbone's weights otherwise.
        defaults["weights_backbone"] = None
    options = {"weights": "DEFAULT" if pretrained else None, **defaults, **kwargs}
    return _build(name, torchvision.models.get_model, arch, **options)


class _InWorkingFolder(MetaPathFinder):
    """Finds one top-level module in the working folder, and no other."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the module is; None for any other, or for a folder without code."""
        spec = PathFinder.find_spec(fullname, [str(Path.cwd())]) if fullname == self.name else None
        return spec if spec is not None and spec.origin is not None else None


@contextmanager
def _working_folder(path: str) -> Iterator[None]:
    """Let the module `path` be found in the working folder, and what it imports from beside it.

    Those come behind all that is installed, so that no file there runs in a library's place.
    """
    finder, folder = _InWorkingFolder(path.partition(".")[0]), str(Path.cwd())
    sys.meta_path.insert(0, finder)
    sys.path.append(folder)
    importlib.invalidate_caches()  # the files may be younger than the last look at the folder
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        # the last one: the user's own path may hold it too
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


def _from_callable(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    path = name.partition(":")[0]
    with _working_folder(path):
        target = _callable(name)
        return _build(name, target, **({**kwargs, "pretrained": True} if pretrained else kwargs))


def _callable(name: str) -> Callable[..., Any]:
    """Import what `package.module:callable` names."""
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # whatever that file does
        raise InputError(
            f"model {name!r}: module {path!r} cannot be imported "
            f"({type(error).__name__}: {error}). Install it, or run from the folder that holds it."
        ) from error
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise InputError(f"model {name!r}: {path!r} has no {part!r}{_close(part, dir(target))}")
        target = getattr(target, part)
    if not callable(target):
        raise InputError(
            f"model {name!r}: {attribute!r} is a {type(target).__name__} and cannot be called. "
            "Name a class or function that returns the model."
        )
    made: Callable[..., Any] = target
    return made
