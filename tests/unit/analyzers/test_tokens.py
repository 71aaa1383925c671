"""Bounds in norms of tokens: figures of the note they come from, refusals with their reasons, certificates."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipverify as lv
from lipverify.analyzers.tokens import TokenGains, _rounded_up
from lipverify.analyzers.tokens import Tokens as Analyzer
from lipverify.certificates.issuing import subject_of
from lipverify.checkers.norms import Norm, Tokens
from lipverify.checkers.theories import tokens as kernel
from lipverify.errors import UsageError
from lipverify.falsify import Search
from tests.tiers import also
from tests.token_networks import Attention, Block, Enforced, Shape, uniform

RMS = {"norm": "token-rms", "analyzers": "tokens"}
QUICK = Search(seconds=0.1)


def graph_of(net: nn.Module, tokens: int, width: int) -> lv.Graph:
    return lv.extract(net.double(), example=torch.randn(2, tokens, width, dtype=torch.float64))


def bound(
    graph: lv.Graph, within: float | None, norm: str = "token-rms", variance: float = 0.0
) -> kernel.Sequences:
    width = graph.input_shape[-1]
    domain = None if within is None else Tokens(norm, width, within)
    return kernel.sequences(subject_of(graph).program, domain, width, variance)


def log10(found: kernel.Sequences, graph: lv.Graph, norm: str = "token-rms") -> float:
    ends = (Norm(norm, graph.input_shape[-1]), Norm(norm, graph.output_shape[-1]))
    value = kernel.norm_between(found, ends)
    return math.log10(value.numerator) - math.log10(value.denominator)


@pytest.mark.parametrize(
    ("blocks", "size", "scale", "body", "whole", "end"),
    [
        also((12, 1.0, math.sqrt(128), 0.9310, 0.9310, 0.6735), "export of twelve blocks"),
        also((12, 8.0, math.sqrt(128) / 64, 126.3727, 127.2758, 2.836e9), "export of twelve blocks"),
        (12, 16.0, math.sqrt(128) / 256, 256.3634, 257.5675, 1.155e20),
        (3, 2.0, 1.0, 2.6913, 2.9923, 3.395),
    ],
)
def test_equal_matrices_give_the_figures_of_the_note(
    blocks: int, size: float, scale: float, body: float, whole: float, end: float
) -> None:
    graph = graph_of(uniform(blocks, size, scale), 3, 8)
    found = bound(graph, 1.0)
    assert log10(found, graph) == pytest.approx(whole, abs=1e-4)
    assert log10(found, graph) - math.log10(size) == pytest.approx(body, abs=1e-4)
    last = [family for family in found.families if family.kind == "sum"][-1]
    assert last.size.max() / math.sqrt(8) == pytest.approx(end, rel=1e-3)


@pytest.mark.parametrize(
    ("width", "heads", "depth", "everywhere", "floor"),
    [(32, 4, 1, 7.8825, 2.9699), also((64, 4, 2, 16.0954, 6.2583), "twice the blocks, the same rules")],
)
def test_norms_in_front_give_the_figures_of_the_note(
    width: int, heads: int, depth: int, everywhere: float, floor: float
) -> None:
    torch.manual_seed(0)
    graph = graph_of(nn.Sequential(*(Block(width, heads) for _ in range(depth))), 3, width)
    assert log10(bound(graph, None), graph, "token-l2") == pytest.approx(everywhere, abs=1e-4)
    assert log10(bound(graph, None, variance=1.0), graph, "token-l2") == pytest.approx(floor, abs=1e-4)


def test_a_second_number_says_what_holds_where_normalised_tokens_vary() -> None:
    torch.manual_seed(0)
    graph = graph_of(Block(8, 2), 3, 8)
    rows = [
        lv.audit(graph, norm="token-l2", analyzers=[a], search=Search(restarts=1, rounds=1)).rows[0]
        for a in ("tokens", Analyzer(4.0))
    ]
    for row, variance in zip(rows, (1.0, 4.0), strict=True):
        (note,) = (n for n in row.to_json()["notes"] if "variance" in n)
        exact = log10(bound(graph, None, "token-l2", variance), graph, "token-l2")
        said = re.search(r"at least \S+: at most (10\^)?(\S+);", note)
        assert said is not None
        power = float(said[2]) if said[1] else math.log10(float(said[2]))
        assert exact <= power < exact + 2e-4
        assert f"at least {variance:g}:" in note
        assert power < math.log10(row.upper) - 1
    with pytest.raises(UsageError, match="positive finite number"):
        Analyzer(0.0)


def heads_of_one(heads: int) -> Enforced:
    """Only the first head is not 0: q = e_2, k = v = e_1; the norms of all heads together are 1."""
    net = Enforced(Shape(width=heads, heads=heads, tokens=2, hidden=1, outputs=heads, scale=1.0))
    e = torch.eye(heads)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        block = net.blocks[0]
        block.q[0], block.k[0], block.v[0] = e[1], e[0], e[0]
        block.w.copy_(e)
        net.out.copy_(e)
    return net


class OnlyAttention(nn.Module):
    """The attention of an enforced transformer, without the sums."""

    def __init__(self, net: Enforced) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        b, heads = self.net.blocks[0], self.net.shape.heads
        split = (-1, x.shape[1], heads, x.shape[2] // heads)
        q, k, v = (F.linear(x, w).reshape(split).transpose(1, 2) for w in (b.q, b.k, b.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(x.shape)
        return F.linear(y, b.w) / 3


@pytest.mark.parametrize("heads", [2, 8])
def test_a_claimed_constant_of_1_for_heads_is_refuted_by_a_pair_and_the_bound_is_the_corrected_one(
    heads: int,
) -> None:
    """The released formula gives 1; two tokens move as fast as heads / 3 (closed form), and the bound is (1 + 2 heads) / 3."""
    graph = graph_of(OnlyAttention(heads_of_one(heads)), 2, heads)
    root = math.sqrt(heads)
    hint = torch.zeros(1, 2, heads, dtype=torch.float64)
    hint[0, 0, 0], hint[0, 1, 0] = root, -root
    result = lv.audit(graph, **RMS, region=lv.Bounded(1.0), hints=hint)
    assert heads / 3 * (1 - 1e-6) < result.lower.value
    assert result.upper == pytest.approx((1 + 2 * heads) / 3, rel=1e-9)
    assert result.best is not None
    assert str(result.best.certificate.rigour) == "checked"


def test_gelu_divided_by_its_slope_rounded_down_is_steeper_than_1() -> None:
    """The released formula gives 1.135818 for one wide neuron; its true slope is 1.25."""
    net = Enforced(Shape(width=1, heads=1, hidden=1, outputs=1, tokens=2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.blocks[0].up.fill_(4.0)
        net.blocks[0].down.fill_(1.0)
        net.out.fill_(1.0)
    result = lv.audit(graph_of(net, 2, 1), **RMS, region=lv.Bounded(1.0))
    assert result.upper == pytest.approx(1.25, rel=1e-4)
    assert 1.2499 < result.lower.value <= 1.250089


REFUSED = {
    "raw tokens": (lambda: Attention(4, lambda x: x, lambda x: x), "not Lipschitz"),
    "soft-capped scores": (
        lambda: Attention(4, lambda x: x, lambda x: x, lambda s: torch.tanh(s / 5).mul(5).softmax(-1)),
        "soft-capped scores",
    ),
    "query-key normalisation alone": (
        lambda: Attention(4, partial(F.rms_norm, normalized_shape=(4,), eps=1e-3), lambda x: x),
        "the values that it averages are not bounded",
    ),
    "linear attention": (
        lambda: Attention(4, lambda x: F.elu(x) + 1, lambda x: x, lambda s: s),
        "linear attention",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_constant_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    graph = graph_of(make(), 3, 4)
    (row,) = lv.audit(graph, norm="token-l2", analyzers="tokens").rows
    assert row.certificate is None
    assert reason in (row.refused or "")
    assert "MatMul" in (row.refused or "")


def test_attention_with_normalised_queries_keys_and_values_has_a_constant_everywhere() -> None:
    torch.manual_seed(1)
    normal = partial(F.rms_norm, normalized_shape=(4,), eps=1e-2)
    result = lv.audit(graph_of(Attention(4, normal, normal), 3, 4), norm="token-l2", analyzers="tokens")
    assert result.lower.value < result.upper < 1e4
    assert str(result.rows[0].certificate.rigour) == "checked"


def test_norms_behind_the_blocks_have_a_constant_where_tokens_are_bounded_and_deeper_blocks_everywhere() -> (
    None
):
    torch.manual_seed(2)
    graph = graph_of(nn.Sequential(nn.LayerNorm(8), Block(8, 2, behind=True), Block(8, 2, behind=True)), 3, 8)
    result = lv.audit(graph, norm="token-l2", analyzers="tokens", search=QUICK)
    assert 0 < result.lower.value < result.upper
    raw = graph_of(Block(8, 2, behind=True), 3, 8)
    audited = partial(lv.audit, raw, norm="token-l2", analyzers="tokens", search=QUICK)
    assert audited().rows[0].certificate is None
    assert audited(region=lv.Bounded(2.0, "token-l2")).upper > 1


def test_the_certificate_names_norms_with_their_width_and_the_domain_and_is_bound_to_them(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    graph = graph_of(Enforced(Shape(rotary=True, causal=True)), 3, 8)
    result = lv.audit(graph, **RMS, region=lv.Bounded(0.5))
    certificate = result.best.certificate
    assert isinstance(certificate.evidence, TokenGains)
    verdict = lv.verify(certificate, graph)
    assert "token-rms/5" in verdict.claim
    assert "at most 0.5" in verdict.claim
    document = certificate.issued.document
    wider = {**document["claim"]["region"], "most": 1.0, "most_hex": (1.0).hex()}
    document["claim"]["region"] = wider
    document["claim"]["statement"] = document["claim"]["statement"].replace("at most 0.5", "at most 1.0")
    with pytest.raises(lv.RefutedCertificate, match="about other tokens"):
        lv.verify(certificate, graph)
    del document["claim"]["region"]["norm"]
    with pytest.raises(lv.LipverifyError):
        lv.verify(certificate, graph)


def test_the_largest_logit_is_a_norm_of_rows() -> None:
    torch.manual_seed(4)
    net = Enforced(Shape())
    graph = graph_of(net, 3, 8)
    body, rows = bound(graph, 1.0), net.out.norm(dim=1).max().item()
    rms = 10.0 ** log10(body, graph) / torch.linalg.matrix_norm(net.out, 2).item() * math.sqrt(5)
    result = lv.audit(graph, **RMS, norm_out="linf", region=lv.Bounded(1.0))
    assert result.upper == pytest.approx(rms * rows, rel=1e-6)


def test_other_methods_and_other_questions_say_that_norms_of_tokens_are_not_theirs() -> None:
    graph = graph_of(Enforced(Shape()), 3, 8)
    audited = partial(lv.audit, graph, search=QUICK)
    rows = audited(norm="token-l2", analyzers="product,lipsdp,local", region=lv.Bounded(1.0)).rows
    assert all("tokens" in (row.refused or "") for row in rows)
    assert "norm of tokens" in (audited(analyzers="tokens").rows[0].refused or "")
    with pytest.raises(lv.UsageError, match="unknown norm 'token-rms'"):
        lv.Ball(torch.zeros(1, 3, 8), 0.1, norm="token-rms")
    with pytest.raises(lv.UsageError, match="bounded in token-rms or token-l2"):
        lv.Bounded(1.0, "l2")
    with pytest.raises(lv.UsageError, match="finite number"):
        lv.Bounded(float("inf"))


def test_batched_heads_and_flattened_outputs_are_followed_too() -> None:
    """A classifier that reads all tokens at once: the output is one token of ten."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Enforced(Shape()), nn.Linear(15, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).flatten(1))

    torch.manual_seed(5)
    result = lv.audit(graph_of(Flat(), 3, 8), **RMS, region=lv.Bounded(1.0))
    assert 0 < result.lower.value < result.upper
    assert str(result.rows[0].certificate.rigour) == "checked"


@pytest.mark.parametrize(
    ("value", "said"), [("26.95012", "26.951"), ("0", "0"), ("4e5", "400000"), ("1.00001e12", "10^12.0001")]
)
def test_a_number_in_a_note_is_rounded_up(value: str, said: str) -> None:
    assert _rounded_up(Decimal(value)) == said
