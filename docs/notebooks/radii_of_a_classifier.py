# %% [markdown]
# # Certified radii of a classifier
#
# How far may each input move before the label can change? A certified radius says: no perturbation smaller than this changes
# it. An attack says: this one does. What lies between is open.

# %%
import torch

import lipverify as lv
from lipverify import zoo

graph = lv.load("zoo:digits-relu-mlp")
x, y = zoo.points("digits-relu-mlp", 12)  # 8 by 8 pictures of digits, from scikit-learn
print(tuple(x.shape), y.tolist())

# %% [markdown]
# Inputs stay in [0, 1], so perturbations do too. `crown` is the quick method; `auto` takes longer and certifies more.

# %%
radii = lv.radii(graph, x, y, norm="linf", method="crown", box=(0, 1), seed=0)
print(radii)
print("becomes", {index: record.attack_label for index, record in enumerate(radii.records)})

# %% [markdown]
# The share of points that are classified correctly and certified at a radius:

# %%
for size in (0.0, 0.02, 0.05, 0.1):
    kept = sum(record.radius > size and record.label == record.predicted for record in radii.records)
    print(f"radius {size:<4}: {kept} of {len(radii.records)}")

# %% [markdown]
# An adversarial example is an input like any other; the network can be asked about it.

# %%
index, example = next(iter(radii.examples.items()))
logits = lv.evaluate(graph.to(dtype=torch.float64), torch.from_numpy(example)[None])
print(f"point {index}: digit {int(y[index])}, the example is called {int(logits.argmax())}")
print(f"largest change of a pixel {float((torch.from_numpy(example) - x[index].double()).abs().max()):.4f}")

# %% [markdown]
# Only some pixels may change? A ball with a box of its own for each point answers for `lv.audit`, `lv.bounds` and `lv.deviation`:

# %%
steps = torch.zeros(64, dtype=torch.float64)
steps[:32] = 0.05  # the upper half of the picture
points = x[:2].double()
ball = lv.Ball(points, 0.05, "linf", box=(points - steps, points + steps))
print(ball.words())
print(lv.audit(graph, norm="linf", region=ball, analyzers=["local"], seed=0))
