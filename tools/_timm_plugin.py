"""pytest plugin for `run_timm_tests.py`: choose timm's tests, swap the models, keep a record.

Loaded by `-p _timm_plugin` into pytest runs over timm's own tests, whose files stay as they are.

Modifications, with `--aa-variant antialiased`: `timm.create_model` looks its constructor up by one
call of `model_entrypoint`, in `timm.models._factory`. There, and nowhere else, `<name>` is answered
with the entry point registered as `aa_<name>`: what a user gets who writes `aa_` before the name.
Listings, pretrained configurations and constructors named by the tests themselves stay timm's, so
that the tests, their parameters and their ids are the same in both runs.
"""

from __future__ import annotations

import fnmatch
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm.models
from _suite_plugin import Recorder, add_options
from torch import nn


def pytest_addoption(parser: pytest.Parser) -> None:
    group = add_options(parser)
    group.addoption("--aa-models", default="", help="patterns of model names, comma-separated")
    group.addoption("--aa-short", type=int, default=0, help="keep tests of this many models whole")
    group.addoption("--aa-all-tags", action="store_true", help="all pretrained tags of a model")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config, swap_entrypoints), "aa_surgery_recorder")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.aa_items:
        return
    patterns = [p for p in config.option.aa_models.split(",") if p]
    counts = Counter(function_of(item) for item in items)
    short = {name for name, count in counts.items() if count <= config.option.aa_short}
    items[:] = [i for i in items if function_of(i) in short or selected(i, patterns)]
    if not config.option.aa_all_tags:
        items[:] = first_tags(items)


def function_of(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def models_of(item: pytest.Item) -> list[str]:
    """Return the names of models among a test's parameters."""
    call = getattr(item, "callspec", None)
    values = list(call.params.values()) if call else []
    return [v for v in values if isinstance(v, str) and timm.models.is_model(v)]


def selected(item: pytest.Item, patterns: list[str]) -> bool:
    """Return whether the models of a test match a pattern; a test of no named model does."""
    names = models_of(item)
    names += [timm.models.get_arch_name(name) for name in names]
    return not (patterns and names) or any(fnmatch.fnmatch(n, p) for n in names for p in patterns)


def first_tags(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return `items` without further pretrained tags of an architecture that a test has had."""
    seen: dict[tuple[str, ...], str] = {}
    kept = []
    for item in items:
        names = models_of(item)
        tagged = [name for name in names if "." in name]
        key = (function_of(item), *map(timm.models.get_arch_name, names))
        if not tagged or seen.setdefault(key, tagged[0]) == tagged[0]:
            kept.append(item)
    return kept


def swap_entrypoints(built: Counter[str], options: Any) -> None:
    """Let `timm.create_model("<name>")` build `aa_<name>`, and count what it builds."""
    from timm.models import _factory

    import aa_surgery  # noqa: F401  # registers the names
    from aa_surgery.surgery.classes import Antialiased

    def model_entrypoint(name: str) -> Callable[..., nn.Module]:
        ours = name if name.startswith("aa_") else f"aa_{name}"
        if not timm.models.is_model(ours):  # registered by the test itself
            return timm.models.model_entrypoint(name)
        entry = timm.models.model_entrypoint(ours)

        @functools.wraps(entry)
        def build(*args: Any, **kwargs: Any) -> nn.Module:
            model = entry(*args, antialias=options, **kwargs)
            built["models"] += 1
            built["treated"] += any(isinstance(m, Antialiased) for m in model.modules())
            return model

        return build

    _factory.model_entrypoint = model_entrypoint
