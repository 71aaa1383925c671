"""How fast sequences of tokens change, measured by the largest change of a token: attention, normalisation, residual blocks.

A value is followed as a form: every entry is a linear functional of rows of families, plus a constant. A family is a set of
vectors (the tokens of a value) of which two numbers are known for every input: their l2 norm, and how fast they change.
Affine steps are composed; where two rows meet (a residual sum, the heads of attention), at activations, normalisation, products
and softmax a new family begins. With |.|_2 of a token, u a token's vector, X, Y, V matrices and s, L a row's size and constant:

    sum_k C_k u_k + c        L <= sum_k |C_k| L_k, or sqrt(m) |[L_1 C_1 .. L_m C_m]| for m rows;      size: s for L, and |c|
    K (V_1 u_1, .., V_m u_m) L <= |K| root(sum_k (|V_k| L_k)^2)
    (X u_i + x)'(Y u_j + y)  L <= |X'Y| (L_i s_j + s_i L_j) + |Y'x| L_j + |X'y| L_i, or the same with |X| |Y|; for a softmax along
                             j the last term is the same for all entries and changes nothing, if y is the same for all j
    p = softmax(z)           |dp|_1 <= (max dz - min dz)/2 <= max |dz_j|: l_inf to l1 has the constant max_S 4 P_S (1 - P_S) <= 1
    sum_j p_j (V u_j + c)    = V (sum_j p_j u_j) + c, whose average has L <= |dp|_1 max s_j + max L_j and size max s_j
    where p_j falls with -s |u_j - u_i|^2    L <= (1 + 4 W) max L_j without any size, W = W_0((keys - 1)/e) (`distances`)
    n(u), variance + eps     |n(u)| <= sqrt d, L_n <= L / sqrt(eps)
    u / l(|u|)               at most 1, and L / l(0) (`lengths`)

Source: Newhouse, Hess, Cesista et al. 2025 (arXiv 2507.13338) for the geometry; Kim, Papamakarios, Mnih 2021 (arXiv 2006.04710)
for what has no constant. Masks and rotations are covered as what they are: fewer keys, matrices that differ from token to token.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any

import numpy as np

from lipverify.checkers.kernel import language as is_
from lipverify.checkers.kernel.arithmetic import above, need, trimmed
from lipverify.checkers.kernel.language import Rows, Scope
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.kernel.theorems import Constant as Proved
from lipverify.checkers.kernel.theorems import Facts, shown, theorem
from lipverify.checkers.kernel.theorems import Part as Whole
from lipverify.checkers.norms import Norm, Tokens, norm_of
from lipverify.checkers.theories.tokens.families import NoConstant
from lipverify.checkers.theories.tokens.sequences import Sequences
from lipverify.errors import NotCovered

__all__ = ["NoConstant", "Sequences", "constant_of", "norm_between", "sequences", "tokens"]


def sequences(program: Program, domain: Tokens | None, width: int, variance: float = 0.0) -> Sequences:
    """The program over all inputs of tokens of this width, or over those of the domain.

    Raises:
        NotCovered: as `Sequences`; a domain of tokens of another width.
    """
    most = math.inf
    if domain is not None:
        if domain.width != width:
            raise NotCovered("a domain of tokens of another width")
        most = above(Fraction(domain.most) * _root(domain.width if domain.norm == "token-rms" else 1))
    with np.errstate(all="ignore"):
        return Sequences(program, width, most, variance)


def constant_of(program: Program, domain: Tokens | None, norms: tuple[Norm, Norm | str]) -> Fraction:
    """A constant of the program from a norm of input tokens to a norm of output tokens, or to `linf`.

    Raises:
        NotCovered: as `sequences`.
    """
    return norm_between(sequences(program, domain, norms[0].width), norms)


def norm_between(found: Sequences, norms: tuple[Norm, Norm | str]) -> Fraction:
    """The constant between these norms: |x|_2 = root(width) |x|_rms on either side."""
    start, end = norms
    with np.errstate(all="ignore"):
        slope, power = found.constant(*(("linf", 1) if isinstance(end, str) else end))
    value = Fraction(slope) * Fraction(2) ** power
    before = _root(start.width) if start.name == "token-rms" else Fraction(1)
    behind = (
        _root(end.width, below=True) if isinstance(end, Norm) and end.name == "token-rms" else Fraction(1)
    )
    return trimmed(value * before / behind)


def _root(width: int, below: bool = False) -> Fraction:
    """The root of a whole number, from above or from below; exact for squares."""
    root = math.isqrt(width << 128)
    exact = root * root == width << 128
    return Fraction(root + (0 if exact or below else 1), 1 << 64)


def norms_read(scope: Scope, value: Any) -> tuple[Norm, Norm | str]:
    """A norm of tokens, and another one or `linf`."""
    need(isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value), "two norms")
    first, last = norm_of(value[0]), norm_of(value[1])
    need(first is not None and (last is not None or value[1] == "linf"), "norms of tokens")
    assert first is not None
    return first, value[1] if last is None else last


def bound_read(scope: Scope, value: Any) -> Tokens | None:
    """[norm, number]: the tokens of the input have at most this norm."""
    if value is None:
        return None
    need(isinstance(value, list) and len(value) == 2 and isinstance(value[0], str), "a bound of tokens")
    norm, most = norm_of(value[0]), scope.limit(value[1])
    need(norm is not None and 0 < most < 2.0**100, "a bound of tokens")
    assert norm is not None
    return Tokens(norm.name, norm.width, most)


Within = Annotated[Tokens | None, bound_read]
TokenNorms = Annotated[tuple[Norm, Norm | str], norms_read]


@theorem
def tokens(facts: Facts, *, within: Within, norms: TokenNorms, limit: is_.Limit) -> Proved:
    """Attention, normalisation and residual blocks by norms of tokens; computed anew."""
    if facts.subject.exact:
        raise NotCovered("exact checking covers no norms of tokens")
    steps = facts.subject.program.steps
    found = constant_of(facts.subject.program, within, norms)
    shown(found <= Fraction(limit), f"norms of tokens prove {above(found)!r}, not {limit!r}")
    names = str(norms[0]), str(norms[1])
    return Proved(Whole(within=within), Fraction(limit), 0, len(steps) - 1, Rows(0, steps[-1].size), names)
