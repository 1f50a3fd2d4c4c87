"""One model of another library, with an input that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LIMIT", "Library", "Specimen", "filled", "first_that_runs", "fits", "noise"]

LIMIT = 70_000_000
"""Parameters above which a model is not run."""


@dataclass
class Specimen:
    """A model with random weights, and what its forward takes.

    Attributes:
        model: The model.
        arguments: Positional arguments of its forward; batches of two, which batch norms need.
        options: Keyword arguments of its forward.
        merge: Merges the model's own branches and norms, in place, where its library can.
    """

    model: nn.Module
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    merge: Callable[[nn.Module], object] | None = None

    def run(self, model: nn.Module | None = None) -> Any:
        """Run the forward of `model`, by default the specimen's own, always with one seed."""
        torch.manual_seed(0)
        return (self.model if model is None else model)(*self.arguments, **self.options)


@dataclass(frozen=True)
class Library:
    """A library whose models are swept.

    Attributes:
        name: What stands in front of its models' names.
        module: What is imported to tell whether it is installed.
        package: The package's name, for its version.
        names: Returns the models' names.
        specimen: Builds one of them.
        left_out: What is not among the names, and why.
    """

    name: str
    module: str
    package: str
    names: Callable[[], Iterable[str]]
    specimen: Callable[[str], Specimen]
    left_out: Mapping[str, str] = field(default_factory=dict)


def noise(*shape: int) -> Tensor:
    """Return an image or map of noise in [0, 1), the same at every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def filled(make: Callable[..., Any], common: Mapping[str, Any], **own: Any) -> Any:
    """Call `make` with those of `common` that it has parameters for, and with all of `own`.

    >>> filled(lambda width, depth=3: (width, depth), {"width": 8, "heads": 2}, depth=1)
    (8, 1)
    """
    taken = inspect.signature(make).parameters
    return make(**{name: value for name, value in common.items() if name in taken} | own)


def first_that_runs(candidates: Iterable[Callable[[], Specimen]]) -> Specimen:
    """Return the first specimen whose untouched model builds, is small enough, and runs.

    Raises:
        Exception: What the last one raised, where none does.
    """
    failure: Exception = ValueError("there is no candidate")
    for candidate in candidates:
        try:
            found = candidate()
            fits(found.model)
            with torch.no_grad():
                found.model.eval()
                found.run()
        # A candidate may fail in any way of its library; the last failure is told.
        except Exception as error:
            failure = error
        else:
            return candidate()  # which has not run: transformers' models then hold hooks
    raise failure


def fits(model: nn.Module) -> None:
    """Raise unless the model has at most `LIMIT` parameters.

    Raises:
        ValueError: It has more.
    """
    count = sum(p.numel() for p in model.parameters())
    if count > LIMIT:
        raise ValueError(f"{count / 1e6:.0f} M parameters are above {LIMIT / 1e6:g} M")
