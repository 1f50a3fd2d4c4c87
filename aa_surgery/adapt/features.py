"""The maps behind each block of a model, in its original and after surgery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Blocks"]


class Blocks:
    """Compare two models block by block: what the surgery has changed, and by how much.

    A block is an element of a `Sequential` or `ModuleList` that has modules of its own, or a
    module that surgery has treated. Those count whose output is one floating-point tensor, of the
    same shape in both models, and not equal: blocks before the first treated site are left out.

    Args:
        model: The anti-aliased model.
        teacher: The original; its modules named alike.
        images: `(N, C, H, W)`, on which the outputs are compared once, in the models' own mode.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, images: Tensor) -> None:
        self._pair = (model, teacher)
        self.names: tuple[str, ...] = _candidates(model, teacher)
        with torch.no_grad(), self.recorded() as (mine, theirs):
            model(images)
            teacher(images)
        self.names = tuple(
            name
            for name in self.names
            if name in mine
            and name in theirs
            and mine[name].shape == theirs[name].shape
            and not torch.equal(mine[name], theirs[name])
        )

    @contextmanager
    def recorded(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Yield what the blocks of the model and of the teacher return, refreshed every forward."""
        found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        with ExitStack() as hooks:
            for root, outputs in zip(self._pair, found, strict=True):
                modules = dict(root.named_modules())
                for name in self.names:
                    hooks.enter_context(
                        modules[name].register_forward_hook(_recorder(outputs, name))
                    )
            yield found

    def error(self, mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
        r"""Return the mean over blocks of $\|a - b\|^2 / \|b - \bar b\|^2$; 0 without a block."""
        errors = [
            F.mse_loss(mine[name], theirs[name])
            / theirs[name].var(correction=0).clamp_min(torch.finfo(theirs[name].dtype).tiny)
            for name in self.names
        ]
        return torch.stack(errors).mean() if errors else torch.zeros(())


def _candidates(model: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    own, names = dict(model.named_modules()), []
    for name, module in teacher.named_modules():
        if not name or name not in own:
            continue
        parent = teacher.get_submodule(name.rpartition(".")[0])
        block = isinstance(parent, (nn.Sequential, nn.ModuleList)) and any(module.children())
        if block or type(own[name]) is not type(module):
            names.append(name)
    return tuple(names)


def _recorder(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, object], None]:
    def record(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 2:
            outputs[name] = output

    return record
