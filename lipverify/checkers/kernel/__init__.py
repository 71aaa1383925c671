"""The kernel: theorems about programs, and proofs made of them. It reads no file and searches for nothing."""

from lipverify.checkers.kernel.language import Rows, Subject
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.kernel.proof import every_kind, fields_of, parse_step, parse_steps, prove, rested_on
from lipverify.checkers.kernel.ranges import Condition, Region
from lipverify.checkers.kernel.theorems import AtLeast, Constant, Fact, Part

__all__ = ["AtLeast", "Condition", "Constant", "Fact", "Part", "Program", "Region", "Rows", "Subject",
           "every_kind", "fields_of", "parse_step", "parse_steps", "prove", "rested_on"]  # fmt: skip
