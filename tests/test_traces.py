"""A trace leaves nothing behind, in no thread."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import own_calls
import own_helpers
import own_states
import pytest
import torch
import torch.nn.functional as F
from behaviour import X, around, seeded, state
from own_calls import LEFT, TREATED
from own_states import STATES
from torch import fx, nn
from torchvision.models import resnet18

from aa_surgery import apply_antialias, plan_antialias


@pytest.mark.parametrize("cls", [*TREATED, *STATES, *LEFT], ids=lambda cls: cls.__name__)
def test_a_trace_writes_nothing(cls: type[nn.Module]) -> None:
    model = seeded(cls)
    attributes = {id(part): list(vars(part)) for part in model.modules()}

    def everything() -> Any:
        random_states = random.getstate(), torch.get_rng_state().tolist()
        return state(model), around(own_helpers, own_calls, own_states), random_states

    before = everything()
    plan_antialias(model)
    assert everything() == before
    assert {id(part): list(vars(part)) for part in model.modules()} == attributes


class Draining(own_calls.Net):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = iter([1, 2, 3])

    def forward(self, x: torch.Tensor) -> Any:
        return x[..., :: next(self.numbers)]


def test_an_iterator_is_not_advanced() -> None:
    model = Draining()
    (unread,) = plan_antialias(model).unread
    assert "draws from an iterator" in unread.reason
    assert list(model.numbers) == [1, 2, 3]


class Changing(own_calls.Net):
    """Its forward changes what it is called with, of the model and of its class."""

    added: dict[str, Any] = {}

    def forward(self, x: torch.Tensor) -> Any:
        self.conv.register_forward_hook(lambda *seen: None)
        self.act.register_buffer("noted", torch.zeros(1), persistent=False)
        self.head = nn.Identity()
        Changing.added["x"] = x
        Changing.made = x  # type: ignore[attr-defined]
        return F.max_pool2d(self.conv(x), 2)


def test_hooks_buffers_children_and_classes_stay() -> None:
    model = Changing()
    assert plan_antialias(model).edits
    assert not model.conv._forward_hooks
    assert not dict(model.act.named_buffers())
    assert not model.act._non_persistent_buffers_set
    assert isinstance(model.head, nn.Linear)
    assert not Changing.added
    assert not hasattr(Changing, "made")


@pytest.fixture
def switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def together(work: list[Callable[[], None]], meanwhile: Callable[[], None]) -> list[BaseException]:
    """Run all of `work` in threads, and `meanwhile` again and again beside; return the errors."""
    errors: list[BaseException] = []
    done = threading.Event()

    def catching(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    def again() -> None:
        while not done.is_set() and not errors:
            catching(meanwhile)

    beside = threading.Thread(target=again)
    threads = [threading.Thread(target=catching, args=(function,)) for function in work]
    for thread in (beside, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    beside.join()
    return errors


def operate() -> None:
    treated = apply_antialias(resnet18())
    assert len(plan_antialias(resnet18()).edits) == 8
    assert treated.maxpool.__class__.__name__ == "AntialiasedMaxPool2d"
    for cls in (own_states.Keeps, own_calls.Super, own_calls.Static):
        assert plan_antialias(cls()).edits


@pytest.mark.usefixtures("switching")
def test_surgery_in_several_threads_beside_inference() -> None:
    model = seeded(resnet18)
    with torch.no_grad():
        expected = model(X)

    def infer() -> None:
        with torch.no_grad():
            assert torch.equal(model(X), expected)

    assert not together([operate] * 4, infer)


@pytest.mark.usefixtures("switching")
def test_surgery_beside_traces_of_fx() -> None:
    def trace() -> None:
        fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))

    call = nn.Module.__call__
    assert not together([operate] * 4, trace)
    assert nn.Module.__call__ is call
