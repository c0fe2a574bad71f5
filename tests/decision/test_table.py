"""The decision table: round trips, foreign writers, and every kind of bad input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_mmbalance.decision.table import DecisionTable, TableError


def fields(n: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, 2, 3))
    logits[1, 0] = np.nan
    return {
        "ids": [f"clip{i}" for i in range(n)],
        "groups": [f"actor{i % 3}" for i in range(n)],
        "splits": ["calibration", "test"] * (n // 2),
        "labels": np.arange(n) % 3,
        "logits": logits,
        "classes": ["ja", "nein", "naïve"],
        "modalities": ["audio", "vision"],
    }


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    features = {"vision": np.arange(12.0).reshape(6, 2)}
    table = DecisionTable(**fields(), features=features, references={"concat": np.ones((6, 3))}, kind="logits")
    path = tmp_path / "folder" / f"table{suffix}"
    table.write(path)
    back = DecisionTable.read(path)
    assert (back.ids, back.groups, back.splits) == (table.ids, table.groups, table.splits)
    assert (back.classes, back.modalities, back.kind) == (table.classes, table.modalities, "logits")
    np.testing.assert_array_equal(back.labels, table.labels)
    np.testing.assert_allclose(back.logits, table.logits, rtol=1e-6)
    np.testing.assert_array_equal(back.mask, table.mask)
    assert not back.mask[1, 0] and back.mask.sum() == 11
    np.testing.assert_array_equal(back.features["vision"], features["vision"])
    np.testing.assert_array_equal(back.references["concat"], np.ones((6, 3)))


def test_tables_of_pandas_and_datasets_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    rows = [
        {
            "id": f"c{i}",
            "group": f"g{i}",
            "split": "val",
            "label": i % 2,
            "logits.a": None if i == 2 else [0.5, 1.0 + i],
        }
        | {"logits.b": [2.0, -1.0]}
        for i in range(4)
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "pandas.parquet")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "datasets.parquet")
    for name in ("pandas", "datasets"):
        table = DecisionTable.read(tmp_path / f"{name}.parquet", classes=["no", "yes"])
        assert table.modalities == ["a", "b"] and table.classes == ["no", "yes"]
        assert table.splits == ["validation"] * 4
        assert table.mask[:, 0].tolist() == [True, True, False, True]
        np.testing.assert_allclose(table.logits[3, 0], [0.5, 4.0])
        assert DecisionTable.read(tmp_path / f"{name}.parquet").classes == ["0", "1"]


def test_fixed_size_lists_and_a_modality_missing_everywhere(tmp_path: Path) -> None:
    fixed = pa.array([[1.0, 2.0], None, [3.0, 4.0]], type=pa.list_(pa.float32(), 2))
    pq.write_table(
        pa.table({"id": ["a", "b", "c"], "group": ["x", "y", "z"], "split": ["test"] * 3, "label": [0, 1, 1],
                  "logits.b": pa.array([[0.0, 2.0]] * 3), "logits.a": fixed, "logits.gone": pa.nulls(3)}),
        tmp_path / "t.parquet",
    )  # fmt: skip
    table = DecisionTable.read(tmp_path / "t.parquet")
    assert table.modalities == ["b", "a", "gone"]
    np.testing.assert_allclose(table.logits[2, 1], [3.0, 4.0])
    assert not table.mask[1, 1] and not table.mask[:, 2].any()


def test_select_and_take() -> None:
    table = DecisionTable(**fields())
    assert table.select("test").ids == ["clip1", "clip3", "clip5"]
    assert table.take(np.array([4, 0])).ids == ["clip4", "clip0"]
    assert len(table.take(table.mask[:, 0])) == 5
    with pytest.raises(TableError, match=r"no clip has split 'train'.*calibration \(3\), test \(3\)"):
        table.select("train")


def test_log_probs_are_normalised() -> None:
    table = DecisionTable(**fields())
    present = np.exp(table.log_probs[table.mask]).sum(axis=1)
    np.testing.assert_allclose(present, 1)


def change(**update: Any) -> dict[str, Any]:
    return fields() | update


def poisoned(value: float) -> np.ndarray:
    logits = fields()["logits"].copy()
    logits[3, 1, 2] = value
    return logits


BAD = [
    (change(labels=np.array([0, 1, 2, 0, 1])), "'label' has 5 entries for 6 ids"),
    (change(groups=["a"]), "'group' has 1 entries"),
    (change(labels=np.array([0, 1, 2, 0, 1, 3])), r"label 3 of clip 'clip5' is outside 0\.\.2"),
    (change(labels=np.array([0, 1, 2, 0, 1, -1])), "label -1"),
    (change(labels=np.zeros(6)), "store class indices as integers"),
    (change(logits=poisoned(np.nan)), "'logits.vision' of clip 'clip3' holds NaN or inf"),
    (change(logits=poisoned(-np.inf)), "holds NaN or inf"),
    (change(ids=["a", "b", "c", "d", "e", "a"]), "id 'a' occurs twice"),
    (change(logits=np.full((6, 2, 3), 1 / 3)), "holds probabilities"),
    (change(logits=np.full((6, 2, 3), 1 / 3), kind="log_probs"), "positive values"),
    (change(kind="odds"), "kind is 'odds'"),
    (change(logits=np.zeros((6, 1, 3)), modalities=["audio"]), "at least two"),
    (change(logits=np.zeros((6, 2, 1)), classes=["one"], labels=np.zeros(6, dtype=int)), "nothing to decide"),
    (change(logits=np.full((6, 2, 3), np.nan)), "no modality at all"),
    (change(modalities=["audio", "audio"]), "occurs twice"),
    (change(features={"smell": np.zeros((6, 2))}), "matches no modality"),
    (change(references={"concat": np.zeros((6, 4))}), "'reference.concat' has shape"),
    (change(logits=np.zeros((6, 2, 4))), "logits have shape"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_tables_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        DecisionTable(**arguments)


def test_no_rows() -> None:
    with pytest.raises(TableError, match="no rows"):
        DecisionTable([], [], [], np.zeros(0, dtype=int), np.zeros((0, 2, 2)), ["a", "b"], ["x", "y"])


def test_files_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file"):
        DecisionTable.read(tmp_path / "gone.parquet")
    (tmp_path / "table.txt").write_text("id")
    with pytest.raises(TableError, match="unknown suffix '.txt'"):
        DecisionTable.read(tmp_path / "table.txt")
    for name in ("broken.parquet", "broken.npz"):
        (tmp_path / name).write_bytes(b"not a table")
        with pytest.raises(TableError, match=f"{name}.*readable"):
            DecisionTable.read(tmp_path / name)


def write(path: Path, **columns: Any) -> Path:
    base = {"id": ["a", "b"], "group": ["x", "y"], "split": ["test", "test"], "label": [0, 1],
            "logits.p": [[0.0, 2.0], [1.0, 0.0]], "logits.q": [[0.0, 1.0], [2.0, 0.0]]}  # fmt: skip
    merged = {key: value for key, value in (base | columns).items() if value is not None}
    pq.write_table(pa.table(merged), path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": None}, r"column\(s\) missing: label"),
        ({"id": None}, r"column\(s\) missing: id"),
        ({"logits.p": None, "logits.q": None}, r"missing: logits.<modality>"),
        ({"logits.p": [[0.0, 1.0], [1.0]]}, "rows of different lengths"),
        ({"logits.p": [[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]]}, "different widths"),
        ({"logits.p": [0.5, 0.5]}, "expected a list of floats"),
        ({"logits.p": [[0.0, None], [1.0, 0.0]]}, "holds NaN or inf"),
        ({"label": [0, None]}, "1 empty entries"),
        ({"label": [0.5, 1.0]}, "integers"),
    ],
)
def test_files_with_bad_columns(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "t.parquet", **columns)
    with pytest.raises(TableError, match=f"t.parquet: .*{message}"):
        DecisionTable.read(path)


def test_missing_group_and_split_are_warned_fallbacks(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", group=None, split=None)
    with pytest.warns(UserWarning) as caught:
        table = DecisionTable.read(path)
    assert {"group" in str(w.message) or "split" in str(w.message) for w in caught} == {True} and len(caught) == 2
    assert table.groups == ["a", "b"] and table.splits == ["test", "test"]


def test_draws_without_their_clip_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no 'clip' column: every draw counts as a clip of its own"):
        DecisionTable.read(write(tmp_path / "t.parquet", draw=[0, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DecisionTable.read(write(tmp_path / "t.parquet", draw=[0, 0]))
        DecisionTable.read(write(tmp_path / "t.parquet", draw=[0, 1], clip=["a", "b"]))


def test_wrong_number_of_class_names(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="3 class names for logits of 2 classes"):
        DecisionTable.read(write(tmp_path / "t.parquet"), classes=["a", "b", "c"])


def test_clips_and_draws_round_trip(tmp_path: Path) -> None:
    table = DecisionTable(**fields(), clips=["a", "b", "c", "a", "b", "c"], draws=np.array([0, 0, 0, 1, 1, 1]))
    for suffix in (".parquet", ".npz"):
        table.write(tmp_path / f"t{suffix}")
        back = DecisionTable.read(tmp_path / f"t{suffix}")
        assert back.clips == table.clips and back.draw_numbers.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.take([3, 1]).clips == ["a", "b"] and table.take([3, 1]).draw_numbers.tolist() == [1, 0]
    assert DecisionTable(**fields()).clips == fields()["ids"]
    with pytest.raises(TableError, match="draws of clip 'a' have different groups or labels"):
        DecisionTable(**fields(), clips=["a"] * 6)
    with pytest.raises(TableError, match="'draw' must hold integers from 0"):
        DecisionTable(**fields(), draws=np.full(6, -1))


def test_splits_are_matched_without_case_and_eval_is_validation() -> None:
    table = DecisionTable(**change(splits=["Calibration", "TEST", " Val ", "eval", "Train", "testing"]))
    assert table.splits == ["calibration", "test", "validation", "validation", "train", "test"]
    assert len(table.select("Test")) == 2


def test_clips_without_a_group_are_their_own_groups() -> None:
    with pytest.warns(UserWarning, match=r"2 row\(s\) have no group"):
        table = DecisionTable(**change(groups=["a", None, "b", float("nan"), "c", "c"]))
    assert table.groups == ["a", "clip clip1", "b", "clip clip3", "c", "c"]


@pytest.mark.parametrize("name", ["sum", "adaptive", "prior_sum", "model"])
def test_modalities_named_as_rows_of_the_report_are_refused(name: str) -> None:
    with pytest.raises(TableError, match=f"a modality is called '{name}'.*rename"):
        DecisionTable(**change(modalities=["audio", name]))


def test_partly_nan_features_are_refused() -> None:
    features = np.zeros((6, 2))
    features[2, 1] = np.nan
    with pytest.raises(TableError, match=r"'features.audio' of clip 'clip2' holds NaN or inf \(1 such"):
        DecisionTable(**fields(), features={"audio": features})


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_damaged_files_are_refused_without_a_traceback(tmp_path: Path, suffix: str) -> None:
    """Truncated, or with bytes changed: a TableError, or a table where the damage hit nothing that matters."""
    path = tmp_path / f"t{suffix}"
    DecisionTable(**fields(), features={"audio": np.ones((6, 3))}).write(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for case in range(150):
        damaged = bytearray(whole)
        if case % 3 == 0:
            damaged = damaged[: rng.integers(1, len(whole))]
        else:
            for at in rng.integers(0, len(whole), size=1 + case % 8):
                damaged[at] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                DecisionTable.read(path)
            except TableError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused > 50


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", np.zeros((2, 2), dtype=int), "'label' has shape"),
        ("logits.p", np.zeros(2), "'logits.p' has shape"),
        ("group", np.array("x"), "'group' has shape"),
        ("split", np.array(["test"]), "different lengths"),
        ("logits.p", np.array([["a", "b"], ["c", "d"]]), "cannot be used"),
    ],
)
def test_npz_arrays_of_wrong_shapes(tmp_path: Path, name: str, value: np.ndarray, message: str) -> None:
    good = {"id": np.array(["a", "b"]), "group": np.array(["x", "y"]), "split": np.array(["test", "test"]),
            "label": np.array([0, 1]), "logits.p": np.eye(2), "logits.q": -np.eye(2)}  # fmt: skip
    np.savez(tmp_path / "t.npz", **(good | {name: value}))
    with pytest.raises(TableError, match=f"t.npz: .*{message}"):
        DecisionTable.read(tmp_path / "t.npz")


@pytest.mark.parametrize(("key", "text"), [("classes", "{"), ("modalities", '"audio"'), ("classes", "[[1], [2]]")])
def test_metadata_of_other_types_is_refused(tmp_path: Path, key: str, text: str) -> None:
    path = write(tmp_path / "t.parquet")
    table = pq.read_table(path).replace_schema_metadata({key: text})
    pq.write_table(table, path)
    with pytest.raises(TableError, match=f"metadata '{key}'"):
        DecisionTable.read(path)


WIDE = """id;group;split;label;logits.audio.dog;logits.audio.cat;logits.vision.dog;logits.vision.cat
a;g1;test;cat;0.1;2.5;-1;1
b;g1;test;dog;1.5;0;;
c;g2;test;dog;1;0;3;-3
"""


def test_columns_that_are_numbered_in_another_order_name_the_classes(tmp_path: Path) -> None:
    """As a sorted header gives them (0, 1, 10, 2, ...): a label is the name of a class, not a place in the header."""
    header = "id,label,group,split," + ",".join(f"logits.{m}.{c}" for m in "av" for c in (10, 2, 1))
    (tmp_path / "t.csv").write_text(
        f"{header}\nx,2,g,test,0,5,0,0,5,0\ny,10,h,test,5,0,0,5,0,0\nz,1,i,test,0,0,5,0,0,5\n"
    )
    table = DecisionTable.read(tmp_path / "t.csv")
    assert table.classes == ["10", "2", "1"] and table.labels.tolist() == [1, 0, 2]
    (tmp_path / "t.csv").write_text(f"{header}\nx,0,g,test,0,5,0,0,5,0\n")
    with pytest.raises(TableError, match="names of the classes"):
        DecisionTable.read(tmp_path / "t.csv")


def test_a_table_of_text_with_one_column_per_class(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(WIDE)
    table = DecisionTable.read(tmp_path / "t.csv")
    assert (table.classes, table.modalities, table.labels.tolist()) == (["dog", "cat"], ["audio", "vision"], [1, 0, 0])
    np.testing.assert_array_equal(table.logits[0], [[0.1, 2.5], [-1, 1]])
    assert table.mask.tolist() == [[True, True], [True, False], [True, True]]


@pytest.mark.parametrize("form", ["[{}, {}]", "[{} {}]", "{} {}"])
def test_a_table_of_text_with_lists(tmp_path: Path, form: str) -> None:
    lines = ["id,label,logits.audio,logits.vision"]
    lines += [f'{i},{i % 2},"{form.format(i, -1.5)}",' + (f'"{form.format(0, 1e-3)}"' if i else "") for i in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="no 'group' column"):
        table = DecisionTable.read(tmp_path / "t.csv", classes=["no", "yes"])
    np.testing.assert_array_equal(table.logits[:, 0], [[0, -1.5], [1, -1.5], [2, -1.5]])
    assert table.labels.tolist() == [0, 1, 0] and not table.mask[0, 1] and table.classes == ["no", "yes"]


def test_cells_of_lists_are_named_by_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,label,logits.a,logits.b\nx,0,"[1, 2]","[1, 2]"\ny,1,"[2x, 1]","[1, 2]"\n')
    with pytest.raises(TableError, match=r"row 2, column 'logits.a': '2x' is not a number"):
        DecisionTable.read(tmp_path / "t.csv")


def test_draws_that_are_no_integers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(WIDE.replace("split;", "draw;").replace("test;", "0.5;"))
    with pytest.raises(TableError, match="'draw' must hold integers from 0"):
        DecisionTable.read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("2.5", "2.5x", "row 1, column 'logits.audio.cat': '2.5x' is not a number"),
        ("logits.vision.dog;logits.vision.cat", "logits.vision.cat;logits.vision.dog", "use one order"),
        ("b;g1;test;dog", "b;g1;test;cow", "store class indices as integers, or names of the classes"),
        ("id;group", "name;group", "column.s. missing: id"),
        ("b;g1;test;dog", "b;g1;test;", "column 'label' has 1 empty"),
        ("id;group;split;label;", "1;g1;test;dog;", "first line holds data|column.s. missing"),
        ("dog", "d\xf6g", "not UTF-8"),
        ("logits.vision.dog", "logits.audio.dog", "two columns are named 'logits.audio.dog'"),
    ],
)
def test_bad_tables_of_text(tmp_path: Path, old: str, new: str, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(WIDE.replace(old, new).encode("latin-1"))
    with pytest.raises(TableError, match=f"t.csv.*({words})"):
        DecisionTable.read(tmp_path / "t.csv")


def test_labels_may_be_names_in_any_form() -> None:
    names = ["ja", "nein", "naïve"] * 2
    for labels in (names, np.array(names), np.array(names, dtype=object)):
        assert DecisionTable(**change(labels=labels)).labels.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(TableError, match=r"label 'nien' is not one of the classes \(ja, nein, naïve\); store class"):
        DecisionTable(**change(labels=[*names[:5], "nien"]))
    with pytest.raises(TableError, match=r"'label' is int64 of shape \(6, 1\)"):
        DecisionTable(**change(labels=np.zeros((6, 1), dtype=int)))


def test_names_of_labels_without_names_of_classes_need_the_latter(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", label=["dog", "cat"])
    with pytest.raises(TableError, match=r"t.parquet: label 'dog' is not one of the classes \(0, 1\).*--classes FILE"):
        DecisionTable.read(path)
    assert DecisionTable.read(path, classes=["cat", "dog"]).labels.tolist() == [1, 0]


def test_tables_are_joined_by_what_all_have() -> None:
    parts = [DecisionTable(**fields()).take(rows) for rows in ([0, 1, 2], [3, 4, 5])]
    for part in parts:
        part.references["both"] = np.ones((3, 3))
    parts[0].references["one"], parts[0].features["audio"] = np.ones((3, 3)), np.ones((3, 2))
    joined = DecisionTable.concatenate(parts)
    assert list(joined.references) == ["both"] and not joined.features and joined.ids == fields()["ids"]


def test_names_given_in_another_order_than_the_files_are_refused(tmp_path: Path) -> None:
    """They would give every column the name of another class."""
    (tmp_path / "t.csv").write_text(WIDE)
    with pytest.raises(TableError, match="of the classes dog, cat, in this order; the names given"):
        DecisionTable.read(tmp_path / "t.csv", classes=["cat", "dog"])
    assert DecisionTable.read(tmp_path / "t.csv", classes=["dog", "cat"]).labels.tolist() == [1, 0, 0]
