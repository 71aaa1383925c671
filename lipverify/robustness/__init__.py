"""Certified radii: from bounds of a network to guarantees for single inputs."""

from lipverify.robustness.attack import Attack
from lipverify.robustness.comparison import compare_radii, comparison_document
from lipverify.robustness.plan import Plan, Record
from lipverify.robustness.results import Radii
from lipverify.robustness.run import radii
from lipverify.robustness.smoothing.settings import Smoothing

__all__ = ["Attack", "Plan", "Radii", "Record", "Smoothing", "compare_radii", "comparison_document", "radii"]
