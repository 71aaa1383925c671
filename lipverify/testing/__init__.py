"""The conformance suite: checks that every rule of an operator must pass, for built-in operators and for those of plug-ins.

    from lipverify.testing import check_operator
    check_operator(MyActivation(slope=0.2), [(8,)])

A rule that passes is not proven; a rule that fails is wrong.
"""

from lipverify.testing.case import OperatorCase
from lipverify.testing.cases import operator_cases
from lipverify.testing.checks import (
    check_forward_shape,
    check_interval_encloses,
    check_linear,
    check_operator,
    check_slopes_enclose,
    checks_for,
    replaced_rule,
)
from lipverify.testing.gains import check_gain_not_below

__all__ = [
    "OperatorCase",
    "check_forward_shape",
    "check_gain_not_below",
    "check_interval_encloses",
    "check_linear",
    "check_operator",
    "check_slopes_enclose",
    "checks_for",
    "operator_cases",
    "replaced_rule",
]
