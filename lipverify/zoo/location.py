"""Where the zoo lies, and which model specifications mean a network of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lipverify.errors import UnsafeInput, UsageError, did_you_mean
from lipverify.loading.names import display, sentence
from lipverify.zoo.card import CARD

MODEL, WEIGHTS, TRAINING = "model.py", "weights.safetensors", "training.py"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def root() -> Path:
    """The package's own zoo: `_models_zoo` in an installed wheel, `models_zoo` in a source checkout.

    Raises UsageError when neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_models_zoo", package.parent / "models_zoo"):
        if (folder / TRAINING).is_file():
            return folder.resolve()
    raise UsageError("this installation of lipverify has no model zoo; install it from a wheel or a checkout")


def names() -> tuple[str, ...]:
    """The networks of the zoo in alphabetical order."""
    return tuple(sorted(f.name for f in root().iterdir() if _NAME.fullmatch(f.name) and (f / CARD).is_file()))


def folder_of(name: str) -> Path:
    """The folder of the network `name`; raises UsageError, listing the names, when there is none."""
    if name not in names():
        near = did_you_mean(name, names()) or f"; it has {', '.join(names())}"
        raise UsageError(f'the model zoo has no network "{display(name)}"{near}')
    return root() / name


def resolve(spec: str | os.PathLike[str]) -> Path | None:
    """The zoo folder that `zoo:<name>` or a folder path means, or None when `spec` is neither.

    Raises UsageError for a name the zoo does not have, and UnsafeInput for a model folder outside the
    package's own zoo: its model.py would be foreign code.
    """
    text = os.fspath(spec)
    if text.startswith("zoo:"):
        return folder_of(text.removeprefix("zoo:"))
    path = Path(text)
    if "\0" in text or not os.path.isdir(path):  # False for a name too long to exist, too
        # The documented spelling works from every working directory.
        own = path.parent == Path("models_zoo") and not os.path.lexists(path) and path.name in names()
        return root() / path.name if own else None
    real = path.resolve()
    if real.parent == root() and real.name in names():
        return real
    if not os.path.lexists(real / MODEL) and not os.path.lexists(real / CARD):
        return None
    ours = f", or zoo:{real.name} for the network that ships with lipverify" if real.name in names() else ""
    raise UnsafeInput(
        sentence(
            text,
            f"is not in the model zoo of this installation, and reading it would run its {MODEL}",
            f"give its {WEIGHTS} with --arch {MODEL}:build --trust-code if you trust that file{ours}",
        )
    )
