"""All that can be seen of a model that runs, as values to compare."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OURS = ("aa_", "_aa_", "_antialias")


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def plain(value: Any) -> Any:
    """Return a value with tensors and objects as what they hold."""
    if isinstance(value, Tensor):
        return "tensor", value.dtype, value.requires_grad, value.tolist()
    if isinstance(value, torch.Generator):
        return plain(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.RandomState):
        return plain(value.get_state())
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not str(key).startswith(OURS)}
    if isinstance(value, list | tuple | set | deque):
        return [plain(item) for item in value]
    if hasattr(value, "cache_info"):
        return value.cache_info()
    if isinstance(value, nn.Module | type) or callable(value):
        return getattr(value, "__name__", "")
    if type(value).__module__ not in ("own_helpers", "types"):
        return value if isinstance(value, int | float | str) else type(value).__name__
    slots = [name for name in getattr(value, "__slots__", ()) if not name.startswith("_")]
    return plain({name: getattr(value, name) for name in slots or vars(value)})


def state(model: nn.Module) -> dict[str, Any]:
    """Return the attributes of all modules, ours aside."""
    return {
        name: plain({k: v for k, v in vars(part).items() if k != "_modules"})
        for name, part in model.named_modules()
        if "aa_" not in name
    }


def around(*modules: ModuleType) -> dict[str, Any]:
    """Return what modules and their classes hold."""
    found: dict[str, Any] = {}
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("__"):
                continue
            found[name] = plain(value)
            if isinstance(value, type) and value.__module__ == module.__name__:
                held = {k: v for k, v in vars(value).items() if k != "_abc_impl"}
                found[f"class {name}"] = {k: plain(v) for k, v in held.items()}
            for cell in getattr(value, "__closure__", None) or ():
                found[f"cells {name}"] = [plain(cell.cell_contents)]
    return found


def observed(model: nn.Module, use: Callable[[nn.Module], Any]) -> list[Any]:
    """Return what a model gives, in several modes, and what it leaves behind."""
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    found = [use(model), use(model)]
    with torch.no_grad():
        found.append(use(model))
    found.append(use(model.train()))
    total = sum((t.sum() for t in tensors(found[0]) if t.requires_grad), torch.zeros(()))
    if total.requires_grad:
        total.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if "aa_" not in name}
    drawn = [random.random(), np.random.rand(), torch.rand(1)]  # noqa: NPY002
    return plain([found, grads, drawn, state(model.eval())])


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors within a value."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


def shapes(value: Any) -> list[torch.Size]:
    """Return the shapes of all tensors within a value."""
    return [tensor.shape for tensor in tensors(value)]
