# %% [markdown]
# # Audit a checkpoint
#
# A network is trained, saved, and loaded again. How much can its output change? lipverify answers with an upper bound that is
# proved, and a lower bound with two inputs that show it.

# %%
import tempfile
from pathlib import Path

import torch
from torch import nn

import lipverify as lv

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
x = torch.randn(512, 2)
y = (x[:, 0] * x[:, 1] > 0).long()
optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
for _ in range(200):
    optimiser.zero_grad()
    nn.functional.cross_entropy(module(x), y).backward()
    optimiser.step()
print(f"accuracy {(module(x).argmax(1) == y).double().mean():.3f}")

# %% [markdown]
# `extract` turns the module into a graph. The example only shows the shape: a batch of at least two samples. The import is
# compared with the module on random inputs.

# %%
graph = lv.extract(module.eval(), torch.zeros(2, 2))
print(graph.summary())

# %% [markdown]
# `product` multiplies the norms of the layers; `lipsdp` looks at all layers together and is tighter.

# %%
result = lv.audit(graph, norm="l2", analyzers=["product", "lipsdp"], seed=0)
print(result)

# %% [markdown]
# *checked* means that an independent checker (numpy, no torch, no solver) has proved the bound again from its certificate. The
# pair that shows the lower bound:

# %%
witness = result.lower.witness
first, second = witness.points[0], witness.partner[0]
outputs = lv.evaluate(graph.to(dtype=torch.float64), torch.stack([first, second]))
print("inputs ", first.tolist(), second.tolist())
print(f"slope   {float((outputs[1] - outputs[0]).norm() / (second - first).norm()):.4f}")

# %% [markdown]
# How much of it is where the data is? Around a point the constant is smaller.

# %%
ball = lv.Ball(x[:3].double(), radius=0.1, norm="l2")
local = lv.audit(graph, norm="l2", region=ball, analyzers=["local"], seed=0)
print(local)

# %% [markdown]
# The report is one file that opens offline; the certificate is what somebody else can check.

# %%
with tempfile.TemporaryDirectory() as folder:
    result.to_html(Path(folder) / "report.html")
    result.certificates["lipsdp"].save(Path(folder) / "lipsdp.json")
    print(sorted(path.name for path in Path(folder).iterdir()))
