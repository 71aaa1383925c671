"""Zoo networks as torch modules, with the data they were trained on."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lipverify.errors import InvalidFile, UsageError
from lipverify.loading.files import read_regular
from lipverify.loading.names import display, sentence
from lipverify.zoo.card import Card, read_card
from lipverify.zoo.location import MODEL, TRAINING, WEIGHTS, folder_of, root

if TYPE_CHECKING:
    from torch import Tensor, nn


def card(name: str) -> Card:
    """The card of the network `name`; raises UsageError for an unknown name, InvalidFile for a bad card."""
    return read_card(folder_of(name))


def load_module(name: str) -> tuple[nn.Module, Card]:
    """The network `name` in eval mode with its stored weights, and its card.

    The weights are parsed only after their sha256 agrees with the card, and must match the architecture in
    names, shapes and dtypes. Raises UsageError for an unknown name and InvalidFile for everything else.
    """
    folder = folder_of(name)
    known = read_card(folder)
    file = read_regular(folder / WEIGHTS)
    if file.sha256 != known.measured.sha256:
        raise InvalidFile(
            sentence(
                file.path,
                f"sha256 {file.sha256[:12]}... is not the card's {known.measured.sha256[:12]}...",
                f"restore the file or run lipverify zoo build {name} --force",
            )
        )
    return assemble(folder, file.data), known


def example_input(known: Card, batch: int = 2) -> Tensor:
    """`batch` points drawn from the input box, the same on every call: [batch, *input_shape], float32."""
    import torch

    box = known.input_box
    lower, upper = (torch.tensor(side, dtype=torch.float32) for side in (box.lower, box.upper))
    if lower.numel() > 1:
        lower, upper = lower.reshape(known.input_shape), upper.reshape(known.input_shape)
    draw = torch.rand((batch, *known.input_shape), generator=torch.Generator().manual_seed(0))
    return torch.lerp(lower, upper, draw)


def test_data(name: str) -> tuple[Tensor, Tensor]:
    """The held-out samples: inputs [samples, *input_shape] in float32 and labels [samples].

    Raises UsageError when scikit-learn, which brings the data, is not installed.
    """
    known = card(name)
    data = load_data(known.training.data, known.input_shape)
    return data.x_test, data.y_test


def points(name: str, count: int = 8) -> tuple[Tensor, Tensor]:
    """The first `count` held-out samples that the network classifies correctly, and their labels."""
    import torch

    module, _ = load_module(name)
    x, y = test_data(name)
    with torch.no_grad():
        rows = (module(x).argmax(dim=1) == y).nonzero().flatten()[:count]
    return x[rows], y[rows]


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of rows of `x` whose largest output is their label."""
    import torch

    with torch.no_grad():
        return int((module(x).argmax(dim=1) == y).sum()) / len(y)


def assemble(folder: Path, content: bytes) -> nn.Module:
    """The architecture of a zoo folder filled with the tensors of a safetensors file, in eval mode."""
    import torch

    from lipverify.loading.safetensors import parse_safetensors

    tensors = parse_safetensors(content, folder / WEIGHTS)
    # Initial weights are drawn and thrown away; the caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        module: nn.Module = run_file(folder / MODEL).build()
    expected = module.state_dict()
    differing = sorted(
        key
        for key in expected.keys() | tensors.keys()
        if key not in tensors
        or key not in expected
        or (tensors[key].shape, tensors[key].dtype) != (expected[key].shape, expected[key].dtype)
    )
    if differing:
        some = ", ".join(display(key) for key in differing[:10])
        what = f"{len(differing)} tensors do not fit {MODEL}: {some}"
        raise InvalidFile(sentence(folder / WEIGHTS, what, "both must come from the same release"))
    module.load_state_dict(tensors)
    return module.eval()


def load_data(data: str, input_shape: tuple[int, ...]) -> Any:
    """Training and held-out samples as models_zoo/training.py splits them."""
    need_sklearn()
    return run_file(root() / TRAINING).load_data(data, input_shape)


def need_sklearn() -> None:
    """Raises UsageError, with the line that installs it, when scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UsageError(
            "the data of the model zoo comes with scikit-learn; install it with: pip install 'lipverify[zoo]'"
        ) from None


def run_file(path: Path) -> ModuleType:
    """Executes a file of the package's own zoo as a module of its own, leaving no bytecode beside it."""
    module = ModuleType(f"lipverify_zoo.{path.parent.name}.{path.stem}")
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module
