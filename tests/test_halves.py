"""A treatment of two halves is whole, or the next call, the audit and `verify` say that it is not.

The convolution that runs dense and the blur behind its activation are two modules.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import aa_surgery
from aa_surgery import apply_antialias, audit, remove_antialias, verify
from aa_surgery.errors import HalfTreatedError, UnsupportedModelError
from aa_surgery.surgery.classes import Antialiased

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
    body = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
    return nn.Sequential(stem, body, nn.Conv2d(8, 4, 1)).eval()


class SharedReLU(nn.Module):
    """The activation is called twice, so the blur stands before the module that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.next, self.relu = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.next(self.relu(self.down(x))))


class FunctionalReLU(nn.Module):
    """The activation is a function, so the blur stands in the rewritten forward."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.left, self.right = (
            nn.Conv2d(*c) for c in ((3, 4, 3, 2, 1), (4, 4, 1), (4, 4, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(x))
        return self.left(x) + self.right(x)


def run(model: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


def assert_half_gone(model: nn.Module, site: str, x: Tensor = X) -> None:
    with pytest.raises(HalfTreatedError, match=r"apply_antialias\(model\)") as error:
        run(model, x)
    assert site in str(error.value)
    lost = verify(model).lost
    assert site in [half.site for half in lost]
    assert not verify(model).ok
    report = audit(model, x)
    assert not report.ok
    assert any(site in reason for reason in report.broken)


CHANGES: dict[str, tuple[Callable[[], nn.Module], str, str, Callable[[], nn.Module]]] = {
    "activation": (plain, "0.2", "0.0", nn.ReLU),
    "convolution": (plain, "0.0", "0.0", lambda: nn.Conv2d(3, 8, 3, 2, 1)),
    "reader": (SharedReLU, "next", "down", lambda: nn.Conv2d(4, 4, 1)),
    "before a shared activation": (SharedReLU, "down", "down", lambda: nn.Conv2d(3, 4, 3, 2, 1)),
    "in a forward": (FunctionalReLU, "down", "down", lambda: nn.Conv2d(3, 4, 3, 2, 1)),
    "timm": (
        lambda: timm.create_model("resnet18"),
        "conv1",
        "conv1",
        lambda: nn.Conv2d(3, 64, 7, 2, 3),
    ),
    "timm, deeper": (
        lambda: timm.create_model("resnet18"),
        "layer2.0.act1",
        "layer2.0.conv1",
        nn.SiLU,
    ),
    "norm with activation": (
        lambda: timm.create_model("regnety_002"),
        "stem.bn",
        "stem.conv",
        lambda: nn.BatchNorm2d(32),
    ),
    "torchvision": (torchvision.models.mobilenet_v2, "features.0.2", "features.0.0", nn.SiLU),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_half_replaced(kind: str) -> None:
    build, path, site, new = CHANGES[kind]
    model = apply_antialias(build().eval(), placement="post")
    assert verify(model).ok
    expected = run(model)
    old = model.get_submodule(path)
    model.set_submodule(path, new().eval())
    assert_half_gone(model, site)
    model.set_submodule(path, old)
    assert verify(model).ok
    assert torch.equal(run(model), expected)

    model.set_submodule(path, new().eval())
    remove_antialias(model)
    assert not any(isinstance(m, Antialiased) for m in model.modules())
    apply_antialias(model, placement="post")
    assert audit(model, X).ok


def test_a_first_convolution_for_grey_images() -> None:
    model = apply_antialias(plain(), placement="post")
    model[0][0] = nn.Conv2d(1, 8, 3, 2, 1)
    assert_half_gone(model, "0.0", X[:, :1])


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_parent_of_one_half(change: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
            self.outer = nn.Sequential(nn.ReLU6())

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.inner(x))

    model = apply_antialias(Net(), placement="post")
    if change == "replaced":
        model.outer = nn.Sequential(nn.ReLU6())
    else:
        model.outer[0] = nn.Identity()
    assert_half_gone(model, "inner.0")


def test_both_halves_taken_out_leave_nothing_to_miss() -> None:
    model = apply_antialias(plain(), placement="post")
    model[0] = nn.Conv2d(3, 8, 3, 2, 1)
    run(model)
    assert verify(model).ok


def test_containers_indexed_anew_and_adapters_keep_both_halves() -> None:
    model = apply_antialias(plain()[0], placement="post")
    expected = run(model)
    model.insert(0, nn.Identity())
    assert torch.equal(run(model), expected)
    model[1] = nn.Sequential(model[1])
    assert torch.equal(run(model), expected)
    assert torch.equal(run(nn.Sequential(*model)), expected)
    assert verify(model).ok
    model[3] = nn.ReLU()
    assert_half_gone(model, "0")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_miss_their_own_halves_only(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = apply_antialias(plain(), placement="post")
    twin, part, expected = copied(model), copied(model[0]), run(model)
    half = copied(model[0][0])
    twin[0][2] = nn.ReLU()
    assert_half_gone(twin, "0.0")
    assert torch.equal(run(model), expected)
    remove_antialias(model)
    run(part)
    assert run(half).shape[-1] == 64  # the other half is in no model that could be asked
    part[2] = nn.ReLU()
    assert_half_gone(part, "0.0")


def test_a_record_keeps_no_model_alive() -> None:
    model = apply_antialias(plain(), placement="post")
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_miss_them_too(backend: str) -> None:
    torch._dynamo.reset()
    model = apply_antialias(plain(), placement="post")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(run(compiled), run(model))
    model[0][2] = nn.ReLU()
    with pytest.raises(Exception, match="half of its anti-aliasing is gone"):
        run(torch.compile(model, backend=backend))


def test_a_part_is_removed_with_its_whole() -> None:
    model = apply_antialias(SharedReLU(), placement="post")
    expected = run(model)
    with pytest.raises(UnsupportedModelError, match=r"down.*Call remove_antialias on the whole"):
        remove_antialias(model.down)
    assert torch.equal(run(model), expected)


def test_a_shallow_copy_is_not_taken_apart() -> None:
    for model in (apply_antialias(plain()), apply_antialias(nn.Sequential(nn.MaxPool2d(2)))[0]):
        expected = run(model)
        with pytest.raises(UnsupportedModelError, match="is a shallow copy"):
            remove_antialias(copy.copy(model))
        assert torch.equal(run(model), expected)
    assert not any(isinstance(m, Antialiased) for m in remove_antialias(model).modules())


def test_replicas_of_data_parallel_run() -> None:
    model = apply_antialias(plain(), placement="post")
    expected = run(model)
    for module in model.modules():
        replica = module._replicate_for_data_parallel()
        assert type(replica) is type(module)
    replica = model[0][0]._replicate_for_data_parallel()
    replica.weight, replica.bias = model[0][0].weight, model[0][0].bias
    torch.testing.assert_close(run(replica), run(model[0][0]))
    assert torch.equal(run(model), expected)


def test_a_model_without_treatment_is_whole() -> None:
    assert verify(plain()).ok
    assert str(verify(plain())) == "every treatment is whole"
    assert aa_surgery.verify is verify
