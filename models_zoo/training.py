"""Trains one network of this folder on data that ships with scikit-learn, or stands beside a network.

    python models_zoo/training.py NAME WEIGHTS.safetensors

reads NAME/card.toml (data, seed, schedule) and NAME/model.py (architecture) and writes the deployed weights.
`lipverify zoo build NAME` runs this file in a process of its own whose environment fixes one arithmetic
(one thread, no processor-specific kernels), so that the same torch version gives the same bytes.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lipverify.loading.safetensors import write_safetensors
from lipverify.zoo.card import Training, read_recipe
from lipverify.zoo.network import run_file

Progress = Callable[[str], None]
STRIDE = 47
"""Letters between the starts of windows."""
HERE = Path(__file__).resolve().parent


class Data(NamedTuple):
    """Inputs [samples, *input_shape] in float32, in the units of the network's input, and integer labels."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def load_data(name: str, input_shape: tuple[int, ...]) -> Data:
    """The data set called `name`; every fifth sample is held out for testing, whatever the seed; of a text its end."""
    if name == "text":
        return _text(input_shape)
    from sklearn import datasets

    loaders = {
        "digits": datasets.load_digits,
        "wine": datasets.load_wine,
        "cancer": datasets.load_breast_cancer,
    }
    source = loaders[name]()
    # Digits count ink in sixteenths; the tables stay in their raw units, their networks standardise inside.
    features = source.data / 16 if name == "digits" else source.data
    x = torch.tensor(features, dtype=torch.float32).reshape(-1, *input_shape)
    y = torch.tensor(source.target, dtype=torch.int64)
    held_out = torch.arange(len(x)) % 5 == 4
    return Data(x[~held_out], y[~held_out], x[held_out], y[held_out])


def _text(input_shape: tuple[int, ...]) -> Data:
    """Windows of a text, as signs of letters, and the letter behind each."""
    folder = HERE / "text-transformer"
    model = run_file(folder / "model.py")
    text = gzip.decompress((folder / "text.gz").read_bytes()).decode()
    place = {letter: i for i, letter in enumerate(model.ALPHABET)}
    letters = torch.tensor([place.get(letter, place[" "]) for letter in text])
    tokens, codes = input_shape[0], model.codes()
    cut = len(letters) * 19 // 20
    parts = []
    for start, end in ((0, cut), (cut, len(letters))):
        windows = letters[start:end].unfold(0, tokens + 1, STRIDE)
        parts += [codes[windows[:, :-1]], windows[:, -1].clone()]
    return Data(*parts)


def train(name: str, progress: Progress, seed: int | None = None) -> nn.Module:
    """The network `name` as deployed, in eval mode, trained by its card or from another seed."""
    folder = HERE / name
    recipe, input_shape = read_recipe(folder)
    torch.manual_seed(recipe.seed if seed is None else seed)
    data = load_data(recipe.data, input_shape)
    model = run_file(folder / "model.py")
    if hasattr(model, "derive"):
        # A copy of another network of the zoo: its stored weights, changed.
        copy: nn.Module = model.derive()
        return copy.eval()
    # A model file may train in another form than it deploys: `trainable` gives the one, `deploy` the other.
    network: nn.Module = getattr(model, "trainable", model.build)()
    for layer in network.modules():
        if hasattr(layer, "fit"):
            layer.fit(data.x_train)
    _descend(network, data, recipe, progress)
    return getattr(model, "deploy", lambda trained: trained)(network).eval()


def _descend(network: nn.Module, data: Data, recipe: Training, progress: Progress) -> None:
    """Adam with a linearly falling step on the cross-entropy of `temperature` times the logits.

    A network may have a loss of its own, and `enforce` constraints after every step.
    """
    network.train()
    optimizer = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=False
    )
    samples = len(data.x_train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / recipe.epochs)
    for epoch in range(1, recipe.epochs + 1):
        total = 0.0
        for rows in torch.randperm(samples).split(recipe.batch):
            optimizer.zero_grad()
            x, y = data.x_train[rows], data.y_train[rows]
            if hasattr(network, "loss"):
                loss = network.loss(x, y, recipe.temperature)
            else:
                loss = cross_entropy(recipe.temperature * network(x), y)
            loss.backward()
            optimizer.step()
            if hasattr(network, "enforce"):
                network.enforce()
            total += loss.item() * len(rows)
        schedule.step()
        if epoch % 10 == 0 or epoch == recipe.epochs:
            progress(f"epoch {epoch}/{recipe.epochs}: loss {total / samples:.5f}")


def main() -> None:
    name, target = sys.argv[1:]
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)
    network = train(name, lambda line: print(line, flush=True))
    Path(target).write_bytes(write_safetensors(network.state_dict()))


if __name__ == "__main__":
    main()
