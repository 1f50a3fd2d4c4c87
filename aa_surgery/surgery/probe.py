"""What a plan cannot read off the code: the maps at the sites, from one run of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.errors import MethodError
from aa_surgery.evaluation.running import device_of, evaluating
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.plain import subsample
from aa_surgery.rules import Edit, Left
from aa_surgery.sites import Site
from aa_surgery.surgery.changes import changes_of
from aa_surgery.surgery.dress import dress, put_back, state_of
from aa_surgery.surgery.operate import prepare
from aa_surgery.surgery.plan import Plan

__all__ = ["leave_whole_maps", "run_on", "with_maps"]

_SIDES = (224, 64, 32)  # px, where the model does not say what it takes
_REASON = "the example input does not reach it"


@dataclass(frozen=True)
class _Map:
    """A map that a layer has seen: its channels and sides, and the grid it is subsampled to."""

    channels: int
    grid: tuple[int, ...]
    sides: tuple[int, ...]


class _Probe(Downsample):
    """Subsample plainly, and note what comes, in the order in which it comes."""

    def __init__(self, name: str, edit: Edit, seen: dict[str, list[_Map]]) -> None:
        super().__init__(
            edit.blur_stride, edit.rate, edit.padding_mode, channels_last=edit.site.channels_last
        )
        self.name, self.seen = name, seen

    def sample(self, x: Tensor) -> Tensor:
        grid = tuple(-(-n // r) for n, r in zip(x.shape[2:], self.rate, strict=True))
        self.seen.setdefault(self.name, []).append(_Map(x.shape[1], grid, tuple(x.shape[2:])))
        return subsample(x, self.stride)


def with_maps(model: nn.Module, plan: Plan, example: Tensor | None) -> Plan:
    """Return the plan with what its methods must know of the maps, where they must.

    Raises:
        MethodError: The model does not run on the example, or on what was made up for one.
    """
    asking = [edit for edit in plan.edits if edit.anchor is not None and _asks(edit)]
    if not asking:
        return plan
    seen = _seen(model, plan, example)
    leaders: dict[Any, str] = {}
    for name in seen:  # in the order of the run: who comes first, leads
        edit = next(e for e in plan.edits if e.site.name == name)
        if _shares(edit):
            leaders.setdefault((seen[name][0].grid, edit.rate, edit.method.name), name)
    return replace(plan, decisions=tuple(_decided(d, seen, leaders) for d in plan.decisions))


def run_on(model: nn.Module, example: Tensor) -> None:
    """Run the model on the example that the user gave, in eval mode.

    Raises:
        MethodError: The model does not run on it.
    """
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        _run(model, example, {})


def leave_whole_maps(model: nn.Module, plan: Plan, example: Tensor | None) -> Plan:
    """Leave what takes the whole map at once: it gives one position, and samples none.

    Told from the maps in a run on the example. Without one, pools with large windows are asked
    about in a run on the size that the model declares, if it declares one.
    """
    asked = [edit for edit in plan.edits if _may_take_all(edit, large=example is None)]
    if not asked or (example is None and not _sides(model)):
        return plan
    still = [replace(e, placement="pre", op_stride=None, anchor=e.site.front) for e in asked]
    before = [replace(e, blur_stride=(1,) * e.site.ndim, rate=e.site.stride) for e in still]
    try:
        seen = _seen(model, replace(plan, decisions=tuple(before)), example)
    except MethodError:
        if example is not None:
            raise
        return plan
    whole = {e.site.name for e in asked if _takes_all(e.site, seen.get(e.site.name, []))}
    return replace(
        plan,
        decisions=tuple(
            Left(d.site, _WHOLE) if isinstance(d, Edit) and d.site.name in whole else d
            for d in plan.decisions
        ),
    )


_WHOLE = "its window is the whole map: it leaves one position, and samples none"
_LARGE = 4  # samples; smaller windows are rarely those of a whole map


def _may_take_all(edit: Edit, large: bool) -> bool:
    site = edit.site
    if site.op not in ("max_pool", "avg_pool") and (large or site.op == "window"):
        return False
    windows = [(k, s) for k, s in zip(site.kernel, site.stride, strict=False) if s > 1]
    smallest = min((k for k, _ in windows), default=0)
    return smallest >= (_LARGE if large else 2) and not any(site.padding)


def _takes_all(site: Site, maps: list[_Map]) -> bool:
    """Tell whether a window covers each map that was seen, in each axis that it is moved along."""
    return bool(maps) and all(
        1 < n <= k
        for seen in maps
        for n, k, s in zip(seen.sides, site.kernel, site.stride, strict=True)
        if s > 1
    )


def _asks(edit: Edit) -> bool:
    return edit.method.per_channel or edit.method.shares_phase


def _shares(edit: Edit) -> bool:
    """Whether others may read the map: that in front of windows is rolled for all behind it."""
    return edit.method.shares_phase and edit.site.op != "window"


def _decided(
    decision: Edit | Left, seen: dict[str, list[_Map]], leaders: dict[Any, str]
) -> Edit | Left:
    if isinstance(decision, Left) or decision.anchor is None or not _asks(decision):
        return decision
    site, method = decision.site, decision.method
    maps = seen.get(site.name)
    if maps is None:
        return Left(site, f"method {method.name!r}: {_REASON}")
    if len({m.channels for m in maps}) > 1:
        return Left(site, f"method {method.name!r}: it is called on maps of several channel counts")
    leader = ""
    if _shares(decision):
        leader = leaders[maps[0].grid, decision.rate, method.name]
    return replace(
        decision,
        channels=maps[0].channels if method.per_channel else 0,
        leader="" if leader == site.name else leader,
    )


def _seen(model: nn.Module, plan: Plan, example: Tensor | None) -> dict[str, list[_Map]]:
    """Run the model with probes in the places of the layers, and take them off again."""
    seen: dict[str, list[_Map]] = {}
    plain = replace(plan, circular=False)  # borders change no size, and are found by another trace
    changes = changes_of(model, plain, lambda edit, _: _Probe(edit.site.name, edit, seen))
    prepared = prepare(model, changes)
    state = state_of(model.modules())
    try:
        for module, worn in prepared:
            dress(module, worn)
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            _run(model, example, seen)
        put_back(state)
        return seen
    except BaseException:
        put_back(state)
        raise


def _run(model: nn.Module, example: Tensor | None, seen: dict[str, list[_Map]]) -> None:
    examples = [example] if example is not None else list(_made_up(model))
    errors = []
    for x in examples:
        seen.clear()
        try:
            model(x)
        except Exception as error:  # a model may answer a wrong size with any
            errors.append(f"{tuple(x.shape)}: {error}")
        else:
            return
    raise MethodError(
        f"{type(model).__name__} does not run on an input of shape {errors[0]}. An example shows "
        "the maps at the sites. Give one that the model takes: example=<tensor>."
    )


def _made_up(model: nn.Module) -> Iterator[Tensor]:
    """Yield inputs that the model may take, the likeliest first."""
    conv: Any = next((m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    axes, channels = (2, 3) if conv is None else (len(conv.kernel_size), conv.in_channels)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for side in dict.fromkeys((*_sides(model), *_SIDES)):
        sides = side if isinstance(side, tuple) else (side,) * axes
        if len(sides) == axes:
            yield torch.zeros(1, channels, *sides, dtype=weight.dtype, device=device_of(model))


def _sides(model: nn.Module) -> Sequence[Any]:
    """Return the sizes that models of timm and transformers say of themselves, px."""
    config = getattr(model, "pretrained_cfg", None) or {}
    stated = getattr(getattr(model, "config", None), "image_size", None)
    embedding = getattr(getattr(model, "patch_embed", None), "img_size", None)
    fixed = [tuple(embedding)] if embedding else []
    if isinstance(stated, (int, tuple, list)):
        fixed.append((stated, stated) if isinstance(stated, int) else tuple(stated))
    return [*fixed, *([tuple(config["input_size"][1:])] if "input_size" in config else [])]
