"""The kernel: theorems about programs, and proofs made of them. It reads no file and searches for nothing."""

from lipverify.checkers.kernel.language import Rows, Subject
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.kernel.proof import parse_step, parse_steps, prove
from lipverify.checkers.kernel.ranges import Condition, Region
from lipverify.checkers.kernel.theorems import AtLeast, Constant, Fact, Monotone, Part

__all__ = ["AtLeast", "Condition", "Constant", "Fact", "Monotone", "Part", "Program", "Region", "Rows", "Subject",
           "parse_step", "parse_steps", "prove"]  # fmt: skip
