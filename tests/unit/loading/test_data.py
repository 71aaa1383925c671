"""Points from the files that people have: what is found, what is noted, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipverify.errors import InvalidFile, UnsafeInput, UsageError
from lipverify.loading import read_points
from lipverify.loading.data import Settings, label_hint
from lipverify.loading.data.tables import of_columns, points_of

X = np.random.default_rng(0).normal(size=(12, 4))
Y = np.arange(12) % 3
NAMES = ["age", "income", "height", "weight"]


def text(path: Path, *rows: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(rows) + "\n", encoding=encoding)
    return path


def cells(row: Any, mark: str = ",") -> str:
    return mark.join(repr(float(value)) for value in row)


def table(
    path: Path, mark: str = ",", header: bool = True, first: bool = False, label: str = "label"
) -> Path:
    head = [mark.join([label, *NAMES] if first else [*NAMES, label])] if header else []
    rows = [
        f"{y}{mark}{cells(x, mark)}" if first else f"{cells(x, mark)}{mark}{y}"
        for x, y in zip(X, Y, strict=True)
    ]
    return text(path, *head, *rows)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("first", [False, True])
def test_tables_with_names(mark: str, first: bool, tmp_path: Path) -> None:
    points = read_points(table(tmp_path / "d.csv", mark, first=first), None, (4,), 3)
    assert np.array_equal(points.x, X)
    assert np.array_equal(points.y, Y)
    assert points.features == tuple(NAMES)
    assert points.notes == ('the labels are column "label"',)


@pytest.mark.parametrize("first", [False, True])
def test_tables_without_names(first: bool, tmp_path: Path) -> None:
    points = read_points(table(tmp_path / "d.csv", header=False, first=first), None, (4,), 3)
    assert np.array_equal(points.x, X)
    assert np.array_equal(points.y, Y)
    assert points.notes == (f"the labels are column {0 if first else 4}",)


def test_a_label_that_could_be_two_columns_is_asked_for(tmp_path: Path) -> None:
    path = text(tmp_path / "d.csv", "1,0.5,2", "0,0.25,1")
    with pytest.raises(InvalidFile, match="open which one is the label; name it: --data-y 2 or --data-y 0"):
        read_points(path, None, (2,), 3)
    assert np.array_equal(read_points(path, Settings(y="-1"), (2,), 3).x, [[1, 0.5], [0, 0.25]])
    assert np.array_equal(read_points(path, Settings(y="0"), (2,), 3).y, [1, 0])


def test_names_of_classes_are_the_outputs_in_alphabetical_order(tmp_path: Path) -> None:
    rows = [f"{cells(x)},{('setosa', 'versicolor', 'virginica')[y]}" for x, y in zip(X, Y, strict=True)]
    path = text(tmp_path / "iris.data", *rows)
    points = read_points(path, Settings(limit=5), (4,), 3)
    assert np.array_equal(points.y, Y[:5])
    assert (
        "classes in alphabetical order (setosa, versicolor, virginica) are the outputs 0 to 2" in points.notes
    )
    with pytest.raises(InvalidFile, match=r"names 3 classes, the model has 4 outputs; .* --data-y none"):
        read_points(path, None, (4,), 4)


def test_columns_by_name_and_the_counter_of_data_frames(tmp_path: Path) -> None:
    rows = [f"{i},{cells(x)},{y},{i * 7}" for i, (x, y) in enumerate(zip(X, Y, strict=True))]
    path = text(tmp_path / "d.csv", "," + ",".join(NAMES) + ",kind,number", *rows)
    with pytest.raises(InvalidFile, match=r"has 6 columns, .* 4 numbers; name them in order: --data-x"):
        read_points(path, None, (4,), 3)
    points = read_points(path, Settings(x=("weight", "age"), y="kind"), (2,), 3)
    assert np.array_equal(points.x, X[:, [3, 0]])
    assert np.array_equal(points.y, Y)
    with pytest.raises(UsageError, match='no column "wait"; it has'):
        read_points(path, Settings(x=("wait",)), (1,), 3)
    plain = text(tmp_path / "e.csv", "," + ",".join(NAMES), *(f"{i},{cells(x)}" for i, x in enumerate(X)))
    points = read_points(plain, None, (4,), 3)
    assert np.array_equal(points.x, X)
    assert "counts the rows, is left out" in points.notes[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("a,b", "1,2", "3,"), 'row 3 has an empty cell in column "b"'),
        (("a,b", "1,2", "3,x"), 'row 3, column "b" holds "x", which is no number'),
        (("a,b", "1,nan", "3,4"), 'column "b" holds "nan"'),
        (("a,b", "1,2", "3,nan"), 'row 3, column "b" holds "nan"'),
        (("a,b", "1,2", "3,-inf"), '"-inf", which is no number'),
        (("1,2", "3,1e999"), 'row 2, column 1 holds "1e999"'),
        (("1,2", "3,1_0"), '"1_0", which is no number'),
        (("1,2", "3,0x10"), '"0x10", which is no number'),
        (("a;b", "1;2", "3;4,5"), "write a decimal point, not a comma"),
        (("a,b", "1,2,3"), "row 2 has 3 cells, the first one 2"),
        (("a,a", "1,2"), 'two columns are called "a"'),
        (("a,b",), "names of columns and no rows"),
        (("1,2", '3,"4'), "is no CSV"),
        (("1,2", "3,\u0664"), "which is no number"),
    ],
)
def test_tables_that_are_refused(rows: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile) as caught:
        read_points(text(tmp_path / "d.csv", *rows), None, (2,), 2)
    assert said in str(caught.value)


def test_text_of_another_encoding(tmp_path: Path) -> None:
    path = text(tmp_path / "d.csv", "gr\u00f6\u00dfe,b", "1,2", encoding="utf-8-sig")
    assert read_points(path, None, (2,), 2).features == ("gr\u00f6\u00dfe", "b")
    text(path, *["a,b"] + ["1,2"] * 200, "gr\u00f6\u00dfe,2", encoding="latin-1")
    with pytest.raises(InvalidFile, match="is not UTF-8 text; save it as UTF-8"):
        read_points(path, None, (2,), 2)


@pytest.mark.parametrize("head", ["Pclass,Age", "id,age", "class,age", '"a","b"', "B,C", "r,s", "(x),y", "c"])
def test_a_table_is_no_model_and_no_pickle(head: str, tmp_path: Path) -> None:
    width = head.count(",") + 1
    path = text(tmp_path / "d.csv", head, *[",".join(["2.5"] * width)] * 3)
    assert read_points(path, Settings(y="none"), (width,), 2).x.shape == (3, width)


@pytest.mark.parametrize(
    ("names", "x", "y"),
    [
        (("x", "y"), "x", "y"),
        (("X", "Y"), "X", "Y"),
        (("images", "labels"), "images", "labels"),
        (("inputs", "targets", "other"), "inputs", "targets"),
        (("x_test", "y_test"), "x_test", "y_test"),
        (("test_images", "test_labels"), "test_images", "test_labels"),
        (("features",), "features", None),
    ],
)
def test_arrays_by_their_usual_names(names: tuple[str, ...], x: str, y: str | None, tmp_path: Path) -> None:
    arrays = dict.fromkeys(names, X) | ({y: Y} if y else {})
    np.savez(tmp_path / "d.npz", **arrays)
    points = read_points(tmp_path / "d.npz", None, (4,), 3)
    assert np.array_equal(points.x, X)
    assert (points.y is None) == (y is None)
    assert any(f'"{x}"' in note for note in points.notes) == (x != "x")


def test_arrays_that_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=X[:3], y_train=Y[:3], x_test=X, y_test=Y)
    with pytest.raises(InvalidFile, match=r"several arrays that may hold the points .*--data-x x_train"):
        read_points(path)
    points = read_points(path, Settings(x=("x_test",)), (4,), 3)
    assert np.array_equal(points.y, Y)
    np.savez(path, a=X, b=Y)
    with pytest.raises(InvalidFile, match=r"has no array x \(it holds a, b\); .*--data-x a"):
        read_points(path)
    assert np.array_equal(read_points(path, Settings(x=("a",), y="b"), (4,), 3).y, Y)
    with pytest.raises(UsageError, match='no array "c"; it holds a, b'):
        read_points(path, Settings(x=("c",)))


@pytest.mark.parametrize(
    "saved",
    [
        lambda: (torch.from_numpy(X), torch.from_numpy(Y)),
        lambda: {"images": torch.from_numpy(X), "labels": torch.from_numpy(Y)},
        lambda: [torch.from_numpy(X), torch.from_numpy(Y)],
    ],
)
def test_torch_files(saved: Callable[[], Any], tmp_path: Path) -> None:
    torch.save(saved(), tmp_path / "d.pt")
    points = read_points(tmp_path / "d.pt", None, (4,), 3)
    assert np.array_equal(points.x, X)
    assert np.array_equal(points.y, Y)


def test_a_tensor_alone_and_a_file_that_would_run_code(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(X).bfloat16(), tmp_path / "d.pt")
    assert np.array_equal(read_points(tmp_path / "d.pt").x, torch.from_numpy(X).bfloat16().double().numpy())
    torch.save({"x": torch.from_numpy(X), "f": torch.nn.Linear(1, 1)}, tmp_path / "e.pt")
    with pytest.raises(UnsafeInput, match="would run foreign code"):
        read_points(tmp_path / "e.pt")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.eye(3)[Y], Y),
        (np.eye(3, dtype=bool)[Y], Y),
        (Y.astype(np.float32), Y),
        (Y[:, None].astype(np.uint8), Y),
    ],
)
def test_labels_in_other_clothes(labels: Any, found: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=labels)
    assert np.array_equal(read_points(tmp_path / "d.npz", None, (4,), 3).y, found)


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (np.eye(3)[Y], 4, "not one row with a single 1"),
        (np.eye(3)[Y] * 0.5, 3, "not one row with a single 1"),
        (Y[:5], 3, "y needs shape"),
        (Y - 1, 3, "negative"),
        (Y + 0.25, 3, "which is no label"),
        (np.where(Y > 0, Y, np.nan), 3, "holds nan"),
    ],
)
def test_labels_that_are_refused(labels: Any, classes: int, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=labels)
    with pytest.raises(InvalidFile, match=said):
        read_points(tmp_path / "d.npz", None, (4,), classes)


def test_labels_from_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y + 1)
    with pytest.raises(InvalidFile, match="they begin at 1: --first-label 1"):
        read_points(tmp_path / "d.npz", None, (4,), 3).require((4,), 3)
    assert np.array_equal(read_points(tmp_path / "d.npz", Settings(first_label=1), (4,), 3).y, Y)


def test_a_model_with_one_output_has_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y * 17.5)
    points = read_points(tmp_path / "d.npz", None, (4,), 1)
    assert points.y is None
    assert points.notes == ("labels are left out: the model has a single output",)


@pytest.mark.parametrize(
    ("found", "model", "axes"),
    [
        ((5, 6, 3), (3, 5, 6), (0, 3, 1, 2)),
        ((3, 5, 6), (5, 6, 3), (0, 2, 3, 1)),
        ((6, 6, 3), (3, 6, 6), (0, 3, 1, 2)),
        ((5, 6), (1, 5, 6), None),
        ((5, 6, 1), (1, 5, 6), None),
        ((30,), (1, 5, 6), None),
        ((5, 6), (30,), None),
        ((1, 5, 6), (30,), None),
    ],
)
def test_shapes(found: Any, model: Any, axes: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(2, *found))
    np.save(tmp_path / "d.npy", x)
    expected = x.reshape(2, *model) if axes is None else x.transpose(axes)
    assert np.array_equal(read_points(tmp_path / "d.npy", None, model, 3).x, expected)


@pytest.mark.parametrize(
    ("found", "model"),
    [((5, 6, 3), (90,)), ((5, 6), (1, 6, 5)), ((3, 3, 5), (5, 3, 4)), ((5, 6, 3), (3, 6, 5))],
)
def test_shapes_that_could_mean_two_things(found: Any, model: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros((2, *found)))
    with pytest.raises(InvalidFile, match="has points of shape"):
        read_points(tmp_path / "d.npy", None, model, 3)


def test_a_single_point(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.ones((3, 4, 4)))
    assert read_points(tmp_path / "d.npy", None, (3, 4, 4), 3).x.shape == (1, 3, 4, 4)


def test_units(tmp_path: Path) -> None:
    x = np.random.default_rng(2).integers(0, 256, size=(3, 2, 2, 3), dtype=np.uint8)
    np.save(tmp_path / "d.npy", x)
    plain = read_points(tmp_path / "d.npy", None, (3, 2, 2), 3)
    assert "for a model of inputs from 0 to 1: --scale 1/255" in plain.notes[-1]
    assert np.array_equal(plain.x, x.transpose(0, 3, 1, 2))
    mean, std = (0.5, 0.25, 0.125), (0.5, 2.0, 4.0)
    points = read_points(tmp_path / "d.npy", Settings(scale=1 / 255, mean=mean, std=std), (3, 2, 2), 3)
    expected = (plain.x * (1 / 255) - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert np.array_equal(points.x, expected)
    assert points.identity == {"sha256": plain.sha256, "scale": 1 / 255, "mean": mean, "std": std}
    with pytest.raises(UsageError, match=r"--mean has 2 numbers; .* one for each of 3 channels"):
        read_points(tmp_path / "d.npy", Settings(mean=(1.0, 2.0)), (3, 2, 2), 3)
    with pytest.raises(UsageError, match="--std numbers above 0"):
        Settings(std=(0.0,))
    with pytest.raises(InvalidFile, match="after --scale, --mean and --std"):
        read_points(tmp_path / "d.npy", Settings(scale=1e308), (3, 2, 2), 3)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (X, Y + 1, "with --first-label 1, 100% of them"),
        (X * 255, Y, "with --scale 1/255, 100% of them"),
        (X, (Y + 1) % 3, "says more about how the data is read"),
        (X, np.where(np.arange(12) == 3, Y, (Y + 1) % 3), None),
        (X[:5], Y[:5] + 1, None),
    ],
)
def test_hints_where_every_label_is_wrong(x: Any, y: Any, said: str | None, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=x, y=y)
    points = read_points(tmp_path / "d.npz")

    def predict(seen: Any) -> Any:
        """Right for X itself only."""
        near = np.abs(seen[:, None] - X[None]).max(-1)
        return np.where(near.min(1) < 1e-9, Y[near.argmin(1)], 7)

    hint = label_hint(points, predict)
    assert (hint is None) == (said is None)
    assert said is None or said in hint


def test_columns_of_a_file_with_types() -> None:
    found = points_of(
        of_columns(("a", "b", "kind"), [[1, 2], [0.5, True], ["u", "v"]], "d.parquet"), Settings(), 2, ""
    )
    assert np.array_equal(found.x, [[1, 0.5], [2, 1]])
    assert np.array_equal(found.y, [0, 1])
    with pytest.raises(InvalidFile, match='row 2 has an empty cell in column "b"'):
        of_columns(("a", "b"), [[1, 2], [0.5, None]], "d.parquet")
    with pytest.raises(InvalidFile, match="which is no number"):
        of_columns(("a",), [[float("nan")]], "d.parquet")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {name: X[:, i] for i, name in enumerate(NAMES)}
    parquet.write_table(pyarrow.table({**columns, "label": Y}), tmp_path / "d.parquet")
    points = read_points(tmp_path / "d.parquet", None, (4,), 3)
    assert np.array_equal(points.x, X)
    assert np.array_equal(points.y, Y)


def test_what_needs_a_package_says_which(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1" + b"\0" * 20 + b"PAR1")
    (tmp_path / "d").mkdir()
    for path, package in ((tmp_path / "d.parquet", "pyarrow"), (tmp_path / "d", "PIL")):
        try:
            __import__(package)
        except ImportError:
            with pytest.raises(UsageError, match=r'pip install "lipverify\[data\]"'):
                read_points(path)
        else:
            with pytest.raises(InvalidFile):
                read_points(path)


def test_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(3).integers(0, 256, size=(4, 5, 6, 3), dtype=np.uint8)
    for index, kind in enumerate(["cat", "cat", "dog", "dog"]):
        (tmp_path / kind).mkdir(exist_ok=True)
        image.fromarray(pixels[index]).save(tmp_path / kind / f"{index}.png")
    points = read_points(tmp_path, Settings(scale=1 / 255), (3, 5, 6), 2)
    assert np.array_equal(points.x, pixels.transpose(0, 3, 1, 2) * (1 / 255))
    assert np.array_equal(points.y, [0, 0, 1, 1])
    assert np.array_equal(read_points(tmp_path, Settings(limit=2), (3, 5, 6), 2).y, [0, 1])
    assert read_points(tmp_path, Settings(y="none"), (1, 5, 6), 2).y is None
    image.fromarray(pixels[0, :3]).save(tmp_path / "dog" / "small.png")
    with pytest.raises(InvalidFile, match="several sizes"):
        read_points(tmp_path, None, (3, 5, 6), 2)
    (tmp_path / "dog" / "small.png").write_bytes(b"no image")
    with pytest.raises(InvalidFile, match="no image that can be read"):
        read_points(tmp_path, None, (3, 5, 6), 2)
