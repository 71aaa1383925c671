"""Initialisers in files beside the model: read as if they were in it, bound by digest; names that lead elsewhere are refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lipverify as lv
from lipverify.checkers.reader import read_model, wire
from lipverify.errors import OtherModel, RefutedCertificate
from lipverify.falsify import Search
from tests.onnx_models import model, node

WEIGHTS = np.arange(9, dtype=np.float32).reshape(3, 3) - 4


def inside(weights: np.ndarray[Any, Any] = WEIGHTS) -> Any:
    return model([node("MatMul", ["x", "W"], ["h"]), node("Add", ["h", "b"], ["y"])], [1, 3], 13,
                 {"W": weights, "b": np.ones(3, np.float32)})  # fmt: skip


def saved(folder: Path, weights: np.ndarray[Any, Any] = WEIGHTS, location: str = "net.onnx.data") -> Path:
    path = folder / "net.onnx"
    (path.parent / location).parent.mkdir(exist_ok=True, parents=True)
    onnx.save_model(
        inside(weights), str(path), save_as_external_data=True, location=location, size_threshold=0
    )
    return path


def issued(path: Path) -> Path:
    """An honest certificate of the file, beside it."""
    found = lv.audit(path, analyzers="product", search=Search(seconds=0.1))
    assert str(found.rows[0].certificate.rigour) == "checked"
    for name, content in found.certificate_files()["product"].items():
        (path.parent / name).write_bytes(content)
    return path.parent / "product.json"


@pytest.mark.parametrize("location", ["net.onnx.data", "sub/w.bin"])
def test_it_is_read_as_one_file_would_be(location: str, tmp_path: Path) -> None:
    path = saved(tmp_path, location=location)
    found = read_model(path)
    (tmp_path / "one.onnx").write_bytes(inside().SerializeToString())
    one = read_model(tmp_path / "one.onnx")
    assert found.reason == one.reason == ""
    assert found.program is not None
    assert one.program is not None
    assert found.tensors.keys() == one.tensors.keys()
    assert found.stored == one.stored == 2
    content = (tmp_path / location).read_bytes()
    assert found.beside == ((location, hashlib.sha256(content).hexdigest()),)
    assert found.size == path.stat().st_size + len(content)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bound_is_checked_and_bound_to_the_data(tmp_path: Path) -> None:
    path = saved(tmp_path)
    certificate = issued(path)
    verdict = lv.verify(certificate, path)
    ((name, digest),) = read_model(path).beside
    assert verdict.models[0]["beside"] == [{"name": name, "sha256": digest}]
    assert digest in verdict.claim

    data = tmp_path / name
    honest = data.read_bytes()
    data.write_bytes(honest.replace(WEIGHTS.tobytes(), (WEIGHTS * 100).tobytes()))
    with pytest.raises(OtherModel, match="beside the model file"):
        lv.verify(certificate, path)
    # Whoever writes the new digest into it has a claim about the new weights, which does not hold.
    other = hashlib.sha256(data.read_bytes()).hexdigest()
    certificate.write_text(certificate.read_text().replace(digest, other))
    with pytest.raises(RefutedCertificate):
        lv.verify(certificate, path)
    data.unlink()
    with pytest.raises(OtherModel, match="cannot be read"):
        lv.verify(certificate, path)


def test_equal_model_files_with_other_data_are_two_models(tmp_path: Path) -> None:
    first, second = (saved(tmp_path / name, WEIGHTS * k) for name, k in (("a", 1), ("b", 3)))
    assert first.read_bytes() == second.read_bytes()
    for path in (first, second):
        assert lv.verify(issued(path), path).models[0]["beside"]
    with pytest.raises(OtherModel, match="beside the model file"):
        lv.verify(first.parent / "product.json", second)


def linked(data: Path) -> None:
    data.rename(data.with_suffix(".moved"))
    data.symlink_to(data.with_suffix(".moved"))


def twice(data: Path) -> None:
    os.link(data, data.with_suffix(".again"))


def cut(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-1])


def pipe(data: Path) -> None:
    data.unlink()
    os.mkfifo(data)


def folder(data: Path) -> None:
    data.unlink()
    data.mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (linked, "is not a regular file"),
        (twice, "no regular file of one name"),
        (cut, "ends before a tensor does"),
        (pipe, "is not a regular file"),
        (folder, "is not a regular file"),
        (Path.unlink, "cannot be read"),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    change: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    change(tmp_path / "net.onnx.data")
    found = read_model(path)
    assert found.program is None
    assert found.beside == ()
    assert reason in found.reason


def told(tensor: Any, **entries: str | None) -> None:
    known = {e.key: e.value for e in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in known.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "../w.bin"}, "below the model's folder"),
        ({"location": "/etc/hostname"}, "below the model's folder"),
        ({"location": ""}, "below the model's folder"),
        ({"location": "./net.onnx.data"}, "below the model's folder"),
        ({"location": None}, "without its file or its length"),
        ({"length": None}, "without its file or its length"),
        ({"length": "-1"}, "without a number of bytes"),
        ({"length": "35"}, "a stored tensor of another size"),
        ({"offset": "9" * 18}, "ends before a tensor does"),
        ({"offset": "12", "length": "48"}, "ends before a tensor does"),
        ({"length": str(1 << 40)}, "more than 2 GiB"),
        ({"basepath": "/"}, "described in another way"),
    ],
)
def test_a_place_that_leads_elsewhere_is_refused(
    entries: dict[str, str | None], reason: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    bare = onnx.load(str(path), load_external_data=False)
    told(bare.graph.initializer[0], **entries)
    path.write_bytes(bare.SerializeToString())
    found = read_model(path)
    assert found.program is None
    assert reason in found.reason


def test_tensors_that_share_numbers_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    bare = onnx.load(str(path), load_external_data=False)
    for k in range(3):
        bare.graph.initializer.add().CopyFrom(bare.graph.initializer[0])
        bare.graph.initializer[-1].name = f"more {k}"
    path.write_bytes(bare.SerializeToString())
    assert "share their numbers" in read_model(path).reason


@pytest.mark.parametrize("change", ["two places", "both"])
def test_one_tensor_in_two_places_is_refused(change: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    bare = onnx.load(str(path), load_external_data=False)
    if change == "both":
        bare.graph.initializer[0].raw_data = (WEIGHTS * 0).tobytes()
        data, reason = bare.SerializeToString(), "raw_data of Tensor occurs twice"
    else:
        # A second graph behind the first, of one initialiser with its place said twice: libraries merge them.
        tensor = bare.graph.initializer[0].SerializeToString() + b"\x70\x00"
        graph = b"\x2a" + bytes([len(tensor)]) + tensor
        data, reason = bare.SerializeToString() + b"\x3a" + bytes([len(graph)]) + graph, "occurs twice"
    path.write_bytes(data)
    found = read_model(path)
    assert found.program is None
    assert reason in found.reason


@pytest.mark.parametrize("what", ["a tensor", "a graph"])
def test_fields_are_counted_before_anything_is_made_of_them(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 MiB of fields of two bytes took 18 seconds under `--seconds 1`, and a gigabyte."""
    path = saved(tmp_path)
    proto = onnx.ModelProto()
    proto.ParseFromString(path.read_bytes())
    many = b"\x08\x01" * 600  # dims of a tensor; in a graph nodes of one byte each
    filled = proto.graph.initializer[0] if what == "a tensor" else proto.graph
    filled.MergeFromString(many if what == "a tensor" else b"\x2a\x00" * 600)
    path.write_bytes(proto.SerializeToString())
    counted = read_model(path)
    assert "more than 500 fields" not in counted.reason
    monkeypatch.setattr(wire, "MAX_FIELDS", 500)
    assert "more than 500 fields" in read_model(path).reason


def test_long_lengths_are_written_in_their_shortest_form(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 6000)).astype(np.float32)
    source = model([node("MatMul", ["x", "W"], ["y"])], [1, 3], 13, {"W": rows})
    onnx.save_model(
        source, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w", size_threshold=0
    )
    found = read_model(tmp_path / "m.onnx")
    assert found.reason == ""
    assert onnx.load_model_from_string(found.data).graph.initializer[0].raw_data == rows.tobytes()
