"""The demo: anti-alias a network with real ImageNet weights and look at photographs."""

from aa_surgery.demo.result import DemoResult
from aa_surgery.demo.run import run_demo
from aa_surgery.demo.weights import load_efficientnet_lite0

__all__ = ["DemoResult", "load_efficientnet_lite0", "run_demo"]
