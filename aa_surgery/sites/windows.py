"""Window attention: it lowers no sampling rate, but its grid of windows is as rigid as a stride."""

from __future__ import annotations

from typing import Any

from torch import nn

from aa_surgery.sites.site import Site

__all__ = ["is_window_block", "window_sites"]


def is_window_block(module: nn.Module) -> bool:
    """Tell whether the module is a Swin block of timm's: windows, shifted, with a mask."""
    names = ("window_size", "shift_size", "attn_mask", "target_shift_size")
    return all(hasattr(module, name) for name in names)


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
        if not is_window_block(module):
            continue
        stage = path.rpartition(".")[0]
        block: Any = module
        site = Site(
            name=path,
            op="window",
            kind=type(module).__name__,
            scope=stage,
            scope_kind=type(model.get_submodule(stage)).__name__,
            kernel=tuple(block.window_size),
            stride=tuple(block.window_size),
            channels_last=True,
        )
        stages.setdefault(stage, site)
    return tuple(stages.values())
