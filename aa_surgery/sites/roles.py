"""What stands behind an op: norms, activations, and what hands a value on.

Only what acts at each position alone has a role: of such an op every second sample of the output
is the output of every second sample. Norms that take statistics of the map itself, and gates that
look at the whole of it, have none. Torch's own classes are known; all others are probed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from aa_surgery.sites.kinds import arguments, is_torch_forward
from aa_surgery.sites.probing import probed_role

__all__ = ["is_norm", "is_pointwise", "role_of_function", "role_of_module"]

_ACTIVATION_FUNCTIONS = {
    function
    for name in (
        "relu relu_ relu6 elu elu_ selu selu_ celu celu_ leaky_relu leaky_relu_ prelu rrelu rrelu_"
        " gelu silu mish hardtanh hardtanh_ hardswish hardsigmoid softplus softsign sigmoid tanh"
        " logsigmoid"
    ).split()
    for namespace in (F, torch)
    if (function := getattr(namespace, name, None)) is not None
}
_ACTIVATION_METHODS = {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_"}
_TRANSPARENT_METHODS = {"contiguous", "to", "type_as", "float"}
_TRANSPARENT_TYPES = (nn.Identity, nn.modules.dropout._DropoutNd)
_NOT_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_NOT_PROBED = (nn.Sequential, nn.Linear, nn.modules.conv._ConvNd)
_BATCH_NORM = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


def role_of_module(module: nn.Module, channels_last: bool = False) -> str:
    """Return `"norm"`, `"activation"`, `"linear"`, `"transparent"`, or `""`.

    Modules of a composite kind (norm and activation in one) have no role: their inside has.

    Args:
        module: Any module.
        channels_last: Whether it is given `(N, *spatial, C)`, as tokens are.
    """
    if type(module) is nn.Linear:
        return "linear"
    if is_torch_forward(module):
        return _role_in_torch(module, channels_last)
    composite = bool(module._modules) and any(p._parameters or p._buffers for p in module.modules())
    if composite or isinstance(module, _NOT_PROBED):
        return ""
    return probed_role(module, channels_last)


def is_pointwise(module: nn.Module) -> bool:
    """Tell whether a module that has parts (norm and activation in one) acts at each position."""
    if any(isinstance(part, _NOT_PROBED) for part in module.modules()):
        return False
    return probed_role(module) != ""


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm of torch's, or of a class derived from one."""
    return isinstance(module, _NORMS)


def _role_in_torch(module: nn.Module, channels_last: bool) -> str:
    if isinstance(module, _TRANSPARENT_TYPES):
        return "transparent"
    if isinstance(module, nn.GLU):
        return "activation" if module.dim == (-1 if channels_last else 1) else ""
    if type(module).forward.__module__ == "torch.nn.modules.activation":
        return "" if isinstance(module, _NOT_ACTIVATIONS) else "activation"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "" if module.running_mean is None else "norm"  # or it takes the map's statistics
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        # in front of the channels it averages over an axis of the map
        return "norm" if channels_last and len(module.normalized_shape) == 1 else ""
    return "norm" if isinstance(module, nn.LocalResponseNorm) else ""


def role_of_function(node: fx.Node, channels_last: bool = False) -> str:
    """Return the role, as `role_of_module`, of a function or method call."""
    if node.op != "call_function":
        if node.target in _ACTIVATION_METHODS:
            return "activation"
        return "transparent" if node.target in _TRANSPARENT_METHODS else ""
    if node.target in _ACTIVATION_FUNCTIONS:
        return "activation"
    if node.target is F.batch_norm:
        args = arguments(node, _BATCH_NORM)
        stored = args.get("running_mean") is not None and args.get("training", False) is False
        return "norm" if stored else ""
    if node.target is F.layer_norm:
        return "norm" if channels_last else ""
    return "norm" if node.target is F.local_response_norm else ""
