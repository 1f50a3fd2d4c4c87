"""Network cases: whole models before and after surgery, and the peers' own versions of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _bench_layers import FORMATS, optional
from _bench_timing import Case, Row, summarise
from torch import Tensor, nn

from aa_surgery import apply_antialias

UNTOUCHED, AUTO, PRE = "untouched", "ours auto", "ours pre"
PAPER, ADOBE = "ours zhang2019 tri-4", "antialiased-cnns"
LIKE_TIMM, TIMM = "ours, timm's sites", "timm aa_layer"
SIDE = 224
NETWORKS = ("resnet50", "mobilenet_v2", "convnext_tiny", "swin_t", "timm resnet50")
SAME = {"timm resnet50": ((LIKE_TIMM, TIMM),)}


def network_cases(batch: int, quick: bool) -> list[Case]:
    """Return the cases of `--suite networks`."""
    side = 96 if quick else SIDE
    return [
        _case(name, layout, train, batch, side)
        for name in NETWORKS
        for train in (False, True)
        for layout in FORMATS
    ]


def memory_rows(batch: int, quick: bool) -> list[Row]:
    """Return the bytes that a training step saves for its backward, as ratios."""
    x = torch.randn(batch, 3, *(2 * (96 if quick else SIDE,)))
    rows = []
    for name in NETWORKS:
        saved = {label: saved_bytes(net.train(), x) for label, net in contenders(name).items()}
        base = saved.pop(UNTOUCHED)
        ratios = {label: summarise([size / base]) for label, size in saved.items()}
        versus = {
            f"{ours} / {peer}": summarise([saved[ours] / saved[peer]])
            for ours, peer in _same(name)
            if peer in saved
        }
        rows.append(Row("memory", name, UNTOUCHED, base / 2**20, "MiB", 1, ratios, versus))
    return rows


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps between forward and backward, parameters aside."""
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x)
    return sum(storage.nbytes() for storage in storages.values())


def contenders(name: str) -> dict[str, nn.Module]:
    """Return the untouched network, its surgeries, and the peers' versions that are installed."""
    if name == "timm resnet50":
        return _timm_contenders()
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None)
    nets = {
        UNTOUCHED: net,
        AUTO: apply_antialias(copy.deepcopy(net)),
        PRE: apply_antialias(copy.deepcopy(net), placement="pre"),
    }
    adobe = optional("antialiased_cnns")
    if adobe is not None and hasattr(adobe, name):
        nets[PAPER] = apply_antialias(copy.deepcopy(net), preset="zhang2019", filter="tri-4")
        nets[ADOBE] = getattr(adobe, name)(pretrained=False, filter_size=4)
    return nets


def _timm_contenders() -> dict[str, nn.Module]:
    import timm
    from timm.layers import BlurPool2d

    torch.manual_seed(0)
    net = timm.create_model("resnet50", pretrained=False)
    # what aa_layer leaves as it is: the stem's conv, and the shortcuts'
    left = ("conv1", "*downsample*")
    return {
        UNTOUCHED: net,
        LIKE_TIMM: apply_antialias(copy.deepcopy(net), placement="post", exclude=left),
        TIMM: timm.create_model("resnet50", pretrained=False, aa_layer=BlurPool2d),
    }


def _same(name: str) -> tuple[tuple[str, str], ...]:
    return SAME.get(name, ((PAPER, ADOBE),))


def _case(name: str, layout: str, train: bool, batch: int, side: int) -> Case:
    def build() -> dict[str, Callable[[], Any]]:
        x = torch.randn(batch, 3, side, side).contiguous(memory_format=FORMATS[layout])
        return {
            label: _step(net.to(memory_format=FORMATS[layout]), x, train)
            for label, net in contenders(name).items()
        }

    job = "training step" if train else "inference"
    return Case("networks", f"{name}, {layout}, {job}", UNTOUCHED, build, _same(name))


def _step(net: nn.Module, x: Tensor, train: bool) -> Callable[[], Any]:
    net.train(train)
    if not train:

        def infer() -> Tensor:
            with torch.inference_mode():
                return net(x)

        return infer

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(x).square().mean().backward()

    return step
