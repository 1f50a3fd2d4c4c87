"""MMPretrain: `antialias=True` in any model config, hooks, a metric, and names in the model zoo.

Import it in a config, `custom_imports = dict(imports=["aa_surgery.mmpretrain"])`; that registers
everything with MMEngine's registries.
"""

from importlib.util import find_spec

_MISSING = [name for name in ("mmpretrain", "mmengine", "mmcv") if find_spec(name) is None]
if _MISSING:
    raise ImportError(
        f"aa_surgery.mmpretrain needs {', '.join(_MISSING)}. "
        'Install with: pip install "aa-surgery[mmpretrain]"'
    )

from aa_surgery.mmpretrain.consistency import ShiftConsistency, ShiftConsistencyHook
from aa_surgery.mmpretrain.flag import antialiased, read_flags
from aa_surgery.mmpretrain.hooks import AntialiasHook, AntialiasWarmupHook
from aa_surgery.mmpretrain.torch_load import trust_runner_checkpoints
from aa_surgery.mmpretrain.zoo import list_in_zoo

__all__ = [
    "AntialiasHook",
    "AntialiasWarmupHook",
    "ShiftConsistency",
    "ShiftConsistencyHook",
    "antialiased",
    "list_in_zoo",
]

trust_runner_checkpoints()
read_flags()
list_in_zoo()
