"""State dicts in all their wrappings, and the modules they are put into."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipverify.errors import InvalidFile, UsageError
from lipverify.loading import load_weights, read_state_dict, state_dict, write_safetensors
from lipverify.loading.files import FileBytes
from lipverify.loading.state_dict import select

ONE = torch.ones(1)
FILE = FileBytes("w.pt", b"", "0" * 64)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> tuple[list[Any], list[Any]]:
    if isinstance(tree, dict):
        parts = [leaves(value, (*path, key)) for key, value in tree.items()]
        return [leaf for part in parts for leaf in part[0]], [name for part in parts for name in part[1]]
    return ([(path, tree)], []) if isinstance(tree, torch.Tensor) else ([], [path])


@pytest.mark.parametrize(
    ("tree", "names", "unwrapped", "ignored"),
    [
        ({"fc.weight": ONE}, ["fc.weight"], (), ()),
        ({"state_dict": {"fc.weight": ONE}, "epoch": 3}, ["fc.weight"], ("state_dict",), ("epoch",)),
        ({"net": {"module.a": ONE, "module.b": ONE}}, ["a", "b"], ("net", "module."), ()),
        ({"model": {"state_dict": {"a": ONE}}}, ["a"], ("model", "state_dict"), ()),
        ({"_orig_mod.module.a": ONE}, ["a"], ("_orig_mod.", "module."), ()),
        ({"module.a": ONE, "b": ONE}, ["module.a", "b"], (), ()),
        (
            {"model": {"a": ONE}, "optimizer": {"state": {"0": {"exp_avg": ONE}}}, "loss": ONE},
            ["a"],
            ("model",),
            ("optimizer.state.0.exp_avg", "loss"),
        ),
        ({"0": {"a": ONE}, "1": 7}, ["a"], ("0",), ("1",)),
        ({"actor": {"a": ONE}, "critic": {"a": ONE}}, ["actor.a", "critic.a"], (), ()),
    ],
)
def test_wrappings(tree: Any, names: list[str], unwrapped: tuple[str, ...], ignored: tuple[str, ...]) -> None:
    found = select(*leaves(tree), FILE)
    assert list(found.tensors) == names
    assert found.unwrapped == unwrapped
    assert found.ignored == ignored


def test_names_that_collide() -> None:
    with pytest.raises(InvalidFile, match=r'"a\.b" occurs twice'):
        select([(("a", "b"), ONE), (("a.b",), ONE), (("c", "d"), ONE)], [], FILE)


def test_nothing_inside(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(InvalidFile, match="holds no tensors"):
        read_state_dict(tmp_path / "w.pt")
    torch.save(ONE, tmp_path / "w.pt")
    with pytest.raises(InvalidFile, match="without a name"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoint(zipped: bool, tmp_path: Path, system_child: None) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": base.t(),
        "view": base[1:, ::2],
        "scalar": torch.tensor(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "flags": torch.tensor([True, False]),
    }
    torch.save([{"state_dict": tensors}, 7], tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found = read_state_dict(tmp_path / "w.pt")
    assert found.unwrapped == ("0", "state_dict")
    assert found.ignored == ("1",)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor.detach())


def test_a_dictionary_that_contains_itself(tmp_path: Path) -> None:
    table: dict[str, Any] = {"a": ONE}
    table["self"] = table
    torch.save(table, tmp_path / "w.pt")
    with pytest.raises(InvalidFile, match="nested too deep"):
        read_state_dict(tmp_path / "w.pt")


def test_npz_and_safetensors(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w1=np.eye(2), w2=np.ones(3, np.float32))
    found = read_state_dict(tmp_path / "w.npz")
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == {
        "w1": torch.float64,
        "w2": torch.float32,
    }
    (tmp_path / "w.safetensors").write_bytes(write_safetensors({"module.a": ONE}))
    assert read_state_dict(tmp_path / "w.safetensors").unwrapped == ("module.",)


def test_the_child_is_isolated_limited_and_ends(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1]); import torch, json, os, resource as r;"
        "from lipverify.loading.checkpoint_child import _limit; _limit(1000);"
        "print(json.dumps([r.getrlimit(r.RLIMIT_NOFILE)[1], r.getrlimit(r.RLIMIT_CORE)[1],"
        " r.getrlimit(r.RLIMIT_CPU)[1], r.getrlimit(r.RLIMIT_AS)[1] > 0]));\n"
        "try: torch.empty(1 << 28)\n"
        "except RuntimeError: print('bounded')"
    )
    root = Path(state_dict.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, root], capture_output=True, text=True, env={}, check=True
    )
    assert done.stdout.splitlines() == ["[64, 0, 120, true]", "bounded"]


def test_a_child_that_takes_too_long_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_child: None
) -> None:
    torch.save({"a": ONE}, tmp_path / "w.pt")
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["env"] == {}
        assert kwargs["start_new_session"]
        assert args[0][1] == "-I"
        assert kwargs["cwd"] != os.getcwd()
        started.append(popen(*args, **kwargs))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(state_dict, "SECONDS", 0.01)
    with pytest.raises(InvalidFile, match=r"more than 0\.01 s"):
        read_state_dict(tmp_path / "w.pt")
    assert started[0].returncode == -signal.SIGKILL


CODE = """
import torch, dataclasses
print("this must not reach standard output")

@dataclasses.dataclass
class Width:
    n: int = 3

def build():
    return torch.nn.Sequential(torch.nn.Linear(2, Width().n), torch.nn.BatchNorm1d(Width().n))

def number():
    return 7

def broken():
    raise ValueError("three\\nlines\\x1b[0m")

def leaves():
    raise SystemExit(0)
"""


@pytest.fixture
def arch(tmp_path: Path) -> Path:
    path = tmp_path / "arch.py"
    path.write_text(CODE)
    return path


def weights(path: Path, **changes: Any) -> Path:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    table = {name: tensor.clone() for name, tensor in module.state_dict().items()} | changes
    file = path / "w.safetensors"
    file.write_bytes(
        write_safetensors({name: tensor for name, tensor in table.items() if tensor is not None})
    )
    return file


def test_architecture(arch: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exact = torch.randn(3, 2, dtype=torch.float64)
    before = list(sys.path)
    loaded = load_weights(weights(tmp_path, **{"0.weight": exact}), f"{arch}:build", True)
    assert torch.equal(loaded.module.state_dict()["0.weight"], exact), "no rounding to the module's float32"
    assert not loaded.module.training
    assert loaded.code_path == str(arch)
    assert len(loaded.code_sha256) == 64
    assert sys.path == before
    assert capfd.readouterr().out == ""


def test_batch_counters_may_be_missing(arch: Path, tmp_path: Path) -> None:
    load_weights(weights(tmp_path, **{"1.num_batches_tracked": None}), f"{arch}:build", True)


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"0.weight": None, "extra": ONE}, ["missing 0.weight", "unused extra"]),
        ({"0.weight": torch.ones(3, 1)}, ["0.weight is [3, 1], expected [3, 2]"]),
        (
            {"0.weight": torch.ones(3, 2, dtype=torch.int64)},
            ["0.weight is torch.int64, expected torch.float32"],
        ),
        ({f"n{i}": ONE for i in range(30)}, ["unused n9", "and 20 more"]),
    ],
)
def test_weights_that_do_not_fit(
    changes: dict[str, Any], texts: list[str], arch: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        load_weights(weights(tmp_path, **changes), f"{arch}:build", True)
    assert caught.value.exit_code == 2
    assert all(text in str(caught.value) for text in texts)
    assert str(caught.value).count("unused") <= 10
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("absent", "has no callable absent; it has: "),
        ("number", "number() returned int, not a torch.nn.Module"),
        ("broken", "broken failed with ValueError: three\\x0alines\\x1b[0m"),
        ("leaves", "leaves failed with SystemExit"),
        ("not a name", "must be FILE.py:callable"),
    ],
)
def test_architecture_that_fails(name: str, text: str, arch: Path, tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(UsageError) as caught:
        load_weights(weights(tmp_path), f"{arch}:{name}", True)
    assert text in str(caught.value)
    assert not {name for name in sys.modules if "architecture_" in name} - before


def test_architecture_that_is_no_file(tmp_path: Path) -> None:
    file = weights(tmp_path)
    for architecture in (f"{tmp_path}/absent.py:build", str(tmp_path), "arch.py", f"{tmp_path}:build"):
        with pytest.raises(UsageError):
            load_weights(file, architecture, True)
    (tmp_path / "syntax.py").write_text("def build(:\n")
    with pytest.raises(UsageError, match="SyntaxError"):
        load_weights(file, f"{tmp_path}/syntax.py:build", True)
