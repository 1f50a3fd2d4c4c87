"""The tool that tries models on a GPU, by those of its laws that a CPU can be asked too."""

from __future__ import annotations

import pytest
import torch
from _accelerator_laws import LAWS, Broken, Subject, outcome
from torchvision.models import resnet18

NEEDS_CUDA = ("CUDA graph",)
SLOW = ("torch.compile",)


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    return Subject(resnet18().eval(), torch.randn(2, 3, 64, 64), "cpu")


@pytest.mark.parametrize("name", [n for n in LAWS if n not in (*NEEDS_CUDA, *SLOW)])
def test_a_law_holds_on_the_cpu(name: str, subject: Subject) -> None:
    holds, text = outcome(LAWS[name], subject)
    assert holds and not text.startswith("nor untouched"), text


def test_what_breaks_for_ours_alone_is_a_break(subject: Subject) -> None:
    def law(subject: Subject) -> str:
        if subject.control:
            return "fine"
        raise Broken("off by 1")

    assert outcome(law, subject) == (False, "Broken: off by 1")


def test_what_the_untouched_cannot_do_is_not_asked_of_ours(subject: Subject) -> None:
    def law(subject: Subject) -> str:
        raise RuntimeError(f"no such kernel (control: {subject.control})")

    assert outcome(law, subject) == (
        True,
        "nor untouched: RuntimeError: no such kernel (control: True)",
    )
