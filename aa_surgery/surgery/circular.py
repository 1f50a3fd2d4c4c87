"""Circular borders for every convolution, pool and window of a model: its maps become rings."""

from __future__ import annotations

from typing import Any

from torch import nn

from aa_surgery.errors import UnsupportedModelError
from aa_surgery.layers.shift import ShiftForWindows
from aa_surgery.sites.flow import Flow
from aa_surgery.sites.kinds import AVG_POOLS, CONVS, MAX_POOLS, arguments, each_axis, pads_to_same
from aa_surgery.sites.modules import AvgPool, Conv, MaxPool, plain_forward, type_dimension
from aa_surgery.sites.windows import is_masked_block, is_token_attention, is_window_attention
from aa_surgery.surgery.change import Change, conv_op

__all__ = ["make_circular"]

_PADDED = {**CONVS, **MAX_POOLS, **AVG_POOLS}


def make_circular(model: nn.Module, changes: dict[str, Change]) -> None:
    """Add to the changes of a model what lets each of its paddings wrap around.

    A strided op then commutes with circular shifts by multiples of its stride, and with a method
    that chooses phases the whole network with all shifts, on maps that the strides divide.

    Raises:
        UnsupportedModelError: A forward pads in a way that is not known; nothing was changed.
    """
    flow = Flow(model)
    for path, module in flow.modules.items():
        if isinstance(module, (Conv, MaxPool, AvgPool)) and plain_forward(module):
            _wrap_around(path, module, changes)
        elif is_masked_block(module):
            # the mask keeps shifted windows from looking around the border
            attributes = changes.setdefault(path, Change()).attributes
            attributes |= {"attn_mask": None, "dynamic_mask": False}
        elif is_window_attention(module) or is_token_attention(module):
            _attend_around(path, module, changes)
        elif path in flow.graphs:
            _refuse_padding(path, module, flow)


def _wrap_around(path: str, module: Any, changes: dict[str, Change]) -> None:
    change = changes.get(path, Change())
    if isinstance(module, Conv):
        _wrap_conv(module, change)
    else:
        _wrap_pool(module, change)
    if change != Change():
        changes[path] = change


def _attend_around(path: str, attention: Any, changes: dict[str, Change]) -> None:
    """Shift the map in place of the windows, which are masked at the border where they shift."""
    if is_token_attention(attention):
        if attention.shift_size:
            change = changes.setdefault(path, Change(op="circular_tokens"))
            change.numbers["shift"] = (attention.shift_size,) * 2
            change.attributes["shift_size"] = 0
        return
    shift, window = tuple(attention.shift_size), tuple(attention.window_size)
    if any(shift):
        change = changes.setdefault(path, Change())
        back = tuple(-s for s in shift)
        change.children["aa_before"] = ShiftForWindows(back, window)
        change.children["aa_after"] = ShiftForWindows(shift, window)
        change.attributes["shift_size"] = [0] * len(shift)


def _wrap_conv(conv: Any, change: Change) -> None:
    same, none = pads_to_same(conv), (0,) * len(conv.stride)
    if change.op == "replace_conv":
        replacement: Any = change.children["aa_conv"]
        replacement.padding_mode = "circular"
    elif _pads(conv.padding) or (max(conv.kernel_size) > 1 and (change.op or same)):
        change.op = conv_op(conv)
        change.numbers.setdefault("stride", conv.stride)
        padding = none if same else _before(conv)
        change.numbers |= {"padding": padding, "circular": none}


def _before(conv: Any) -> tuple[int, ...]:
    """Return the border in front of each axis."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    # torch keeps both borders of each axis, the last axis first
    return tuple(conv._reversed_padding_repeated_twice[::2][::-1])


def _wrap_pool(pool: Any, change: Change) -> None:
    dense = change.op in ("dense_max_pool", "avg_pool")
    if not dense and (change.op or not _pads(pool.padding)):
        return  # a blur in the place of an average has its own border
    ndim = type_dimension(pool)
    kernel = each_axis(pool.kernel_size, ndim) or ()
    stride = each_axis(pool.stride, ndim) or kernel
    padding = each_axis(pool.padding, ndim) or ()
    small = change.numbers.get("pool_kernel")
    change.op = "circular_max_pool" if isinstance(pool, MaxPool) else "circular_avg_pool"
    change.numbers = {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "window": small or kernel,
        "before": (0,) * ndim if small else padding,
        "dilation": each_axis(getattr(pool, "dilation", 1), ndim) or (),
        "step": (1,) * ndim if dense else stride,
    }


def _refuse_padding(path: str, module: nn.Module, flow: Flow) -> None:
    for node in flow.graphs[path].nodes:
        names = _PADDED.get(node.target, ((), 0))[0]
        if names and _pads(arguments(node, names).get("padding", 0)):
            raise UnsupportedModelError(
                f"circular=True: {path or 'the model'} ({type(module).__name__}) pads in its own "
                f"forward, at {node.name}. Use a model whose convolutions and pools are torch's, "
                "or padding_mode='circular' for the blurs alone."
            )


def _pads(padding: Any) -> bool:
    """Whether a padding adds anything: a number, one an axis, or `"same"` and the like."""
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, (tuple, list)) else padding != 0
