"""Where onnx's own evaluator computes what the text of ONNX says: elsewhere it decides nothing.

It passes over settings that it does not know. What it has of old operator sets and recurrent layers is replaced (`runtimes`).
"""

from __future__ import annotations

from typing import Any

from lipverify.checkers.reader.subgraphs import all_nodes
from lipverify.checkers.reader.wire import parse_model

UNREAD = {
    "GRU": "activation_alpha activation_beta clip output_sequence",
    "LSTM": "activation_alpha activation_beta clip input_forget output_sequence",
    "RNN": "activation_alpha activation_beta clip output_sequence",
    "MaxPool": "auto_pad",
    "TopK": "sorted",
    "Upsample": "scales",
    "Cast": "round_mode",
    "CastLike": "round_mode",
}
"""Operator -> settings that it does not read, or not as they are meant, in the operator sets that are read."""
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
        if any(a.get("name") in unread and not _idle(a) for a in node["attribute"]):
            return False
    return True


def _idle(attribute: Any) -> bool:
    """Whether a setting says what holds without it."""
    field, usual = _IDLE.get(attribute["name"], ("", None))
    return field in attribute and bool(attribute[field] == usual)
