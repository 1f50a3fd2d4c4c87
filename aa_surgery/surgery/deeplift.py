"""Captum's DeepLift on treated models: its rules, told of our classes.

DeepLift looks the class of each module up exactly, and takes what it does not find for linear. A
class of ours is the host's op with a low-pass around it, and the low-pass is linear: so the host's
rule holds for the op, and the gradient goes through the low-pass as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["tell_captum"]

_MODULE = "captum.attr._core.deep_lift"
Rule = Callable[..., Tensor]


def tell_captum(cls: type[Any], host: type[nn.Module]) -> None:
    """Add the rule of an antialiased class to captum's table, if captum is there and has one.

    Args:
        cls: The antialiased class.
        host: The class that it was made of.
    """
    deep_lift: Any = sys.modules.get(_MODULE)
    table: dict[type, Rule] = getattr(deep_lift, "SUPPORTED_NON_LINEAR", {})
    if host not in table or cls in table:
        return
    pools = issubclass(host, nn.modules.pooling._MaxPoolNd)
    table[cls] = _pooled if pools else partial(_filtered, table[host])


def _filtered(
    rule: Rule,
    module: Any,
    inputs: Tensor,
    outputs: Tensor,
    grad_input: Tensor,
    grad_output: Tensor,
    eps: float = 1e-10,
) -> Tensor:
    """Return the multipliers of an activation with a low-pass before it, behind it, or both."""
    children = module._modules
    before, after = (children.get(name, _handed_on) for name in ("aa_before", "aa_after"))
    x = inputs.detach()
    with torch.no_grad():
        filtered = before(x)
        active = module._aa_inner_forward(filtered.clone())
    inner = _back(after, active, grad_output)
    plain = _back(lambda t: module._aa_inner_forward(t.clone()), filtered, inner)
    return _back(before, x, rule(module, filtered, active, plain, inner, eps=eps))


def _pooled(
    module: Any,
    inputs: Tensor,
    outputs: Tensor,
    grad_input: Tensor,
    grad_output: Tensor,
    eps: float = 1e-10,
) -> Tensor:
    r"""Return the multipliers of a maximum at stride 1 with a low-pass behind it.

    Captum's rule for maxima: what a window gains, $\max(y, y') - y'$ for the input and
    $y - \max(y, y')$ for its reference, goes to the sample that gave it. Windows overlap here, so
    shares are added up.
    """
    dense, after = _parts(module)
    x = inputs.detach()
    with torch.no_grad():
        y, reference = dense(x).chunk(2)
        both = torch.maximum(y, reference)
        gains = torch.cat([both - reference, y - both])
    inner = _back(after, torch.cat([y, reference]), grad_output)
    shares = sum(_back(dense, x, inner * gains).chunk(2))
    gap = x.chunk(2)[0] - x.chunk(2)[1]
    ratio = torch.where(gap.abs() < eps, grad_input.chunk(2)[0], shares / gap)
    return torch.cat([ratio, ratio])


def _parts(module: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the dense maximum of a treated pool, and what runs behind it."""
    children = module._modules
    if "aa_blur" in children:
        return module._aa_dense, children["aa_blur"]
    return module._aa_inner_forward, children.get("aa_after", _handed_on)


def _handed_on(x: Tensor) -> Tensor:
    return x


def _back(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of `x`, given that of `function(x)`."""
    if function is _handed_on:
        return gradient
    with torch.enable_grad():
        source = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(function(source), source, gradient)
    return found
