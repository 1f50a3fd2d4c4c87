"""Modules that rebuild themselves from their weights take their blurs along.

`reparameterize`, `fuse` and `switch_to_deploy` merge linear branches (convolutions, norms, the
identity) into one convolution. A blur is linear too. So where every strided branch is filtered
alike, the merged convolution filtered in that way is the same function:

- blurred before: each branch reads the blurred map, and so does their sum;
- blurred behind: the sum of blurred maps is the blur of their sum;
- a branch of kernel 1 commutes with its blur, and counts as either.

The module is given its own class back, rebuilds itself, and wears again what it wore; the new
convolution wears what the branch of its window did. What fits none of this is refused, and the
module is as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from aa_surgery.errors import NotTraceableError, UnsupportedModelError
from aa_surgery.layers import BlurPool
from aa_surgery.layers.downsample import Downsample
from aa_surgery.sites.modules import plain_forward
from aa_surgery.sites.tracer import trace_scope
from aa_surgery.surgery.change import conv_op
from aa_surgery.surgery.changes import conv_padding
from aa_surgery.surgery.classes import Antialiased, Recipe, antialiased_class
from aa_surgery.surgery.dress import Dress, dress, put_back, state_of, undress
from aa_surgery.surgery.forward import GraphEdit, rewrites
from aa_surgery.surgery.layering import unlayered
from aa_surgery.treated import Half, inserted

__all__ = ["dense_numbers", "rebuild"]

_CARRIED = ("", "conv", "same_conv")  # ops that another convolution can run as


def rebuild(block: nn.Module, method: str, args: Any, kwargs: Any) -> Any:
    """Call the host's `method` of an antialiased `block`, and carry the blurs along.

    Returns:
        What the method returned.

    Raises:
        UnsupportedModelError: A blur has no place in the rebuilt module; it is as it was.
    """
    before = _Before.of(block)
    dressed = state_of(block.modules())
    try:
        return _rebuilt(block, before, method, args, kwargs)
    except BaseException:
        put_back(dressed)
        raise


def _rebuilt(block: nn.Module, before: _Before, method: str, args: Any, kwargs: Any) -> Any:
    worn = {name: undress(m) for name, m in before.own.items() if isinstance(m, Antialiased)}
    try:
        edits = worn[""].extras.get("aa_edits", ())
        nodes = _nodes(block, edits)
        result = getattr(block, method)(*args, **kwargs)
        after = result if isinstance(result, nn.Module) else block
        if edits:
            worn[""] = _edited_again(block, worn[""], edits, nodes)
        fresh = _dress_for_new(before, worn, after)
    except (_Lost, NotTraceableError) as error:
        raise UnsupportedModelError(
            f"{method}() of {type(block).__name__} rebuilds it from its weights and would lose a "
            f"blur: {error} Call remove_antialias(model), then {method}, then apply_antialias."
        ) from error
    for name, dressing in worn.items():
        dress(before.own[name], dressing)
    for module, dressing in fresh:
        dress(module, dressing)
    return result


class _Lost(Exception):
    """Why a blur has no place in the rebuilt module."""


@dataclass(frozen=True)
class _Before:
    """The modules of a block before it rebuilds itself.

    Attributes:
        modules: All of them; held, so that no new module can have the id of an old one.
        own: Those that the block answers for, by name: not what lies inside of `others`.
        others: Antialiased modules inside of it that can rebuild themselves, by name.
    """

    modules: tuple[nn.Module, ...]
    own: dict[str, nn.Module]
    others: dict[str, nn.Module]

    @classmethod
    def of(cls, block: nn.Module) -> _Before:
        named = dict(block.named_modules())
        others: dict[str, nn.Module] = {
            name: module for name, module in named.items() if name and _rebuilds_itself(module)
        }
        inside = tuple(f"{name}." for name in others)
        ours = inserted(named.values())
        own = {
            name: module
            for name, module in named.items()
            if name not in others and module not in ours and not f"{name}.".startswith(inside)
        }
        return cls(tuple(named.values()), own, others)


def _rebuilds_itself(module: nn.Module) -> bool:
    return isinstance(module, Antialiased) and bool(module._aa_recipe.guarded)


@dataclass(frozen=True)
class _Treatment:
    """How a strided convolution was filtered: what ran before and behind it, and at which stride.

    `stride` is None where the convolution kept its own. `sites` and `halves`: as in `Dress`.
    """

    before: nn.Module | None = None
    after: nn.Module | None = None
    stride: tuple[int, ...] | None = None
    sites: tuple[Any, ...] = ()
    halves: tuple[Half, ...] = ()

    def agrees_with(self, other: _Treatment, pointwise: bool) -> bool:
        """Whether the sum of two branches is filtered as `other` is; `pointwise`: kernel 1."""
        mine, its = self._filters, other._filters
        if mine == its and (self.stride is None) == (other.stride is None):
            return True
        if not pointwise or self.after is not None or self.stride is None:
            return False
        if mine[0] == its[0] and other.after is None:
            return True
        # behind the sum, a border of zeros would weaken the bias that the norm adds
        zeros = isinstance(other.after, BlurPool) and other.after.padding_mode == "zeros"
        return mine[0] == its[1] and other.before is None and not zeros

    @property
    def _filters(self) -> tuple[Any, Any]:
        return _spec(self.before), _spec(self.after)


def _spec(blur: nn.Module | None) -> Any:
    """Return what two equal blurs have in common; their steps differ with the op's stride."""
    if type(blur) is BlurPool:
        return (blur.filter.spec, blur.rate, blur.padding_mode, blur.channels_last)
    if isinstance(blur, Downsample):
        raise _Lost(f"a {type(blur).__name__} has weights or a phase of its own.")
    return None if blur is None else tuple(map(_spec, blur.children()))


def _dress_for_new(
    before: _Before, worn: dict[str, Dress], after: nn.Module
) -> list[tuple[nn.Module, Dress]]:
    """Return the modules that the rebuilding made, with what each of them shall wear."""
    kept, known = {id(m) for m in after.modules()}, {id(m) for m in before.modules}
    for name, module in before.others.items():
        if id(module) not in kept and not _holds_blur(after, name):
            raise _Lost(f"{name} is gone.")
    gone = {name: m for name, m in before.own.items() if id(m) not in kept}
    lost = {name: worn[name] for name in gone if name in worn and worn[name].recipe.changes}
    for name in gone:
        op = worn[name].recipe.op if name in worn else ""
        if op not in _CARRIED or (op and "circular" in worn[name].extras["aa_op"]):
            raise _Lost(f"{name} is gone, and its circular border or its replacement with it.")
    whole = lost.pop("", None)
    fresh: dict[str, _Treatment] = {}
    _give_to_kept(before, worn, gone, lost)
    if lost:
        convs = {name: m for name, m in gone.items() if _strided(m)}
        treatments = {name: _treatment(name, lost) for name in convs}
        for name, module in after.named_modules():
            if _strided(module) and id(module) not in known and not isinstance(module, Antialiased):
                fresh[name] = _common(module, convs, treatments)
        if lost or not fresh:
            name = next(iter(lost or treatments))
            raise _Lost(f"{name} is gone, and nothing came that could carry its blur.")
    if whole is not None:
        fresh[""] = _around(whole, fresh.get("", _Treatment()))
    modules = {name: after.get_submodule(name) for name in fresh}
    return [(modules[name], _dressing(modules[name], t)) for name, t in fresh.items()]


def _give_to_kept(
    before: _Before, worn: dict[str, Dress], gone: Mapping[str, nn.Module], lost: dict[str, Dress]
) -> None:
    """Let a convolution that took in its norm, and stayed, wear the blur behind that norm."""
    for name in list(lost):
        beside = [n for n in worn if n and _parent(n) == _parent(name) and n not in gone]
        convs = [n for n in beside if _strided(before.own[n])]
        norm = lost[name]
        if len(convs) != 1 or norm.recipe.op or "aa_before" in norm.children:
            continue
        own = worn[convs[0]]
        host: Any = unlayered(type(before.own[convs[0]]))
        children = _around_op(
            own.children.get("aa_before"),
            _in_turn(own.children.get("aa_after"), norm.children.get("aa_after")),
        )
        cls = antialiased_class(host, replace(own.recipe, wrapped=_where(children)))
        halves = own.halves + norm.halves
        worn[convs[0]] = replace(own, cls=cls, children=children, halves=halves)
        del lost[name]


def _holds_blur(after: nn.Module, name: str) -> bool:
    """Whether a module that rebuilt itself at `name` left a treated one in its place."""
    parts = dict(after.named_modules())
    return any(isinstance(m, Antialiased) for m in parts.get(name, after).modules())


def _strided(module: Any) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and max(module.stride) > 1


def _treatment(name: str, lost: dict[str, Dress]) -> _Treatment:
    """Take what filtered the convolution `name` out of `lost`: at it, or behind its norm."""
    if name not in lost:
        return _Treatment()
    own = lost.pop(name)
    if own.recipe.methods:
        raise _Lost(f"{name} ran a rewritten forward.")
    stride = own.extras["aa_op"]["stride"] if own.recipe.op else None
    after, halves = [own.children.get("aa_after")], own.halves
    for other in [n for n in lost if _parent(n) == _parent(name) or name.startswith(f"{n}.")]:
        norm = lost.pop(other)
        if norm.recipe.op or "aa_before" in norm.children:
            raise _Lost(f"{other}, which was treated beside {name}, is gone.")
        after += norm.children.values()
        halves += norm.halves
    blurs = [blur for blur in after if blur is not None]
    if len(blurs) > 1:
        raise _Lost(f"{len(blurs)} blurs stood behind {name}.")
    before, behind = own.children.get("aa_before"), blurs[0] if blurs else None
    return _Treatment(before, behind, stride, own.sites, halves)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _common(
    conv: nn.Module, convs: Mapping[str, nn.Module], treatments: Mapping[str, _Treatment]
) -> _Treatment:
    """Return how all branches that became `conv` were filtered, in the form of the largest."""
    leaders = [name for name, branch in convs.items() if _window(branch) == _window(conv)]
    if not leaders:
        raise _Lost("no branch has the window of the new convolution.")
    common = treatments[leaders[0]]
    for name, branch in convs.items():
        if not treatments[name].agrees_with(common, set(_window(branch)[0]) == {1}):
            raise _Lost(f"{name} is filtered otherwise than {leaders[0]}.")
    return replace(common, halves=tuple(h for t in treatments.values() for h in t.halves))


def _window(conv: Any) -> tuple[Any, ...]:
    return tuple(conv.kernel_size), conv.stride, conv.dilation, conv.groups


def _around(whole: Dress, inner: _Treatment) -> _Treatment:
    """Return the blurs before and behind a module, around those of what came in its place."""
    if whole.recipe.op or whole.recipe.methods:
        raise _Lost("its own forward was rewritten.")
    before = _in_turn(whole.children.get("aa_before"), inner.before)
    after = _in_turn(inner.after, whole.children.get("aa_after"))
    sites, halves = whole.sites + inner.sites, whole.halves + inner.halves
    return _Treatment(before, after, inner.stride, sites, halves)


def _in_turn(first: nn.Module | None, second: nn.Module | None) -> nn.Module | None:
    if first is None or second is None:
        return first or second
    return nn.Sequential(first, second)


def _dressing(module: Any, treatment: _Treatment) -> Dress:
    if isinstance(module, Antialiased) or (treatment.stride and not plain_forward(module)):
        raise _Lost(f"a {type(module).__name__} came, which cannot carry it.")
    children = _around_op(_copied(treatment.before), _copied(treatment.after))
    extras = {}
    if treatment.stride is not None:
        extras["aa_op"] = {"stride": treatment.stride, "padding": conv_padding(module)}
    half = any(h.part == "op" for h in treatment.halves)
    recipe = Recipe(conv_op(module) if extras else "", (), _where(children), half=half)
    cls = antialiased_class(unlayered(type(module)), recipe)
    return Dress(cls, children, extras, sites=treatment.sites, halves=treatment.halves)


def dense_numbers(conv: Any) -> dict[str, tuple[int, ...]]:
    """Return what a convolution runs with at stride 1."""
    return {"stride": (1,) * len(conv.stride), "padding": conv_padding(conv)}


def _around_op(before: nn.Module | None, after: nn.Module | None) -> dict[str, nn.Module]:
    around = {"aa_before": before, "aa_after": after}
    return {name: blur for name, blur in around.items() if blur is not None}


def _where(children: Mapping[str, nn.Module]) -> tuple[str, ...]:
    return tuple(name.removeprefix("aa_") for name in children)


def _copied(blur: nn.Module | None) -> nn.Module | None:
    _spec(blur)  # refuses what has a state
    return copy.deepcopy(blur)


def _nodes(block: nn.Module, edits: tuple[GraphEdit, ...]) -> list[tuple[Any, ...]]:
    """Return what the edited nodes of the block's forward are, and how many of their kind."""
    if not edits:
        return []
    given = {argument for edit in edits for argument in edit.given}
    nodes = list(trace_scope(block, given=given).nodes)
    kinds = {node.name: (node.op, str(node.target)) for node in nodes}
    each = list(kinds.values())
    return [
        (edit.node, kind := kinds.get(edit.node), each.count(kind) if kind else 0) for edit in edits
    ]


def _edited_again(
    block: nn.Module, worn: Dress, edits: tuple[GraphEdit, ...], nodes: list[tuple[Any, ...]]
) -> Dress:
    """Return the dress whose forward is that of the rebuilt block, with the same edits."""
    if _nodes(block, edits) != nodes:
        raise _Lost("its forward, which was rewritten, has other ops now.")
    name = type(block).__name__
    methods = rewrites({name: (block, edits)})[name].methods
    host: Any = type(block)
    cls = antialiased_class(host, replace(worn.recipe, methods=methods))
    return replace(worn, cls=cls)
