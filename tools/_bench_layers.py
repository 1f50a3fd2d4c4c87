"""Layer cases: BlurPool and max-then-blur, against the layers of the peers that are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from _bench_timing import Case
from torch import Tensor, nn

from aa_surgery.layers import BlurPool2d, MaxBlurPool2d, canonical_form

OURS, PLAIN = "aa_surgery", "pad + conv"
ZEROS = "aa_surgery, zeros"
BORDERED = (PLAIN, "antialiased-cnns", "timm")  # reflect, as ours; the others pad with zeros
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
FILTERS = {3: "tri-3", 4: "tri-4", 5: "binomial-5"}


def optional(name: str) -> ModuleType | None:
    """Return a peer's module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def composer_layers() -> ModuleType | None:
    """Return Composer's blurpool layers: they need torch alone, the package needs much more."""
    spec = importlib.util.find_spec("composer")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], "algorithms/blurpool/blurpool_layers.py")
    if not path.is_file():
        return None
    layers = importlib.util.spec_from_file_location("composer_blurpool_layers", path)
    if layers is None or layers.loader is None:
        return None
    module = importlib.util.module_from_spec(layers)
    layers.loader.exec_module(module)
    return module


def layer_cases(batch: int, quick: bool) -> list[Case]:
    """Return the cases of `--suite layers`."""
    shapes = [(batch, 64, 112, 112), (batch, 256, 56, 56)][: 1 if quick else 2]
    cases = []
    for layout in FORMATS:
        for train in (False, True):
            for shape in shapes:
                for length in FILTERS:
                    cases.append(_case("BlurPool", length, shape, layout, train))
            for window in (2, 3):
                cases.append(_case("MaxBlurPool", window, shapes[0], layout, train))
    return cases


def _case(kind: str, number: int, shape: tuple[int, ...], layout: str, train: bool) -> Case:
    blurs = kind == "BlurPool"
    unit = f"{number} taps" if blurs else f"k={number}, 3 taps"
    size = "×".join(map(str, shape))
    name = f"{kind} {unit}, {size} {layout}, {'forward + backward' if train else 'inference'}"
    peers = [PLAIN, *(_blur_peers(1, 3) if blurs else _max_blur_peers(1, 2))]

    def build() -> dict[str, Callable[[], Any]]:
        x = torch.randn(shape).contiguous(memory_format=FORMATS[layout]).requires_grad_(train)
        if blurs:
            ours: nn.Module = BlurPool2d(FILTERS[number])
            zeros: nn.Module = BlurPool2d(FILTERS[number], padding_mode="zeros")
            modules = _blur_peers(shape[1], number)
            baseline: Callable[[Tensor], Tensor] = torch.clone
        else:
            ours = MaxBlurPool2d(number, 2, number // 3)
            zeros = MaxBlurPool2d(number, 2, number // 3, padding_mode="zeros")
            modules = _max_blur_peers(shape[1], number)
            baseline = nn.MaxPool2d(number, 2, number // 3)
        calls = {_baseline(kind): baseline, OURS: ours, ZEROS: zeros, PLAIN: _canonical(ours)}
        for peer, module in modules.items():
            calls[peer] = module.to(memory_format=FORMATS[layout])
        return {label: _call(function, x, train) for label, function in calls.items()}

    same = tuple((OURS if p in BORDERED else ZEROS, p) for p in peers)
    return Case("layers", name, _baseline(kind), build, same)


def _baseline(kind: str) -> str:
    return "clone" if kind == "BlurPool" else "nn.MaxPool2d"


def _canonical(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    def plain(x: Tensor) -> Tensor:
        with canonical_form():
            return layer(x)

    return plain


def _call(function: Callable[[Tensor], Tensor], x: Tensor, train: bool) -> Callable[[], Any]:
    if not train:

        def infer() -> Tensor:
            with torch.inference_mode():
                return function(x)

        return infer
    g = torch.randn_like(function(x))
    return lambda: torch.autograd.grad(function(x), x, g)


def _blur_peers(channels: int, length: int) -> dict[str, nn.Module]:
    """Return each peer's BlurPool; kornia's and Composer's borders are zeros."""
    peers: dict[str, nn.Module] = {}
    if (adobe := optional("antialiased_cnns")) is not None:
        peers["antialiased-cnns"] = adobe.BlurPool(channels, filt_size=length, stride=2)
    if (timm := optional("timm.layers")) is not None:
        peers["timm"] = timm.BlurPool2d(channels, filt_size=length, stride=2)
    if (kornia := optional("kornia.filters")) is not None:
        peers["kornia"] = kornia.BlurPool2D(length, stride=2)
    if length == 3 and (composer := composer_layers()) is not None:
        peers["Composer"] = composer.BlurPool2d(channels, stride=2, padding=1)
    return peers


def _max_blur_peers(channels: int, window: int) -> dict[str, nn.Module]:
    """Return each peer's max-then-blur of 3 taps."""
    peers: dict[str, nn.Module] = {}
    if (adobe := optional("antialiased_cnns")) is not None:
        peers["antialiased-cnns"] = nn.Sequential(
            nn.MaxPool2d(window, 1, window // 3), adobe.BlurPool(channels, filt_size=3, stride=2)
        )
    if (kornia := optional("kornia.filters")) is not None:
        peers["kornia"] = kornia.MaxBlurPool2D(3, stride=2, max_pool_size=window)
    if (composer := composer_layers()) is not None:
        peers["Composer"] = composer.BlurMaxPool2d(window, 2, window // 3)
    return peers
