"""The module under which timm lists the `aa_*` entry points.

timm files an entry point under the last part of its module's name, and reads the pretrained
configurations from that module: `timm.list_models(module="antialiased")` lists what
`aa_surgery.integrations.timm.register` put here, and
`from aa_surgery.integrations.antialiased import aa_resnet18` imports one of them.
"""

from __future__ import annotations

from timm.models import DefaultCfg

default_cfgs: dict[str, DefaultCfg] = {}
__all__: list[str] = []
