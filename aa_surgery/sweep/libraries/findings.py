"""The laws of an outside model, and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["LAWS", "Findings"]

LAWS = {
    "plan": "a plan is made, without an error",
    "identity": 'with `filter="identity"` the outputs are the original\'s',
    "identity, post": 'likewise, with `placement="post"`',
    "no false blur": "no edit where the audit of the untouched model saw nothing sampled",
    "treat": "the plan is carried out, without an error",
    "shape": "shapes and dtypes of the outputs stay",
    "keys": "keys and shapes of the state_dict stay",
    "audit": "nothing sampled is untreated without a reason",
    "pickle": "a pickled copy gives the same outputs",
    "training step": "finite gradients, for the parameters that have one untouched",
    "merge": "the library's `fuse()` after surgery, and surgery after it, change no output",
    "undo": "removal gives classes, keys and outputs back, bit for bit",
}
"""What is tested of each model; a crash of ours breaks the law under which it comes."""


@dataclass
class Findings:
    """What was counted in one model, with `max_stride=None`.

    Attributes:
        parameters: How many the model has.
        edits: Sites treated.
        left: Sites left, and ops that the audit saw in scopes that cannot be traced, by reason.
        default_left: Those that the default options leave, likewise.
        unread: Scopes that cannot be traced, as `"scope: reason"`.
        sampled: Sampling ops that the audit saw in the treated model.
        untreated: Those without filter or reason.
        false_blurs: Edits where the untouched model samples nothing.
        unjudged: What the audit could not read.
        notes: What could not be tested, and why.
    """

    parameters: int = 0
    edits: int = 0
    left: dict[str, int] = field(default_factory=dict)
    default_left: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    sampled: int = 0
    untreated: list[str] = field(default_factory=list)
    false_blurs: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
