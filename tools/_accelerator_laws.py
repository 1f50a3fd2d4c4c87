"""What must hold of an anti-aliased model on an accelerator; each law raises where it does not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from aa_surgery import apply_antialias, remove_antialias

EXACT = 1e-9
"""Largest difference, relative to the largest output, in float64."""
CLOSE = 1e-4
"""The same in float32, where kernels add in another order."""
HALF = 5e-2
"""The same in half precision."""


class Broken(Exception):
    """What did not hold, and by how much."""


@dataclass(frozen=True)
class Subject:
    """A network with random weights on the CPU, in eval mode, and an input `(N, 3, H, W)`.

    Of a control nothing is anti-aliased.
    """

    network: nn.Module
    x: Tensor
    device: str
    control: bool = False

    def untouched(self) -> nn.Module:
        return copy.deepcopy(self.network).to(self.device)

    def treated(self) -> nn.Module:
        model = self.untouched()
        return model if self.control else apply_antialias(model, max_stride=None)

    @property
    def there(self) -> Tensor:
        return self.x.to(self.device)


def agree(ours: Tensor, expected: Tensor, tolerance: float) -> str:
    """Return the largest difference, relative to the largest output.

    Raises:
        Broken: It is above `tolerance`, or not finite.
    """
    expected = expected.to(ours)
    difference = float((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= tolerance:
        raise Broken(f"off by {difference:.1e}")
    return f"{difference:.0e}"


@torch.no_grad()
def identity(subject: Subject) -> str:
    """With the identity filter the outputs are the untouched network's (float64)."""
    host, x = subject.untouched().double(), subject.there.double()
    expected = host(x)
    return agree(apply_antialias(host, filter="identity", max_stride=None)(x), expected, EXACT)


@torch.no_grad()
def like_the_cpu(subject: Subject) -> str:
    """The outputs are those of the CPU (float64)."""
    there = subject.treated().double()(subject.there.double())
    here = apply_antialias(copy.deepcopy(subject.network), max_stride=None).double()
    return agree(there, here(subject.x.double()), EXACT)


@torch.no_grad()
def moved(subject: Subject) -> str:
    """Treated on the CPU and then moved is treated there, bit for bit."""
    ours = apply_antialias(copy.deepcopy(subject.network), max_stride=None).to(subject.device)
    return agree(ours(subject.there), subject.treated()(subject.there), 0.0)


@torch.no_grad()
def meta(subject: Subject) -> str:
    """Treated on the meta device, `to_empty` there and filled: the same, bit for bit."""
    whole = subject.treated()
    empty = apply_antialias(copy.deepcopy(subject.network).to("meta"), max_stride=None)
    filled = empty.to_empty(device=subject.device)
    filled.load_state_dict(whole.state_dict())
    return agree(filled(subject.there), whole(subject.there), 0.0)


@torch.no_grad()
def channels_last(subject: Subject) -> str:
    """The memory format changes nothing but rounding (float32)."""
    model = subject.treated()
    expected = model(subject.there)
    layout = torch.channels_last
    x = subject.there.to(memory_format=layout)
    return agree(model.to(memory_format=layout)(x), expected, CLOSE)


@torch.no_grad()
def half(subject: Subject) -> str:
    """Under bfloat16 autocast the outputs are near those of float32."""
    model = subject.treated()
    expected = model(subject.there)
    with torch.autocast(subject.device, torch.bfloat16):
        return agree(model(subject.there).float(), expected, HALF)


@torch.no_grad()
def captured(subject: Subject) -> str:
    """A CUDA graph of the forward replays it, on another input."""
    model, x = subject.treated(), subject.there
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(x)
    other = torch.randn_like(x)
    expected = model(other)
    x.copy_(other)
    graph.replay()
    return agree(out, expected, CLOSE)


def training(subject: Subject) -> str:
    """A float16 step at the gradient scaler's first scale, 65,536, has finite gradients.

    Where the untouched network's are and ours are not, the scaler halves its scale: a blur takes
    most of the variance of the white noise that is the input here, and a layer norm behind it,
    without trained weights, divides by what is left.
    """
    counts = []
    for model in (subject.untouched(), subject.treated()):
        scaler = torch.amp.GradScaler(subject.device)
        optimizer = torch.optim.SGD(model.train().parameters(), 1e-3)
        with torch.autocast(subject.device, torch.float16):
            loss = model(subject.there).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not all(bool(g.isfinite().all()) for g in gradients):
            raise Broken("a gradient is not finite")
        scaler.step(optimizer)
        counts.append(len(gradients))
    if counts[0] != counts[1]:
        raise Broken(f"{counts[0]} parameters have a gradient, {counts[1]} when treated")
    return f"{counts[1]} gradients"


@torch.no_grad()
def compiled(subject: Subject) -> str:
    """`torch.compile` without a graph break gives the eager outputs (float32)."""
    model = subject.treated()
    expected = model(subject.there)
    torch._dynamo.reset()
    return agree(torch.compile(model, fullgraph=True)(subject.there), expected, CLOSE)


@torch.no_grad()
def undone(subject: Subject) -> str:
    """Removal gives the untouched outputs back, from a pickled copy too, bit for bit."""
    host = subject.untouched()
    expected = host(subject.there)
    twin = pickle.loads(pickle.dumps(apply_antialias(host, max_stride=None)))
    for model in (host, twin):
        agree(remove_antialias(model)(subject.there), expected, 0.0)
    return "0"


LAWS: dict[str, Callable[[Subject], str]] = {
    "identity": identity,
    "as on the CPU": like_the_cpu,
    "moved": moved,
    "meta": meta,
    "channels_last": channels_last,
    "bfloat16": half,
    "CUDA graph": captured,
    "training step": training,
    "torch.compile": compiled,
    "undo": undone,
}


def outcome(law: Callable[[Subject], str], subject: Subject) -> tuple[bool, str]:
    """Return whether a law holds, and what the table shows of it.

    What the untouched network cannot do either is not asked of ours.
    """
    try:
        return True, law(subject)
    except Exception as error:  # any failure is the row's result
        try:
            law(replace(subject, control=True))
        except Exception as its:
            return True, f"nor untouched: {_line_of(its)}"
        return False, _line_of(error)


def _line_of(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:80]}".replace("|", "/")
