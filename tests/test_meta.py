"""Models that were treated on the meta device, or given new memory, are whole once they run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from torch import Tensor, nn

from aa_surgery import apply_antialias
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.strength import set_strength

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OPTIONS = [
    {},
    {"placement": "pre"},
    {"placement": "post"},
    {"method": "learned"},
    {"method": "ideal"},
    {"method": "wavelet"},
    {"method": "aps"},
    {"method": "aps", "filter": "tri-3"},
]


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 1, 2),
    )


def treated(options: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    return apply_antialias(net(), example=X, **options).eval()


def on_meta(options: dict[str, object]) -> nn.Module:
    with torch.device("meta"):
        model = net()
    return apply_antialias(model, example=X.to("meta"), **options).eval()


def run(model: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("way", "move"), [("emptied", False), ("assigned", False), ("assigned", True)]
)
def test_weights_given_to_a_model_on_meta(options: dict[str, object], way: str, move: bool) -> None:
    source, model = treated(options), on_meta(options)
    if way == "emptied":
        model.to_empty(device="cpu")
        for buffer in model.buffers():
            assert not buffer.is_meta
    model.load_state_dict(source.state_dict(), assign=way == "assigned")
    model = copy.deepcopy(model).to("cpu") if move else model
    assert torch.equal(run(model), run(source))
    assert not any(b.is_meta for b in model.buffers())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_new_memory_for_a_model_that_has_some(options: dict[str, object]) -> None:
    model = treated(options)
    state, expected = {k: v.clone() for k, v in model.state_dict().items()}, run(model)
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    assert torch.equal(run(model), expected)


def test_kernels_wake_in_the_dtype_and_strength_that_they_have() -> None:
    source, model = treated({}), on_meta({})
    for each in (source, model):
        set_strength(each, 0.25)
    model.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(run(model), run(source))
    model.double()
    torch.testing.assert_close(run(model, X.double()), run(source.double(), X.double()))


def test_moving_shares_and_keeps_memory() -> None:
    model = treated({})
    kernels = [b for m in model.modules() if isinstance(m, Downsample) for b in m.buffers()]
    model.share_memory()
    assert all(kernel.is_shared() for kernel in kernels)
    model.to("cpu")
    again = [b for m in model.modules() if isinstance(m, Downsample) for b in m.buffers()]
    assert all(a is b for a, b in zip(kernels, again, strict=True))


@pytest.mark.parametrize("buffers", [False, True])
def test_accelerate_loads_a_checkpoint_into_an_empty_model(tmp_path: Path, buffers: bool) -> None:
    source = treated({})
    accelerate.Accelerator().save_model(source, tmp_path)
    with accelerate.init_empty_weights(include_buffers=buffers):
        model = apply_antialias(net()).eval()
    model = accelerate.load_checkpoint_and_dispatch(model, tmp_path, device_map={"": "cpu"})
    assert torch.equal(run(model), run(source))
