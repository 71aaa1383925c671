"""Whole networks in the spellings people use, through torch.export, against the modules themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipverify.errors import UnsupportedModel
from lipverify.frontends.torch_export import export, extract
from lipverify.interpreter import evaluate


def agrees(module: nn.Module, *sample: int, dtype: torch.dtype = torch.float32):
    """Extracts with the import check on, compares once more on inputs of our own, returns the graph."""
    graph = extract(module, torch.zeros(2, *sample, dtype=dtype))
    generator = torch.Generator().manual_seed(7)
    x = 2 * torch.randn(5, *sample, generator=generator).to(dtype)
    with torch.no_grad():
        wanted = module(x.clone())
    found = evaluate(graph.to(dtype=dtype), x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert graph.origin.import_check is not None
    assert graph.origin.import_check.max_abs_output > 0
    return graph


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_operators_that_keep_state_or_draw_numbers_say_so_by_an_argument():
    for name, argument in export._STATEFUL.items():
        packet = getattr(torch.ops.aten, name)
        schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
        assert any(argument in [a.name for a in schema.arguments] for schema in schemas), name
    for module in (nn.BatchNorm1d(3), nn.Dropout()):
        for training in (True, False):
            net = nn.Sequential(nn.Linear(3, 3), module).train(training)
            program = export._exported(net, torch.zeros(3, 3))
            assert export._is_functional(program) is not training
    program = export._exported(
        nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)).eval(), torch.zeros(3, 3)
    )
    assert not export._is_functional(program)


def test_sizes_defaults_and_tensors_made_of_numbers_cost_no_decomposition(monkeypatch):
    """Half of the time of a small extraction, and the same graph with it."""

    class Net(nn.Module):
        def forward(self, x):
            queries = x.reshape(x.shape[0], x.shape[1] * x.shape[2] // 2, 2)
            mixed = nn.functional.scaled_dot_product_attention(queries, queries, queries)
            return (
                nn.functional.rrelu(mixed).reshape(x.shape[0], -1)
                + torch.ones(x.shape[0], 1)
                + torch.arange(12.0)
            )

    module, example = Net().eval(), torch.zeros(3, 4, 3)
    assert export._is_functional(export._exported(module, example))
    graph = extract(module, example)
    monkeypatch.setattr(export, "_is_functional", lambda program: False)
    assert extract(module, example).digest == graph.digest


def test_statistics_that_are_updated_are_seen_without_an_operator_that_writes():
    """`batch_norm` changes its statistics though its signature does not say so: it is always decomposed."""
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=0.5))
    module[1].num_batches_tracked = None
    with pytest.raises(UnsupportedModel):
        extract(module, torch.zeros(3, 3))


def test_mlp():
    graph = agrees(nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), 7)
    assert graph.operators() == {"Linear": 2, "ReLU": 1}
    assert [node.name for node in graph] == ["input", "0.linear", "1.relu", "2.linear"]
    assert graph.input_shape == (7,)
    assert graph.output_shape == (3,)


def test_cnn_with_batch_norm_and_dropout():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(4 * 2 * 3, 2),
    ).eval()
    module[1].running_mean.normal_()
    module[1].running_var.uniform_(0.5, 2)
    graph = agrees(module, 3, 9, 11)
    assert graph.operators() == {
        "Conv": 1,
        "BatchNorm": 1,
        "ReLU": 1,
        "MaxPool": 1,
        "Reshape": 1,
        "Linear": 1,
    }


class Block(nn.Module):
    """A residual block with in-place ReLU and `+=`."""

    def __init__(self, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.short = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, stride, bias=False), nn.BatchNorm2d(2 * width)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.short(x)
        return self.relu(out)


def test_resnet():
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    module = nn.Sequential(
        stem, Block(4, 2), Block(8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )
    graph = agrees(module.eval(), 3, 9, 8)
    assert graph.operators()["Add"] == 2
    assert graph.operators()["Conv"] == 7
    assert any(node.name.startswith("1.conv1") for node in graph)


class MaxMinByView(nn.Module):
    def forward(self, x):
        pairs = x.view(x.shape[0], -1, 2)
        return torch.stack([pairs.max(-1)[0], pairs.min(-1)[0]], -1).view(x.shape[0], -1)


class MaxMinBySplit(nn.Module):
    def forward(self, x):
        a, b = x.split(x.shape[1] // 2, 1)
        return torch.cat([torch.max(a, b), torch.min(a, b)], 1)


class GroupSort(nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], -1, 3).sort(dim=-1)[0].reshape(x.shape)


@pytest.mark.parametrize(
    ("activation", "kinds"),
    [
        (MaxMinByView(), {"ReduceMax", "ReduceMin"}),
        (MaxMinBySplit(), {"Maximum", "Minimum"}),
        (GroupSort(), {"GroupSort"}),
    ],
    ids=["view", "split", "sort"],
)
def test_sorting_activation(activation, kinds):
    graph = agrees(nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 2)).eval(), 5)
    assert kinds <= set(graph.operators())


class Mirror(nn.Module):
    """Householder activation of pairs (one from each half), in the two spellings of certified-robustness code."""

    def __init__(self, width, gated):
        super().__init__()
        self.theta = nn.Parameter(torch.randn(width // 2))
        self.gated = gated

    def forward(self, z):
        x, y = z.split(z.shape[1] // 2, 1)
        theta = self.theta.view(1, -1, *(1,) * (z.ndim - 2))
        side = x * torch.sin(0.5 * theta) - y * torch.cos(0.5 * theta)
        a = x * torch.cos(theta) + y * torch.sin(theta)
        b = x * torch.sin(theta) - y * torch.cos(theta)
        if self.gated:
            halves = [x * (side <= 0) + a * (side > 0), y * (side <= 0) + b * (side > 0)]
        else:
            halves = [torch.where(side <= 0, x, a), torch.where(side <= 0, y, b)]
        return torch.cat(halves, 1)


@pytest.mark.parametrize("gated", [False, True], ids=["where", "gated"])
@pytest.mark.parametrize("sample", [(6,), (6, 2, 3)], ids=str)
def test_reflection(gated, sample):
    graph = agrees(Mirror(6, gated), *sample)
    assert graph.operators() == {"Gather": 2, "Householder": 1}
    assert any("exact reflection" in note for note in graph.origin.notes)


class BrokenMirror(Mirror):
    """A coefficient is off, so the branches do not meet."""

    def forward(self, z):
        x, y = z.split(z.shape[1] // 2, 1)
        side = x * torch.sin(0.5 * self.theta) - y * torch.cos(0.5 * self.theta)
        a = x * torch.cos(self.theta) * 1.001 + y * torch.sin(self.theta)
        return torch.where(side <= 0, x, a)


def test_choice_that_jumps_is_refused():
    with pytest.raises(UnsupportedModel, match=r"where .* not seen to meet there"):
        extract(BrokenMirror(6, False), torch.zeros(2, 6))


def parametrised(name, layer):
    if name == "weight_norm, old":
        return torch.nn.utils.weight_norm(layer)
    if name == "spectral_norm, old":
        return torch.nn.utils.spectral_norm(layer)
    return getattr(nn.utils.parametrizations, name)(layer)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["weight_norm", "weight_norm, old", "spectral_norm", "spectral_norm, old", "orthogonal"]
)
def test_parametrisation_folds(name):
    first, second = parametrised(name, nn.Linear(5, 4)), parametrised(name, nn.Conv1d(1, 3, 2))
    module = nn.Sequential(first, nn.Unflatten(1, (1, 4)), second).eval()
    module(torch.randn(2, 5))
    graph = agrees(module, 5)
    assert graph.operators() == {"Linear": 1, "Reshape": 1, "Conv": 1}
    weight = next(node.op.weight for node in graph if node.op.kind() == "Linear")
    assert torch.equal(weight, first.weight.detach())
    assert any("what is certified" in note for note in graph.origin.notes)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.inner.weight

    def forward(self, x):
        return self.again(self.inner(torch.tanh(self.inner(x))))


def test_reused_module_and_tied_weights_count_each_use():
    graph = agrees(Tied(), 4)
    assert graph.operators() == {"Linear": 3, "Tanh": 1}
    assert [node.name for node in graph][1:] == ["inner.linear", "tanh", "inner.linear.1", "again.linear"]


class InPlace(nn.Module):
    """Writes into tensors that are used again."""

    def forward(self, x):
        y = x * 2
        z = y
        y.relu_()
        y[:, 1:3] = y[:, :2] * 3
        y[:, 0].add_(1)
        x.mul_(0.5)
        return z + y + x


def test_in_place_operations_on_reused_tensors():
    agrees(InPlace(), 4)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(b, t, d))


def test_attention_block():
    graph = agrees(nn.Sequential(Attention(), nn.GELU()), 3, 8)
    assert graph.operators()["MatMul"] == 2
    assert graph.operators()["Softmax"] == 1


class WithoutGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        with torch.no_grad():
            x = self.fc(x)
        return x.relu()


def test_no_grad_inside_forward():
    assert agrees(WithoutGradients(), 3).operators() == {"Linear": 1, "ReLU": 1}


class Starred(nn.Module):
    def forward(self, *inputs):
        return inputs[0].relu(), None


def test_inputs_as_a_list_and_outputs_that_are_none():
    assert extract(Starred(), torch.zeros(2, 3)).operators() == {"ReLU": 1}


def test_compiled_module_is_unwrapped():
    assert extract(torch.compile(nn.Linear(3, 2)), torch.zeros(2, 3)).operators() == {"Linear": 1}


class Several(nn.Module):
    def forward(self, x):
        return {"a": x.relu(), "b": (x.tanh(), x.sum(1))}


def test_several_outputs():
    graph = extract(Several(), torch.zeros(2, 3))
    assert [graph[name].shape for name in graph.outputs] == [(3,), (3,), ()]
    assert graph.select(1).operators() == {"Tanh": 1}


def test_training_mode_without_consequence_is_kept_and_noted():
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).train()
    graph = agrees(module, 3)
    assert module.training
    assert any("training mode" in note for note in graph.origin.notes)


def test_the_graph_owns_what_it_certifies():
    module = nn.Sequential(nn.Linear(3, 2))
    before = [p.clone() for p in module.parameters()]
    example = torch.ones(2, 3)
    graph = extract(module, example)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert torch.equal(example, torch.ones(2, 3))
    digest = graph.digest
    with torch.no_grad():
        module[0].weight.zero_()
    assert extract(module, example).digest != digest
    assert float(graph["0.linear"].op.weight.abs().max()) > 0


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x)[0]


def test_multihead_attention_merges_heads_into_the_batch():
    graph = agrees(SelfAttention().eval(), 3, 6)
    assert graph.operators()["MatMul"] == 2


def test_transformer_encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    graph = agrees(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), 3, 6)
    assert graph.operators()["LayerNorm"] == 4


class EachFrame(nn.Module):
    """The same small network on every frame of a sequence, frames counted with the batch."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        flat = self.body(x.reshape(-1, 4)) + 1
        return self.head(flat.view(x.shape[0], x.shape[1], 3)).softmax(-1)


def test_frames_counted_with_the_batch():
    agrees(EachFrame().eval(), 5, 4)


class Windows(nn.Module):
    """Attention within windows that are counted with the batch, with biases of places, shifted and masked: as Swin has it."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.parts, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.register_buffer("bias", torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4))
        self.register_buffer("mask", torch.linspace(-2, 0, 64).reshape(4, 1, 4, 4).round())

    def cut(self, x):
        return x.view(-1, 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).contiguous()

    def forward(self, x):
        for shift in (0, 1):
            y = self.cut(torch.roll(x, (-shift, -shift), (1, 2))).view(-1, 4, 6)
            q, k, v = self.parts(y).reshape(y.shape[0], 4, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
            if self.fused and not shift:
                y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
            else:
                scores = self.bias + (q * 3**-0.5) @ k.transpose(-2, -1)
                if shift:
                    scores = (scores.view(-1, 4, 2, 4, 4) + self.mask).view(-1, 2, 4, 4)
                y = scores.softmax(-1) @ v
            y = self.out(y.transpose(1, 2).reshape(y.shape[0], 4, 6))
            y = self.cut(y.view(-1, 2, 2, 2, 2, 6)).view(-1, 4, 4, 6)
            x = x + torch.roll(y, (shift, shift), (1, 2))
        return x


@pytest.mark.parametrize("fused", [False, True])
def test_windows_counted_with_the_batch(fused):
    graph = agrees(Windows(fused).eval(), 4, 4, 6)
    assert graph.operators()["Softmax"] == 2


class WindowsConfused(nn.Module):
    """Stored numbers that differ from sample to sample, or products of samples."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        y = x.reshape(-1, 2, 4)
        if self.kind == "products":
            return (y.transpose(0, 1) @ y.permute(1, 2, 0)).sum()
        if self.kind == "parts":
            return y.unbind(0)[0]
        return y + torch.ones(12, 2, 4)  # six windows of each of two samples


@pytest.mark.parametrize("kind", ["products", "parts", "numbers"])
def test_windows_torn_apart_are_refused(kind):
    with pytest.raises(UnsupportedModel):
        extract(WindowsConfused(kind), torch.zeros(2, 12, 4))


class FramesConfused(nn.Module):
    """Cuts the merged axis at another place than where it was joined."""

    def forward(self, x):
        return x.reshape(-1, 4).view(3, -1, 4).transpose(0, 1)


def test_samples_torn_apart_are_refused():
    with pytest.raises(UnsupportedModel, match="batch"):
        extract(FramesConfused(), torch.zeros(2, 3, 4))
