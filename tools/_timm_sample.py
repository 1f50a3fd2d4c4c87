"""Choose the smallest models of each of timm's families."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import timm
import torch
from timm.models import list_models, list_modules

Sizes = dict[str, dict[str, int]]


def smallest(count: int, most: float) -> list[str]:
    """Return the `count` smallest models of each family, of no more than `most` parameters each.

    A family is a module of `timm.models`.
    """
    chosen = []
    for sizes in parameters().values():
        ordered = sorted((size, name) for name, size in sizes.items() if size <= most)
        chosen += [name for _, name in ordered[:count]]
    return chosen


def parameters() -> Sizes:
    """Return the number of parameters of every model, by family.

    Counting means building 1,400 models on the meta device, a matter of minutes: the numbers are
    kept, for this version of timm, in the folder for temporary files.
    """
    kept = Path(tempfile.gettempdir()) / f"timm-{timm.__version__}-parameters.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    print("counting the parameters of timm's models, once: minutes", file=sys.stderr)
    families = {module: list_models(module=module) for module in list_modules()}
    result = {m: {n: _parameters(n) for n in names} for m, names in families.items() if names}
    kept.write_text(json.dumps(result))
    return result


def _parameters(name: str) -> int:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(p.numel() for p in timm.create_model(name).parameters())
