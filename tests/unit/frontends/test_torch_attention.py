"""Masks of attention as people write them in torch; extraction itself compares the graph with the module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipverify as lv
from lipverify.certificates.tokens import unread
from lipverify.errors import UnsupportedModel

TOKENS, WIDTH = 3, 4
PAST = torch.ones(TOKENS, TOKENS).tril()
ENDLESS = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
LATER = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)


def kinds(module: nn.Module) -> Counter[str]:
    """Operators of the graph of a module of [batch, TOKENS, WIDTH]."""
    graph = lv.extract(module.eval(), example=torch.rand(2, TOKENS, WIDTH))
    return Counter(node.op.kind() for node in graph.nodes)


class Scores(nn.Module):
    """What each of some functions makes of scores x x', summed."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for function in self.functions:
            total = total + function(x @ x.mT)
        return total


def test_scores_are_masked_by_filling_by_adding_and_by_choosing() -> None:
    found = kinds(
        Scores(
            lambda s: s.masked_fill(PAST == 0, -torch.inf).softmax(-1),
            lambda s: (s + ENDLESS).softmax(-1),
            lambda s: torch.softmax(ENDLESS + 0.5 * PAST + s, -1),
            lambda s: torch.where(PAST.bool(), s, -torch.inf).softmax(-1),
            lambda s: (s.masked_fill(PAST == 0, -torch.inf) + 0.5 * PAST).softmax(-1),
        )
    )
    assert found["MaskedSoftmax"] == 2  # equal ones are one node
    assert not found["Softmax"]


@pytest.mark.parametrize(
    "function",
    [
        lambda s: s + ENDLESS,
        lambda s: s.masked_fill(LATER, -torch.inf) * 2,
        lambda s: (s - ENDLESS).softmax(-1),
        lambda s: torch.add(s, ENDLESS, alpha=-1).softmax(-1),
        lambda s: s.masked_fill(LATER, torch.inf).softmax(-1),
        lambda s: s * torch.full((), torch.nan),
        lambda s: s.masked_fill(LATER, -torch.inf).relu(),
    ],
    ids=["no softmax", "product", "difference", "negative", "infinity", "nan", "relu"],
)
def test_infinities_that_are_no_masks_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"-infinity, which only a softmax takes|infinity or NaN|computes with inf"
    ):
        kinds(Scores(function))


class Heads(nn.Module):
    """Attention with weights asked for, so that its scores merge batch and heads, and with keys that do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.register_buffer("absent", torch.tensor([False, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        absent = self.absent.expand(x.shape[0], -1)
        seen: Tensor = self.attention(x, x, x, attn_mask=LATER)[0]
        some: Tensor = self.attention(x, x, x, key_padding_mask=absent, need_weights=False)[0]
        return seen + some


def test_heads_with_weights_and_with_absent_keys_are_read() -> None:
    assert kinds(Heads())["MaskedSoftmax"] == 2


class Encoder(nn.Module):
    """An encoder of torch with a mask and no word on whether it is causal."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 6, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x, mask=self.mask)
        return found


def test_an_encoder_looks_at_its_mask_without_a_branch() -> None:
    looks = torch.nn.modules.transformer._detect_is_causal_mask
    assert kinds(Encoder(ENDLESS))["MaskedSoftmax"] == 1
    assert torch.nn.modules.transformer._detect_is_causal_mask is looks


def test_keys_and_values_that_a_layer_stores_beside_those_of_its_input() -> None:
    """`add_bias_kv` is a class token of keys; the checker reads it too."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_bias_kv=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return found

    torch.manual_seed(0)
    graph = lv.extract(Own().eval(), example=torch.rand(2, TOKENS, WIDTH))
    assert any(node.shape[-1] == TOKENS + 1 for node in graph.nodes if node.op.kind() == "Softmax")
    assert unread(graph) is None
