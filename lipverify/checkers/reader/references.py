"""Where onnx's own evaluator computes what the text of ONNX says: elsewhere it decides nothing.

It passes over settings that it does not know. What it has of old operator sets is replaced (`runtimes`).
"""

from __future__ import annotations

from typing import Any

from lipverify.checkers.reader.recurrent import LAWS
from lipverify.checkers.reader.subgraphs import all_nodes
from lipverify.checkers.reader.wire import parse_model

UNREAD = {
    "GRU": "activations activation_alpha activation_beta clip output_sequence",
    "LSTM": "activations activation_alpha activation_beta clip input_forget output_sequence",
    "RNN": "activations activation_alpha activation_beta clip output_sequence",
    "MaxPool": "auto_pad",
    "TopK": "sorted",
    "Upsample": "scales",
    "Cast": "round_mode",
    "CastLike": "round_mode",
}
"""Operator -> settings that it does not read, or not as they are meant, in the operator sets that are read."""
UNREAD_INPUTS = {"GRU": 4, "LSTM": 4, "RNN": 4}
"""Operator -> the place of an input that it does not read: of how many steps are, it takes all."""
_IDLE = {
    "input_forget": ("i", 0),
    "sorted": ("i", 1),
    "auto_pad": ("s", b"NOTSET"),
    "round_mode": ("s", b"up"),
}
"""Setting -> its default, which exporters write out: to pass over it changes nothing."""
_EXPANDED = ("GroupNormalization",)
"""Operators that it writes out in others, with constants of float32."""


def told_by_reference(data: bytes, wide: bool = False) -> bool:
    """Whether onnx's evaluator decides what the file computes; wide: in float64, to all of its digits."""
    for node in all_nodes(parse_model(data)["graph"]):
        op, unread = node.get("op_type", ""), UNREAD.get(node.get("op_type", ""), "").split()
        if wide and op in _EXPANDED:
            return False
        if any(a.get("name") in unread and not _idle(op, a) for a in node["attribute"]):
            return False
        if op in UNREAD_INPUTS and any(node["input"][UNREAD_INPUTS[op] : UNREAD_INPUTS[op] + 1]):
            return False
    return True


def _idle(op: str, attribute: Any) -> bool:
    """Whether a setting says what holds without it."""
    if attribute["name"] == "activations":
        laws = [law.encode() for law in LAWS.get(op, ())]
        return list(attribute["strings"]) in (laws, laws * 2)
    field, usual = _IDLE.get(attribute["name"], ("", None))
    return field in attribute and bool(attribute[field] == usual)
