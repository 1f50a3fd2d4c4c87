"""The tool that tries models on a GPU, by those of its laws that a CPU can be asked too."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

TOOLS = str(Path(__file__).parents[1] / "tools")
ON_A_CPU = (
    *("identity", "as on the CPU", "moved", "meta", "channels_last", "bfloat16"),
    *("training step", "undo"),
)


@pytest.fixture
def laws(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("_accelerator_laws")


@pytest.fixture
def subject(laws: Any) -> Any:
    torch.manual_seed(0)
    return laws.Subject(resnet18().eval(), torch.randn(2, 3, 64, 64), "cpu")


@pytest.mark.parametrize("name", ON_A_CPU)
def test_a_law_holds_on_the_cpu(name: str, laws: Any, subject: Any) -> None:
    holds, text = laws.outcome(laws.LAWS[name], subject)
    assert holds, text
    assert not text.startswith("nor untouched")


def test_what_breaks_for_ours_alone_is_a_break(laws: Any, subject: Any) -> None:
    def law(subject: Any) -> str:
        if subject.control:
            return "fine"
        raise laws.Broken("off by 1")

    assert laws.outcome(law, subject) == (False, "Broken: off by 1")


def test_what_the_untouched_cannot_do_is_not_asked_of_ours(laws: Any, subject: Any) -> None:
    def law(subject: Any) -> str:
        raise RuntimeError(f"no such kernel (control: {subject.control})")

    assert laws.outcome(law, subject) == (
        True,
        "nor untouched: RuntimeError: no such kernel (control: True)",
    )
