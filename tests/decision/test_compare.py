"""`mmbalance compare`: seeds together, clips aligned, differences paired."""

from __future__ import annotations

import csv
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_mmbalance import cli
from hf_mmbalance.decision import figures, report
from hf_mmbalance.decision.compare import Source, align, entries_of, read_source
from hf_mmbalance.decision.compare_output import _difference, text_of
from hf_mmbalance.decision.diagnosis import MAX_MODALITIES
from hf_mmbalance.decision.evaluation import baselines
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics import measures

from .drawn_tables import make_table


CLASSES = ["dog", "cat_1", "鳥"]


def write_run(folder: Path, fusion: str, seed: int, sharpness: float, **changes: object) -> DecisionTable:
    """A run folder without a model: a table with the run's own head, and the arguments it was made with."""
    table = make_table(n=300, classes=3)
    rng = np.random.default_rng([seed, *fusion.encode()])
    table.classes = list(CLASSES)
    table.references = {"fused": sharpness * np.eye(3)[table.labels] + rng.normal(size=(300, 3))}
    table.logits = table.logits + rng.normal(size=table.logits.shape)
    table.write(folder / "decisions.parquet")
    places = dict.fromkeys(("output_dir", "out", "data_dir"), str(folder)) | {"per_device_eval_batch_size": seed + 1}
    arguments = {"fusion": fusion, "seed": seed, "learning_rate": 0.1, **places} | changes
    (folder / "results.json").write_text(json.dumps({"fusion": fusion, "arguments": arguments}))
    return table.select("test")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "ours-s0", "adaptive", 0, 3.0)
    write_run(tmp_path / "ours-s1", "adaptive", 1, 3.0)
    write_run(tmp_path / "theirs-s0", "concat", 0, 1.0)
    return tmp_path


def compared(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert cli.main(["compare", *map(str, words), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_seeds_of_one_configuration_are_one_row(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, *(runs / name for name in ("ours-s0", "ours-s1", "theirs-s0")))
    rows = {(row["configuration"], row["method"]): row for row in found["rows"]}
    assert list(rows)[:3] == [("ours", "adaptive"), ("ours", "sum"), ("ours", "mean_prob")]
    assert [rows["ours", "adaptive"][key] for key in ("kind", "seeds")] == ["fitted", 2]
    assert [rows["theirs", "concat"][key] for key in ("kind", "seeds")] == ["trained", 1]
    tables = [DecisionTable.read(runs / f"ours-s{seed}" / "decisions.parquet").select("test") for seed in (0, 1)]
    for measure in ("accuracy", "macro_f1", "nll", "ece"):
        each = [getattr(measures, measure)(table.references["fused"], table.labels) for table in tables]
        assert rows["ours", "adaptive"][measure] == pytest.approx(np.mean(each), abs=1e-6)
        assert rows["ours", "adaptive"][f"{measure}_sd"] == pytest.approx(np.std(each, ddof=1), abs=1e-6)
        assert rows["theirs", "concat"][f"{measure}_sd"] is None
    low, high = rows["ours", "adaptive"]["accuracy_ci"]
    assert low < rows["ours", "adaptive"]["accuracy"] < high


def test_differences_are_paired_and_corrected(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, runs / "theirs-s0", runs / "ours-s0")
    pairs = {(pair["first"], pair["second"]): pair for pair in found["differences"]}
    assert set(pairs) == {("theirs", "ours"), ("theirs", "theirs: sum"), ("ours", "ours: sum")}
    ours, theirs = (
        DecisionTable.read(runs / name / "decisions.parquet").select("test") for name in ("ours-s0", "theirs-s0")
    )
    delta = measures.correct(theirs.references["fused"], ours.labels) - measures.correct(
        ours.references["fused"], ours.labels
    )
    pair = pairs["theirs", "ours"]
    assert pair["accuracy"] == pytest.approx(delta.mean())
    assert pair["accuracy_ci"] == pytest.approx(measures.bootstrap_ci(delta, ours.units))
    assert pair["accuracy_p"] < 0.05 and pair["accuracy_p"] <= pair["accuracy_p_holm"] <= 3 * pair["accuracy_p"]
    found = compared(capsys, runs / "theirs-s0", runs / "ours-s0", runs / "ours-s1", "--baseline", "theirs")
    assert [(pair["first"], pair["second"]) for pair in found["differences"]] == [("ours", "theirs")]


def test_rows_and_classes_may_come_in_another_order(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = compared(capsys, runs / "ours-s0", runs / "theirs-s0")
    file = runs / "theirs-s0" / "decisions.parquet"
    table, turn = DecisionTable.read(file), [2, 0, 1]
    table = table.take(np.random.default_rng(0).permutation(len(table)))
    table.classes = [CLASSES[i] for i in turn]
    table.labels = np.argsort(turn)[table.labels]
    table.logits, table.references["fused"] = table.logits[..., turn], table.references["fused"][:, turn]
    table.write(file)
    after = compared(capsys, runs / "ours-s0", runs / "theirs-s0")
    for old, new in zip(before["rows"], after["rows"], strict=True):
        assert old["nll"] == pytest.approx(new["nll"]) and old["accuracy"] == pytest.approx(new["accuracy"])


def test_a_table_gets_a_decision_layer_fitted_here(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = DecisionTable.read(runs / "ours-s0" / "decisions.parquet")
    table.references = {}
    table.write(runs / "other.npz")
    found = compared(capsys, runs / "other.npz", runs / "theirs-s0", "--refit")
    kinds = [(row["configuration"], row["method"], row["kind"]) for row in found["rows"] if row["kind"] != "modality"]
    layer = ("decision layer", "fitted here")
    assert ("other", *layer) in kinds and ("theirs", *layer) in kinds and ("theirs", "concat", "trained") in kinds


def test_other_settings_are_another_configuration(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "ours-s2", "adaptive", 2, 3.0, learning_rate=0.2)
    found = compared(capsys, *(runs / f"ours-s{seed}" for seed in range(3)))
    assert list(dict.fromkeys(row["configuration"] for row in found["rows"])) == ["ours-s0", "ours-s2"]


def test_how_a_head_was_made_is_not_known_of_a_table_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, runs / "ours-s0", runs / "ours-s1" / "decisions.parquet")
    heads = [(row["method"], row["kind"]) for row in found["rows"] if row["method"] in ("adaptive", "own head")]
    assert heads == [("adaptive", "fitted"), ("own head", "in the table")]


def test_a_run_with_the_seed_of_another_is_no_further_seed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "again-s0", "adaptive", 0, 2.0)
    found = compared(capsys, *(runs / name for name in ("ours-s0", "ours-s1", "again-s0")))
    seeds = {row["configuration"]: row["seeds"] for row in found["rows"]}
    assert seeds == {"ours": 2, "again": 1}


def test_tables_of_one_name_are_told_apart(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [runs / name / "decisions.parquet" for name in ("ours-s0", "theirs-s0")]
    found = compared(capsys, *files)
    assert {row["configuration"]: row["seeds"] for row in found["rows"]} == {str(file): 1 for file in files}
    assert cli.main(["compare", str(files[0]), str(files[0])]) == 2
    assert f"{files[0]} is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.take(range(1, len(t))), r"bad and ours-s0 have different clips \(1 only in ours-s0, e.g. 'clip"),
        (lambda t: setattr(t, "classes", ["dog", "cow", "鳥"]), "different classes.*'cow'"),
        (lambda t: t.labels.__setitem__(0, (t.labels[0] + 1) % 3), "bad and ours-s0 disagree on the label of clip"),
        (lambda t: setattr(t, "splits", ["calibration"] * len(t)), "error: bad: no clip has split 'test'"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(runs: Path, capsys, change, message: str) -> None:
    file = runs / "theirs-s0" / "decisions.parquet"
    table = DecisionTable.read(file).select("test")
    table = change(table) or table
    (runs / "bad").mkdir()
    table.write(runs / "bad" / "decisions.parquet")
    assert cli.main(["compare", str(runs / "ours-s0"), str(runs / "bad")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_runs_of_one_name_in_different_folders_are_different_configurations(tmp_path: Path, capsys: Any) -> None:
    """Each head is compared with the sum of its own towers."""
    write_run(tmp_path / "a" / "run", "adaptive", 0, 3.0, learning_rate=0.1)
    write_run(tmp_path / "b" / "run", "adaptive", 1, 1.0, learning_rate=0.2)
    found = compared(capsys, tmp_path / "a" / "run", tmp_path / "b" / "run")
    rows = {(row["configuration"], row["method"]): row for row in found["rows"]}
    for name in ("a", "b"):
        pair = next(d for d in found["differences"] if d["second"] == f"{tmp_path / name / 'run'}: sum")
        assert pair["first"] == str(tmp_path / name / "run")
        own, total = (rows[pair["first"], method]["nll"] for method in ("adaptive", "sum"))
        assert pair["nll"] == pytest.approx(own - total, abs=1e-5)


def test_tables_of_one_name_are_not_seeds_of_one_another(tmp_path: Path, capsys: Any) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, "adaptive", ord(name), 2.0)
    tables = [tmp_path / name / "decisions.parquet" for name in ("a", "b")]
    found = compared(capsys, *tables)
    assert {row["seeds"] for row in found["rows"]} == {1}
    assert {row["configuration"] for row in found["rows"]} == {str(path) for path in tables}


@pytest.mark.parametrize("draws", ["0", "-3"])
def test_draws_must_be_positive(runs: Path, draws: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", str(runs / "ours-s0"), "--draws", draws])
    assert "must be an integer of at least 1" in capsys.readouterr().err


def test_text_csv_latex_and_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {"--csv": runs / "a" / "t.csv", "--latex": runs / "b" / "t.tex", "--figure": runs / "c" / "iv"}
    sources = [str(runs / name) for name in ("ours-s0", "ours-s1", "theirs-s0")]
    words = [word for pair in outputs.items() for word in map(str, pair)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(["compare", *sources, *words]) == 0
    shown = capsys.readouterr().out
    assert "adaptive (fitted)" in shown and "concat (trained)" in shown and "±" in shown
    assert "Holm correction over 3" in shown
    with outputs["--csv"].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["configuration"] == "ours" and float(rows[0]["accuracy_low"]) < float(rows[0]["accuracy"])
    latex = outputs["--latex"].read_text()
    assert latex.count(r"\midrule") == 2 and r"mean\_prob" in latex and latex.count(r"\mathbf") == 2
    assert "ours: adaptive" in (runs / "c" / "iv.svg").read_text()  # text, not outlines
    assert (runs / "c" / "iv.png").stat().st_size > 5000 and (runs / "c" / "iv.pdf").read_bytes()[:4] == b"%PDF"
    assert cli.main(["compare", *sources, "--baseline", "nobody"]) == 2
    assert "--baseline 'nobody' is not one of ours, theirs" in capsys.readouterr().err


def test_draws_of_a_clip_are_one_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three equal draws of every clip of one speaker carry no more than the clip: intervals are as wide."""
    table = write_run(tmp_path / "one", "adaptive", 0, 1.0)
    table.groups = ["one"] * len(table)
    rows = np.repeat(np.arange(len(table)), 3)
    tripled = DecisionTable(
        ids=[f"{i}-{d}" for d, i in enumerate(rows)], groups=["one"] * len(rows), splits=["test"] * len(rows),
        labels=table.labels[rows], logits=table.logits[rows], classes=table.classes, modalities=table.modalities,
        references={"fused": table.references["fused"][rows]}, clips=[str(i) for i in rows],
        draws=np.arange(len(rows)) % 3,
    )  # fmt: skip
    widths = []
    for name, one in (("one", table), ("three", tripled)):
        one.write(tmp_path / name / "decisions.parquet")
        found = compared(capsys, tmp_path / name / "decisions.parquet")
        assert found["ci_unit"] == "clip"
        assert (found["n_clips"], found["n"]) == (len(table), len(one))
        widths.append(np.ptp(found["rows"][0]["accuracy_ci"]))
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_a_clip_that_a_seed_does_not_answer_is_left_out_of_its_row(runs: Path, capsys) -> None:
    file = runs / "ours-s1" / "decisions.parquet"
    table = DecisionTable.read(file)
    table.logits[table.splits.index("test"), 0] = np.nan
    table.write(file)
    found = compared(capsys, runs / "ours-s0", runs / "ours-s1")
    rows = {row["method"]: row for row in found["rows"]}
    assert rows["audio"]["seeds"] == 2 and rows["audio"]["n"] == rows["adaptive"]["n"] - 1 == found["n_clips"] - 1
    lines = {line.split()[0]: line.split() for line in text_of(found).splitlines() if line.startswith(" ")}
    assert lines["audio"][:3] == ["audio", "2", str(found["n_clips"] - 1)], "what a row is of is printed with it"


def test_small_p_are_not_printed_as_nothing() -> None:
    found = {"nll": 0.1, "nll_ci": [0.0, 0.2], "nll_p": 1e-4, "nll_p_holm": 0.04}
    assert _difference(found, "nll", 1, 3) == ("+0.100 [+0.000, +0.200]", "<.001 (0.040)")


def test_what_is_odd_about_a_table_is_noted(tmp_path: Path) -> None:
    lines = ["id,label,logits.a.x,logits.a.y,logits.b.x,logits.b.y"]
    lines += [f"{i},{i % 2},{-i % 3},{i % 3},{i % 5},{-i % 5}" for i in range(40)]
    (tmp_path / "theirs.csv").write_text("\n".join(lines))
    notes = read_source(tmp_path / "theirs.csv", rung="temperature").notes
    assert any(note.startswith("theirs: no 'group' column: every clip counts as its own group") for note in notes)


@pytest.mark.parametrize("text", ["{", "[]", '{"arguments": 3}'])
def test_damaged_results_are_named(runs: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "ours-s0" / "results.json").write_text(text)
    assert cli.main(["compare", str(runs / "ours-s0"), str(runs / "theirs-s0")]) == 2
    assert "results.json: damaged, or not the results of a run" in capsys.readouterr().err


def test_labels_that_no_font_has_give_no_warning(tmp_path: Path) -> None:
    row = {"configuration": "鳥と犬", "method": "கிளி", "kind": "trained", "n": 3, "accuracy": 0.5, "nll": 1.0}
    row |= {"accuracy_ci": [0.4, 0.6], "nll_ci": [0.9, 1.1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = figures.save(figures.draw(figures.comparison, {"rows": [row]}), tmp_path / "f")
    assert "鳥と犬: கிளி" in files[1].read_text(encoding="utf-8")


def test_what_modalities_know_is_kept_where_clips_and_classes_are_put_in_order() -> None:
    table = replace(make_table(n=40, classes=3), known=np.array([[1, 1, 0], [1, 1, 1]]))
    order, rows = [2, 0, 1], np.arange(40)[::-1]
    taken = table.take(rows)
    other = replace(
        taken,
        classes=[table.classes[c] for c in order],
        labels=np.argsort(order)[taken.labels],
        logits=taken.logits[..., order],
        known=table.known_classes[:, order],
    )
    sources = [Source("one", table), Source("other", other)]
    align(sources)
    np.testing.assert_array_equal(sources[1].table.known_classes, table.known_classes)
    np.testing.assert_allclose(baselines(sources[1].table)["sum"], baselines(table)["sum"])


def test_only_the_seed_of_a_run_is_left_out_of_a_name() -> None:
    table = make_table(n=20, classes=3)
    runs = ["results2", "kinetics400", "again_seed12", "x-s3", "seed0"]
    sources = [Source(name, table, configuration=name) for name in runs] + [Source("table-s4", table)]
    names = list(dict.fromkeys(entry.configuration for entry in entries_of(sources)))
    assert names == ["results2", "kinetics400", "again", "x", "seed0", "table-s4"]


def test_notes_of_tables_of_one_name_say_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name / "t.csv" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        columns = [f"{matrix}.{c}" for matrix in ("logits.a", "logits.b", "reference.fused") for c in "xy"]
        lines = [",".join(["id,label,split", *columns])]
        file.write_text("\n".join(lines + [f"{i},{i % 2},test,2,0,0,2,0,3" for i in range(6)]))
    notes = compared(capsys, *files, "--draws", "20")["notes"]
    assert [note.split(": no 'group' column")[0] for note in notes] == list(map(str, files))


def test_labels_are_not_read_as_formulas_and_long_legends_fit() -> None:
    found = {"balance": {"sum": {"index": 0.5, "index_ci": [0.4, 0.6]}}}
    names = [rf"outputs/run $\frac$ number {i}" for i in range(8)]
    figure = figures.draw(figures.index_by_method, [found] * 8, names)
    assert names[0] in figures.themed_svg(figure, "salt")
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_long_names_that_differ_at_their_end_stay_apart() -> None:
    names = [f"people playing the instrument {c}" for c in "ab"]
    assert [figures._short(name) for name in names] == ["people play…strument a", "people play…strument b"]
    assert figures._short("x" * 22) == "x" * 22


def test_each_of_the_most_modalities_has_its_own_colour_in_print_and_in_both_themes_of_the_page() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    themes = [re.findall(rf"--m{m}: (#\w{{6}});", page) for m in range(MAX_MODALITIES)]
    for colours in (figures.COLOURS, *zip(*themes, strict=True)):
        assert len(set(colours)) == len(colours) == MAX_MODALITIES
    assert len(themes[0]) == 2 and len(figures.THEME) == 4 + MAX_MODALITIES
