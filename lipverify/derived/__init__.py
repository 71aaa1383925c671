"""What else a certified constant answers: loops, games, privacy, counterfactuals, critics, values, recurrences.

Every function gives a `Derived`: a number with its sentence and side, made by a rule that the checker has too (docs/derived.md).
"""

from lipverify.derived.closed import (
    critic_distance,
    generator_tail,
    grid_margin,
    neighbour_slope,
    q_constant,
    recurrent,
    stability_tail,
    value_error,
)
from lipverify.derived.derivation import Derived, verify_derived
from lipverify.derived.games import game, game_band, game_step, pseudo_gradient
from lipverify.derived.loops import closed_loop, disturbed, largest_constant
from lipverify.derived.privacy import Sensitivity, epsilon, sensitivity
from lipverify.derived.sectors import sector

__all__ = [
    "Derived",
    "Sensitivity",
    "closed_loop",
    "critic_distance",
    "disturbed",
    "epsilon",
    "game",
    "game_band",
    "game_step",
    "generator_tail",
    "grid_margin",
    "largest_constant",
    "neighbour_slope",
    "pseudo_gradient",
    "q_constant",
    "recurrent",
    "sector",
    "sensitivity",
    "stability_tail",
    "value_error",
    "verify_derived",
]
