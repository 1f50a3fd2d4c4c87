# Shift consistency beside accuracy, in validation and in testing: how often the class of a
# photograph stays the same when it is cropped elsewhere (Zhang 2019, arXiv:1904.11486, 4.2).
# Name this file in `_base_`; it goes with any other base, MMPretrain's own included. Nothing else
# changes: the hook finds the test pipeline, which has to end in
#
#     dict(type="ResizeEdge", scale=256, edge="short"),
#     dict(type="CenterCrop", crop_size=224),
#     dict(type="PackInputs"),
#
# cuts pairs of 224 px crops from the central 256 px, and adds its metric: tools/test.py then prints
# accuracy/top1, shift/consistency and its 95 % interval. Where the images are resized to less than
# 32 px above the crop, `margin` says how much room there is (24 for 248 px). A batch takes three
# times as long.
#
# A config's own `custom_hooks` replace these: there, write `default_hooks = dict(shift_consistency=
# dict(type=...))` instead. And for a config that shall stay as it is, at test time:
#     tools/test.py CONFIG CHECKPOINT --cfg-options \
#         default_hooks.shift_consistency.type=aa_surgery.mmpretrain.ShiftConsistencyHook
custom_hooks = [
    dict(type="aa_surgery.mmpretrain.ShiftConsistencyHook", passes=1, seed=0, margin=32)
]
