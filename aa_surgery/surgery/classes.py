"""Class swap: subclasses that change what one module's forward does, and nothing else of it.

A class is made for each (host class, change) pair and kept, so that two modules changed alike
share it. Its instances pickle and deep-copy through `_rebuild`, which makes it again by the same
recipe where the process does not have it yet.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partialmethod
from inspect import Parameter
from types import FunctionType
from typing import Any

from torch import fx, nn
from torch.fx.graph_module import _forward_from_src

from aa_surgery.filters import Filter
from aa_surgery.layers.pools import BlurPool
from aa_surgery.surgery.deeplift import tell_captum
from aa_surgery.surgery.instance import require_original, require_run
from aa_surgery.surgery.layering import antialiased_of, unlayered
from aa_surgery.surgery.ops import OPS
from aa_surgery.surgery.source import Rewritten, aliases_of, held_by, made_anew
from aa_surgery.treated import KEY, OWNER, PLAN, require_whole

__all__ = [
    "REBUILDING_METHODS",
    "Antialiased",
    "Recipe",
    "antialiased_class",
    "typed_signature",
]

REBUILDING_METHODS = ("reparameterize", "switch_to_deploy", "fuse")


@dataclass(frozen=True)
class Front:
    """What makes the blur beside a convolution again, and tells for which convolutions."""

    where: str  # "before" or "after"
    filter: Filter
    stride: tuple[int, ...]
    rate: tuple[int, ...]
    padding_mode: str
    channels: int
    step: tuple[int, ...]

    @classmethod
    def of(cls, conv: nn.Module, wrapped: tuple[str, ...], layers: Any) -> Front | None:
        """Return that of a convolution, if one such blur stands there and nothing else."""
        layer: Any = layers.get(f"aa_{wrapped[0]}") if len(wrapped) == 1 else None
        if not isinstance(conv, nn.modules.conv._ConvNd) or type(layer) is not BlurPool:
            return None
        if layer.channels_last:
            return None
        return cls(
            wrapped[0],
            layer.filter,
            layer.stride,
            layer.rate,
            layer.padding_mode,
            conv.in_channels,
            conv.stride,
        )

    def fits(self, conv: Any) -> bool:
        """Whether a convolution reads what that one reads, at its stride."""
        return (conv.in_channels, tuple(conv.stride)) == (self.channels, self.step)


@dataclass(frozen=True)
class Recipe:
    """What makes an antialiased class out of a host class.

    Attributes:
        op: Which op runs another way: a key of `OPS`, or empty.
        methods: Methods that are rewritten, so that their calls that sample are treated.
        wrapped: `"before"`, `"after"`: where a blur stands around the whole module.
        guarded: Methods that rebuild the module from its weights, and must take its blurs along.
        half: Whether the op runs dense, and the layer that subsamples is another module's.
        renamed: Names of ours that the host has taken, with those used in their stead.
        front: The blur beside a convolution, which a new instance is given too.
    """

    op: str = ""
    methods: tuple[Rewritten, ...] = ()
    wrapped: tuple[str, ...] = ()
    guarded: tuple[str, ...] = ()
    half: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    front: Front | None = None

    @property
    def changes(self) -> bool:
        """Whether the forward differs from the host's."""
        return bool(self.op or self.methods or self.wrapped)


class Antialiased:
    """Mixin of every module that surgery changed; `isinstance(module, Antialiased)` finds them.

    Modifications of the host class:
    - `forward`; attributes, parameters, keys and other methods are the host's
    - children hold the blurs; which of them are ours stands in the module's record (`treated.py`)
    - a call is refused where the other half of a treatment is gone
    - a new instance is one of the host class
    """

    _aa_host: type[nn.Module]
    _aa_recipe: Recipe
    _aa_originals: tuple[tuple[Any, str, Any], ...]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        # `type(module)(...)`, as LoRA makes the layers beside one
        cls = unlayered(type(self))
        object.__setattr__(self, "__class__", cls._aa_host)
        self.__init__(*args, **kwargs)
        if cls._aa_recipe.half:
            _run_dense(self, cls._aa_recipe)
        elif cls._aa_recipe.front is not None:
            _blur_beside(self, cls._aa_recipe, cls._aa_recipe.front)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep what the host does when it is subclassed (a registry, say) from being done."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the module, if its treatment is whole."""
        require_whole(self)
        for holder, name, original in self._aa_originals:
            if getattr(holder, name, None) is not original:
                require_original(self, holder, name, original)
        if "forward" in self.__dict__:
            require_run(self, antialiased_of(self))
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def apply(self: Any, fn: Callable[[nn.Module], None]) -> Any:
        """Call `fn` on each part, as torch does; captum's DeepLift looks for its rules by this."""
        tell_captum(type(self), unlayered(type(self))._aa_host)
        return super().apply(fn)  # type: ignore[misc]

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if reduced[0] is not _newobj():
            return reduced
        cls = unlayered(type(self))  # an attribute of the user's may have either name
        if cls._aa_host.__getstate__ is not nn.Module.__getstate__:
            # the host makes itself anew of a few arguments (einops' layers): ours beside its state
            worn = self.__dict__[KEY]
            children = {name: self._modules[name] for name in worn.children}
            kept = (KEY, PLAN, OWNER, "training", *worn.extras, *worn.hidden)
            ours = (children, {n: vars(self)[n] for n in kept if n in vars(self)})
            return (_rebuild_beside, (cls._aa_host, cls._aa_recipe, reduced[2], *ours))
        return (_rebuild, (cls._aa_host, cls._aa_recipe, *reduced[1][1:]), *reduced[2:])


def _newobj() -> Any:
    """Return the constructor that `object.__reduce_ex__` names for protocol 2 and above."""
    return object().__reduce_ex__(2)[0]


def _rebuild(host: Any, recipe: Recipe, *args: Any) -> nn.Module:
    cls = antialiased_class(host, recipe)
    rebuilt: nn.Module = cls.__new__(cls, *args)
    return rebuilt


class _OfClass(str):
    """The `__module__` of a class, which the tracer of FX quantisation does not read.

    Exported graphs, hosts and tracers of `torch.fx` take a layer that is `torch.nn`'s for one op.
    FX quantisation does so too, and then looks the op up by its class, which it does not know; so
    it shall look inside, where it finds the host's op and the blur.
    """

    __slots__ = ()

    def __get__(self, instance: Any, owner: Any = None) -> str:
        asking = sys._getframe(1).f_locals.get("self")
        quantises = type(asking).__module__.startswith(_QUANTISERS)
        if instance is None or not quantises or not all(map(_reads_in_graphs, instance.children())):
            return str(self)
        return __name__


_QUANTISERS = ("torch.ao.quantization", "torchao.quantization")


def _reads_in_graphs(layer: nn.Module) -> bool:
    """Whether a symbolic trace can run a layer's forward: it asks nothing of a map's shape."""
    layers = layer.children() if isinstance(layer, nn.Sequential) else (layer,)
    return all(isinstance(each, BlurPool) for each in layers)


def _rebuild_beside(
    host: Any, recipe: Recipe, state: Any, children: dict[str, Any], extras: dict[str, Any]
) -> nn.Module:
    """Let the host restore itself by its own `__setstate__`, then put on what is ours."""
    module: nn.Module = host.__new__(host)
    module.__setstate__(state)
    module.__class__ = antialiased_class(host, recipe)
    module._modules.update(children)
    module.__dict__.update(extras)
    return module


def _run_dense(module: Any, recipe: Recipe) -> None:
    """Let a new instance of the half that runs dense run dense too.

    What it is added to has the size of the dense map; the layer behind it subsamples the sum.
    """
    # here, because these make classes of their own
    from aa_surgery.surgery.dress import Dress, dress
    from aa_surgery.surgery.rebuild import dense_numbers

    if recipe.op not in ("conv", "same_conv"):
        return
    host: Any = type(module)
    cls = antialiased_class(host, Recipe(recipe.op, half=True))
    dress(module, Dress(cls, extras={"aa_op": dense_numbers(module)}))


def _blur_beside(module: Any, recipe: Recipe, front: Front) -> None:
    """Give a new convolution that reads the same map the blur that the treated one has.

    What it gives is added to what that one gives, and may be merged into its weights.
    """
    # here, because these make classes of their own
    from aa_surgery.surgery.dress import Dress, dress
    from aa_surgery.surgery.rebuild import dense_numbers

    if not front.fits(module):
        return
    host: Any = type(module)
    cls = antialiased_class(host, Recipe(recipe.op, wrapped=(front.where,), front=front))
    like = dict(device=module.weight.device, dtype=module.weight.dtype)
    blur = BlurPool(front.filter, front.stride, front.rate, front.padding_mode, **like)
    extras: dict[str, Any] = {}
    if recipe.op:
        steps = tuple(s // b for s, b in zip(module.stride, front.stride, strict=True))
        extras = {"aa_op": dense_numbers(module) | {"stride": steps}}
    dress(module, Dress(cls, {f"aa_{front.where}": blur}, extras))


@cache
def antialiased_class(host: type[Any], recipe: Recipe) -> type[nn.Module]:
    """Return the subclass of `host` that does what `recipe` says."""
    methods: dict[str, Any] = {}
    if recipe.op:
        methods.update({name: _named(method, name) for name, method in OPS[recipe.op].items()})
    made_of = {method: made_anew(host, method) for method in recipe.methods}
    methods.update({name: f for m, f in made_of.items() for name in aliases_of(host, m)})
    methods.update({method.name: function for method, function in made_of.items()})
    if recipe.wrapped:
        name = _innermost(host)
        inner = methods.get(name, getattr(host, name))
        methods["_aa_inner_forward"] = _named(inner, "_aa_inner_forward")
        methods[name] = _named(_calling(inner, _around(recipe.wrapped)), name)
    if recipe.renamed:
        methods = {name: _renamed(method, dict(recipe.renamed)) for name, method in methods.items()}
    methods.update({method: partialmethod(_rebuild_blurred, method) for method in recipe.guarded})
    about = {
        "__module__": _OfClass(host.__module__),
        # exported graphs name a layer by this, and quantisers look for "torch.nn...conv.Conv2d"
        "__qualname__": host.__qualname__,
        "__doc__": host.__doc__,
        # TorchScript reads the annotations of attributes, and the mixin's would hide the host's
        "__annotations__": dict(getattr(host, "__annotations__", {})),
        "_aa_host": host,
        "_aa_recipe": recipe,
        "_aa_originals": tuple(
            (holder, name, getattr(holder, name))
            for holder, name in (held_by(host, method) for method in recipe.methods)
        ),
    }
    if issubclass(host, fx.GraphModule):
        # here, because it makes classes of its own
        from aa_surgery.surgery.graph_modules import AntialiasedGraphModule

        mixin: type[Antialiased] = AntialiasedGraphModule
    else:
        mixin = _passing(host) if _calls_super_of_its_type(host.forward) else Antialiased
    # the host's own bases by name, because MMEngine initialises layers by those of their class
    bases = (mixin, host, *(base for base in host.__bases__ if issubclass(base, nn.Module)))
    metaclass: Any = type(host)
    made: type[nn.Module] = metaclass(f"Antialiased{host.__name__}", bases, {**about, **methods})
    return made


def _innermost(host: Any) -> str:
    """Return the method that computes what the forward of `host` does.

    Of torch's convolutions it is one that others call in the forward's stead, with weights of
    their own (MMEngine's `efficient_conv_bn_eval`).
    """
    methods = (host.forward, getattr(host, "_conv_forward", None))
    plain = all(getattr(m, "__module__", "") == "torch.nn.modules.conv" for m in methods)
    return "_conv_forward" if plain else "forward"


def _calls_super_of_its_type(forward: Any) -> bool:
    """Tell whether a forward says `super(type(self), self)`, which a subclass leads in a circle."""
    code = getattr(forward, "__code__", None)
    return code is not None and {"super", "type"} <= set(code.co_names)


def _passing(host: Any) -> type[Antialiased]:
    """Return a mixin by which `super(type(self), self).forward` is what it is in the host.

    MMPretrain's sparse layers say so. From the antialiased class, the search begins here.
    """
    return type("Antialiased", (Antialiased,), {"forward": super(host, host).forward})


def _renamed(method: Any, names: dict[str, str]) -> Any:
    """Return a copy of `method` that reads attributes of ours by other names.

    Made from its source, since TorchScript reads that.
    """
    if not isinstance(method, FunctionType) or not names.keys() & set(method.__code__.co_names):
        return method
    source = textwrap.dedent(inspect.getsource(method))
    for name, other in names.items():
        source = re.sub(rf"\bself\.{name}\b", f"self.{other}", source)
    head = re.sub(r"^def \w+", "def forward", source, count=1)
    return _named(_forward_from_src(head, dict(method.__globals__)), method.__name__)


def _named(function: Any, name: str) -> Any:
    """Return a copy of `function` under the name at which TorchScript will look for it."""
    if not isinstance(function, FunctionType):
        return function
    copy = FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = dict(function.__annotations__)
    copy.__dict__.update(function.__dict__)
    return copy


def _around(wrapped: tuple[str, ...]) -> str:
    """Return the template of a forward with a blur before the host's, behind it, or both."""
    before = "    {first} = self.aa_before({first})\n" if "before" in wrapped else ""
    inner = "self._aa_inner_forward({arguments})"
    after = f"self.aa_after({inner})" if "after" in wrapped else inner
    return f"\ndef forward{{signature}}:\n{before}    return {after}\n"


_PASSED: dict[Any, str] = {
    Parameter.VAR_POSITIONAL: "*{0}",
    Parameter.KEYWORD_ONLY: "{0}={0}",
    Parameter.VAR_KEYWORD: "**{0}",
}


class _Text(str):
    """A name that stands for an object in generated source."""

    __slots__ = ()

    __repr__ = str.__str__


def _calling(inner: Callable[..., Any], template: str) -> Any:
    """Return a forward with the parameters of `inner`, spelled out as TorchScript needs them."""
    signature = typed_signature(inner)
    _, *parameters = signature.parameters.values()
    if not parameters or parameters[0].kind is Parameter.VAR_POSITIONAL:
        parameters.insert(0, Parameter("input", Parameter.POSITIONAL_ONLY))
    objects: dict[str, Any] = {}

    def text(kind: str, value: Any) -> Any:
        if value is Parameter.empty:
            return value
        name = _Text(f"_{kind}_{len(objects)}")
        objects[name] = value
        return name

    spelled = signature.replace(
        parameters=[
            Parameter("self", Parameter.POSITIONAL_ONLY),
            *(
                p.replace(annotation=text("type", p.annotation), default=text("default", p.default))
                for p in parameters
            ),
        ],
        return_annotation=text("type", signature.return_annotation),
    )
    arguments = ", ".join(_PASSED.get(p.kind, "{0}").format(p.name) for p in parameters)
    source = template.format(
        signature=str(spelled).replace("self, /", "self"),
        first=parameters[0].name,
        arguments=arguments,
    )
    return _forward_from_src(source, objects)


def typed_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature with its annotations as objects; without those that have none here."""
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, AttributeError, TypeError):
        bare = inspect.signature(function)
        return bare.replace(
            parameters=[p.replace(annotation=Parameter.empty) for p in bare.parameters.values()],
            return_annotation=Parameter.empty,
        )


def _rebuild_blurred(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    # here, because it makes classes of its own
    from aa_surgery.surgery.rebuild import rebuild

    return rebuild(self, method, args, kwargs)
