"""Adapt an anti-aliased model to its filters: its statistics, its weights, its fine-tuning."""

from aa_surgery.adapt.distill import Distillation, distill
from aa_surgery.adapt.recalibrate import Recalibration, recalibrate
from aa_surgery.adapt.warmup import AntialiasWarmup

__all__ = ["AntialiasWarmup", "Distillation", "Recalibration", "distill", "recalibrate"]
