"""The verbs `decide` and `diagnose`, and the report page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hf_mmbalance import console
from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.cli import DECIDE, add_decide, add_diagnose
from hf_mmbalance.decision.ladder import PARENTS
from hf_mmbalance.decision.state import HeadState

from .drawn_tables import make_table


def run(*arguments: str) -> int:
    parser = console.Parser()
    verbs = parser.add_subparsers()
    add_decide(verbs)
    add_diagnose(verbs)
    parsed = parser.parse_args(list(map(str, arguments)))
    return console.run_command(lambda: int(parsed.func(parsed)))


def test_the_help_names_every_rung_in_its_order() -> None:
    assert " ".join(PARENTS) in re.sub(r"[,\s]+", " ", DECIDE)


@pytest.fixture
def page_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the page's text: writing each figure in three formats takes most of a report's time."""
    monkeypatch.setattr("hf_mmbalance.decision.figures.save", lambda figure, path: [])


@pytest.fixture(scope="module")
def table_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "run" / "decisions.parquet"
    make_table(n=300, classes=3, missing=0.05).write(path)
    return path


def test_decide_prints_a_table_writes_json_and_saves(
    table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "deep" / "decide.json"
    assert run("decide", table_file, "--json", target, "--save", tmp_path / "kept") == 0
    printed = capsys.readouterr().out
    assert "prior_sum" in printed and "* chosen:" in printed
    report = json.loads(target.read_text())
    assert {"n", "classes", "modalities", "ci_unit", "rows", "chosen", "weights"} <= set(report)
    assert {"method", "accuracy", "accuracy_ci", "nll", "ece"} <= set(report["rows"][0])
    assert set(report["weights"]) == {"audio", "vision"} and len(report["weights"]["audio"]) == 3
    assert Allocation.load(tmp_path / "kept").chosen_ == report["chosen"]


def test_decide_json_to_stdout_is_json_alone(table_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("decide", table_file.parent, "--group_folds", "3", "--rung", "bias", "--json", "-")
    assert run(*arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n"] == 300 and report["chosen"] == "bias"
    assert run(*arguments) == 0
    assert json.loads(capsys.readouterr().out) == report, "the same seed gives the same report"


def test_classes_file(table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("ja\nnein\nvielleicht\n", '["ja", "nein", "vielleicht"]'):
        (tmp_path / "classes").write_text(text)
        arguments = ("--classes", tmp_path / "classes", "--rung", "temperature", "--json", "-")
        assert run("decide", table_file, *arguments) == 0
        assert json.loads(capsys.readouterr().out)["classes"] == ["ja", "nein", "vielleicht"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.parquet",), "gone.parquet: no such file"),
        ((".",), "the folder holds no decisions.parquet"),
        (("TABLE", "--fit_split", "train"), "no clip has split 'train'"),
        (("TABLE", "--fit_split", "test", "--group_folds", "3"), "not both"),
        (("TABLE", "--rung", "klass"), "'klass' is unknown"),
        (("TABLE", "--group_folds", "0"), "there must be at least 2 folds"),
        (("TABLE", "TABLE"), "is given twice"),
        (("TABLE", "other.npz", "--eval_split", "val"), "decisions.parquet: no clip has split 'validation'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    filled = [str(table_file) if argument == "TABLE" else argument for argument in arguments]
    assert run("decide", *filled) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_diagnose_writes_a_page_without_network(
    table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, target = tmp_path / "report.html", tmp_path / "diagnosis.json"
    other = make_table(n=200, classes=3, seed=3)
    other.classes, other.ids[0] = ["a<b", "c&d", 'e"f'], "<script>alert(1)</script>"
    other.write(tmp_path / "other.npz")
    arguments = (tmp_path / "other.npz", table_file.parent, "--report", page, "--json", target, "--draws", "20")
    assert run("diagnose", *arguments) == 0
    assert "balance index" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<svg") == 8 and "<h2>All runs</h2>" in text and "<dt>trust</dt>" in text
    assert "<script" not in text and "a<b" not in text and "a&lt;b" in text
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"|url\((?!#)([^)]*)\)', text)
    assert not links, f"the page must load nothing: {links[:3]}"
    known = set(re.findall(r"<dt>(.*?)</dt>", text))
    assert {"adaptive", "Brier", "alignment", "uniformity", "effective rank", "linear CKA"} <= known
    assert known >= {"model", "reference"}, "rows of the first table are explained"
    assert "$" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.S), "a placeholder was left"
    figures = sorted(path.name for path in (tmp_path / "report_figures").iterdir())
    assert len(figures) == 24 and "weights_by_class.png" in figures and "index.svg" in figures
    assert set(json.loads(target.read_text())) == {"run", "other"}


def test_many_classes_and_modalities_are_drawn(tmp_path: Path, page_only: None) -> None:
    table = make_table(n=400, classes=30, modalities=3, missing=0.1)
    table.write(tmp_path / "t.npz")
    arguments = ("--rung", "class", "--report", tmp_path / "r.html", "--draws", "10")
    assert run("diagnose", tmp_path / "t.npz", *arguments) == 0
    assert "20 classes with the largest lean" in (tmp_path / "r.html").read_text()


def test_a_stiff_table_has_a_report_too(tmp_path: Path, page_only: None) -> None:
    table = make_table(n=200, classes=3)
    table.groups = [f"{split}{i % 2}" for i, split in enumerate(table.splits)]
    table.logits[np.array(table.splits) == "calibration", 1] = np.nan
    table.write(tmp_path / "t.npz")
    assert run("diagnose", tmp_path / "t.npz", "--report", tmp_path / "r.html", "--draws", "10") == 0
    assert "No weights could be fitted" in (tmp_path / "r.html").read_text()


def test_what_weights_and_biases_bring_is_shown_for_a_single_speaker_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(n=300, classes=3)
    table.groups = ["s1"] * len(table.labels)
    table.write(tmp_path / "t.npz")
    assert run("diagnose", tmp_path / "t.npz", "--draws", "10") == 0
    said = capsys.readouterr().out
    assert all(f"\n{label} " in said for label in ("global", "+ bias", "+ class weights"))
    assert "can be chosen" in said


def test_allocations_of_tables_of_one_name_are_kept_apart_in_the_folder_asked_for(tmp_path: Path) -> None:
    tables = [tmp_path / name / "decisions.parquet" for name in ("a", "b")]
    for seed, path in enumerate(tables):
        make_table(n=60, classes=3, seed=seed).write(path)
    assert run("decide", *tables, "--rung", "temperature", "--save", tmp_path / "kept") == 0
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == 2 and [path.name[-19:] for path in kept] == ["a_decisions.parquet", "b_decisions.parquet"]
    assert all(Allocation.load(path).chosen_ == "temperature" for path in kept)


@pytest.mark.parametrize("text", ['["a", "b"', '["a", nan]'])
def test_a_broken_list_of_classes_is_named(
    table_file: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.json").write_text(text)
    assert run("decide", table_file, "--classes", tmp_path / "classes.json") == 2
    error = capsys.readouterr().err
    assert "classes.json: it starts like a JSON list but is not one" in error and error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_refused_before_the_fit(
    table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_mmbalance.decision.evaluation.decide_table", lambda *a, **o: pytest.fail("fitted"))
    for words in (("decide", table_file, "--json"), ("diagnose", table_file, "--report")):
        assert run(*words, tmp_path) == 2
        assert "name a file, not a folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run("decide", table_file, "--save", tmp_path / "file") == 2
    assert f"{tmp_path / 'file'}: File exists" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["config", "no labels", "weights"])
def test_a_run_folder_with_a_damaged_model_is_one_line(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(n=60, classes=3).write(tmp_path / "decisions.parquet")
    text = {"config": "{", "no labels": '{"fusion": "sum"}', "weights": '{"fusion": "adaptive"}'}[damage]
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"half")
    assert run("decide", tmp_path, "--rung", "temperature") == 2
    error = capsys.readouterr().err
    assert "config.json or the weights are damaged" in error and error.count("\n") == 1


def test_a_run_folders_own_head_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    table = make_table(n=200, classes=3)
    table.write(tmp_path / "decisions.parquet")
    config = {"fusion": "adaptive", "modalities": table.modalities, "id2label": {"0": "a", "1": "b", "2": "c"}}
    state = HeadState.plain_sum(2, 3).replace(weights=np.array([[1.0, 1, 1], [1e-9, 1e-9, 1e-9]]))
    save_file({f"fusion.{name}": value for name, value in state.arrays.items()}, tmp_path / "model.safetensors")
    rows: dict[str, dict[str, float]] = {}
    weights: dict[str, dict[str, list[float]]] = {}
    for fusion in ("adaptive", "sum", "concat"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"fusion": fusion}))
        assert run("decide", tmp_path, "--rung", "temperature", "--json", "-") == 0
        report = json.loads(capsys.readouterr().out)
        rows[fusion] = {row["method"]: row["accuracy"] for row in report["rows"]}
        weights[fusion] = report["weights"]
        assert report["weights_of"] == ("refitted" if fusion == "concat" else "model")
    assert rows["adaptive"]["model"] == rows["adaptive"]["audio"] != rows["adaptive"]["sum"]
    assert rows["sum"]["model"] == rows["sum"]["sum"] and "model" not in rows["concat"]
    assert weights["adaptive"]["vision"] == pytest.approx([1e-9] * 3) and weights["sum"]["vision"] == [1.0] * 3
    wrong = HeadState.plain_sum(2, 5).arrays
    save_file({f"fusion.{name}": value for name, value in wrong.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run("decide", tmp_path) == 2
    assert "(2, 5) modalities and classes" in capsys.readouterr().err


def test_a_report_of_a_run_is_about_its_own_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], page_only: None
) -> None:
    from safetensors.numpy import save_file

    table = make_table(n=200, classes=3)
    table.write(tmp_path / "run" / "decisions.parquet")
    config = {"fusion": "adaptive", "modalities": table.modalities, "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    state = HeadState.plain_sum(2, 3).replace(  # decides by the sound, at a temperature of 2
        weights=np.array([[1.0, 1, 1], [1e-9, 1e-9, 1e-9]]), log_temperature=np.log([2.0, 1.0])
    )
    arrays = {f"fusion.{name}": value for name, value in state.arrays.items()}
    save_file(arrays, tmp_path / "run" / "model.safetensors")
    options = (
        "--rung",
        "temperature",
        "--draws",
        "20",
        "--json",
        tmp_path / "d.json",
        "--report",
        tmp_path / "r.html",
    )
    assert run("diagnose", tmp_path / "run", *options) == 0
    report = json.loads((tmp_path / "d.json").read_text())
    rows = {row["method"]: row for row in report["rows"]}
    assert report["in_use"]["method"] == "model" and report["in_use"]["temperature"] == {"audio": 2.0, "vision": 1.0}
    trust = report["in_use"]["trust"]["audio"]
    right = rows["audio"]["accuracy"] * rows["audio"]["n"]
    assert trust["right"]["n"] == sum(trust["right"]["count"]) == pytest.approx(right)
    shown = capsys.readouterr().out
    assert f"The model's decision layer gets {100 * rows['model']['accuracy']:.1f} % of" in shown
    assert "he decision leans to" in shown and "lost by model" in shown
    page = (tmp_path / "r.html").read_text()
    assert "Effective weight (model in use)" in page and "temperature 2.00" in page
    assert page.index("leans to") < page.index("<table") < page.index("<h2>Glossary</h2>")


def test_a_head_without_weights_is_shown_beside_the_layer_fitted_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], page_only: None
) -> None:
    table = make_table(n=200, classes=3)
    table.references = {"fused": 9.0 * np.eye(3)[table.labels]}  # always right
    table.write(tmp_path / "run" / "decisions.parquet")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"fusion": "concat"}))
    options = ("--rung", "temperature", "--draws", "10", "--report", tmp_path / "r.html")
    assert run("diagnose", tmp_path / "run", tmp_path / "run" / "decisions.parquet", *options) == 0
    shown = capsys.readouterr().out
    assert "The decision layer fitted here gets" in shown and "the run's own head has no weights to show" in shown
    page = (tmp_path / "r.html").read_text()
    lines = re.findall(r"<tr><td>run</td><td>(own|fitted here)</td><td class=n>83</td><td class=n>([\d.]+)</td>", page)
    assert lines[0] == ("own", "100.00") and lines[1][0] == "fitted here"
    assert "Effective weight (refitted)" in page


def test_a_table_too_small_to_fit_anything_is_judged_by_the_plain_sum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], page_only: None
) -> None:
    table = make_table(n=40, classes=3)
    first = [*np.flatnonzero(np.array(table.splits) == "calibration")[:8]]
    table.take(np.array([*first, *np.flatnonzero(np.array(table.splits) == "test")])).write(tmp_path / "few.parquet")
    assert run("decide", tmp_path / "few.parquet") == 0
    assert "* chosen: sum" in capsys.readouterr().out
    assert run("diagnose", tmp_path / "few.parquet", "--report", tmp_path / "few.html") == 0
    assert "plain sum" in (tmp_path / "few.html").read_text()


def test_a_prior_at_the_place_of_use(table_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("decide", table_file, "--rung", "temperature", "--prior", "0.8,0.1,0.1", "--json", "-") == 0
    shifted = json.loads(capsys.readouterr().out)
    assert run("decide", table_file, "--rung", "temperature", "--json", "-") == 0
    plain = json.loads(capsys.readouterr().out)
    assert shifted["rows"][-1]["nll"] > plain["rows"][-1]["nll"]
    assert run("decide", table_file, "--prior", "0.8,a") == 2
    assert "one probability per class" in capsys.readouterr().err


def test_known_groups_and_balance(table_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("decide", table_file, "--known_groups", "--balance", "0.3", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "class"
