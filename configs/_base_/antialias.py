# What every config with the key `antialias` inherits. The three lines in an existing config:
#   _base_ = ["path/to/your_config.py"]
#   custom_imports = dict(imports=["aa_surgery.mmpretrain"], allow_failed_imports=False)
#   model = dict(backbone=dict(antialias=dict(filter="tri-3")))
custom_imports = dict(imports=["aa_surgery.mmpretrain"], allow_failed_imports=False)
