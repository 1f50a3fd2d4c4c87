"""Window attention: it lowers no sampling rate, but its grid of windows is as rigid as a stride.

Three writings of Swin are known by their attributes: timm's blocks keep a mask; torchvision's
attention shifts maps; MMPretrain's shifts tokens, `(N, H * W, C)`, given the size of their map.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from aa_surgery.sites.site import Site

__all__ = [
    "is_masked_block",
    "is_token_attention",
    "is_window_attention",
    "takes_tokens",
    "window_sites",
]

_MASKED = ("window_size", "shift_size", "attn_mask", "target_shift_size")
_SHIFTED = ("window_size", "shift_size", "get_relative_position_bias")
_TOKENS = ("window_size", "shift_size", "w_msa", "pad_small_map")


def is_masked_block(module: nn.Module) -> bool:
    """Tell whether the module is a Swin block of timm's: windows, shifted, with a mask."""
    return _has(module, _MASKED)


def is_window_attention(module: nn.Module) -> bool:
    """Tell whether the module is the attention of a Swin block of torchvision's."""
    return _has(module, _SHIFTED) and not _has(module, _MASKED)


def is_token_attention(module: nn.Module) -> bool:
    """Tell whether the module is the attention of a Swin block of MMPretrain's."""
    return _has(module, _TOKENS)


def takes_tokens(block: nn.Module) -> bool:
    """Tell whether a block with window attention is given tokens, and the size of their map."""
    return is_token_attention(getattr(block, "attn", block))


def window_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return the first block of each stage with window attention.

    A map that is rolled so that a window starts at a place chosen by what it holds, not by its
    position, stays so through the stage.

    >>> import timm
    >>> model = timm.create_model("swin_tiny_patch4_window7_224")
    >>> [site.name for site in window_sites(model)][:2]
    ['layers.0.blocks.0', 'layers.1.blocks.0']
    """
    stages: dict[str, Site] = {}
    for path, module in model.named_modules():
        window = _window_of_block(module)
        if not window:
            continue
        stage = path.rpartition(".")[0]
        site = Site(
            name=path,
            op="window",
            kind=type(module).__name__,
            scope=stage,
            scope_kind=type(model.get_submodule(stage)).__name__,
            kernel=window,
            stride=window,
            channels_last=True,
        )
        stages.setdefault(stage, site)
    return tuple(stages.values())


def _window_of_block(block: Any) -> tuple[int, ...]:
    """Return the window, px, of a block with window attention; nothing of any other module."""
    if is_masked_block(block):
        return tuple(block.window_size)
    attention = getattr(block, "attn", None)
    if not isinstance(attention, nn.Module):
        return ()
    if is_window_attention(attention):
        return tuple(attention.window_size)  # type: ignore[arg-type]
    return (attention.window_size,) * 2 if is_token_attention(attention) else ()  # type: ignore[return-value]


def _has(module: nn.Module, names: tuple[str, ...]) -> bool:
    return all(hasattr(module, name) for name in names)
