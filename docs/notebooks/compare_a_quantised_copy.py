# %% [markdown]
# # Compare a quantised copy
#
# A network is rounded to 8 bits. How far can the copy answer differently, anywhere in the input box? Samples show what
# happened; a bound says what can.

# %%
import copy

import torch

import lipverify as lv
from lipverify import zoo

module, card = zoo.load_module("digits-relu-mlp")
module = module.eval()


def rounded(module: torch.nn.Module, bits: int) -> torch.nn.Module:
    """A copy whose matrices hold whole multiples of one step each, as quantisation to so many bits leaves them."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim == 2:
                step = weight.abs().max() / (2 ** (bits - 1) - 1)
                weight.copy_((weight / step).round() * step)
    return other


example = torch.zeros(2, *card.input_shape)
original = lv.extract(module, example)
copies = {bits: lv.extract(rounded(module, bits), example) for bits in (8, 6, 4)}

# %% [markdown]
# On data the copies agree with the original almost everywhere. That is a test, of these inputs only.

# %%
x, y = zoo.points("digits-relu-mlp", 100)
truth = lv.evaluate(original, x.to(original.dtype))
for bits, graph in copies.items():
    answers = lv.evaluate(graph, x.to(graph.dtype))
    same = (answers.argmax(1) == truth.argmax(1)).double().mean()
    print(
        f"{bits} bits: largest difference {float((answers - truth).abs().max()):.3f}, same label on {float(same):.0%}"
    )

# %% [markdown]
# `deviation` carries the difference of the two networks through their layers. The bound holds for every input of the box, and the
# witness is an input where the copies differ that much.

# %%
for bits, graph in copies.items():
    answer = lv.deviation(
        original, graph, lv.InputBox(original.input_shape, 0.0, 1.0), data=x[:20].double(), seed=0
    )
    print(f"{bits} bits: {answer!r}")

# %% [markdown]
# Which labels are certain to be kept? Those whose margin is larger than the difference can be:

# %%
answer = lv.deviation(
    original, copies[8], lv.InputBox(original.input_shape, 0.0, 1.0), data=x.double(), seed=0
)
kept = answer.fields["kept"]
print(
    f"{kept['certified']:.0%} of {kept['points']} points keep their label, {len(kept['undecided'])} are undecided"
)

# %% [markdown]
# The constants of the networks, side by side:

# %%
models = {"original": original, **{f"{bits} bits": graph for bits, graph in copies.items()}}
for name, graph in models.items():
    print(f"{name}: {lv.audit(graph, norm='l2', analyzers=['product'], seed=0)!r}")
