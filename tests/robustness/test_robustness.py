"""`mmbalance robustness` on a tiny run: its clean cell is the run's own test row, and a second call goes on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from hf_mmbalance.cli import main
from hf_mmbalance.data import DataError
from hf_mmbalance.data.corruptions import CORRUPTIONS
from hf_mmbalance.decision.figures import draw
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics.measures import softmax
from hf_mmbalance.robustness import cells as cells_module
from hf_mmbalance.robustness import run as run_module
from hf_mmbalance.robustness.cells import Cell, cells_of, judge_cells
from hf_mmbalance.robustness.cli import ROBUSTNESS
from hf_mmbalance.robustness.figure import _curves
from hf_mmbalance.robustness.judge import clip_scores, judge, method_logits, render
from hf_mmbalance.robustness.run import RunOptions, load_run
from tests.training.tiny_runs import tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tiny_run(folder, "--num_train_epochs", "1", "--report_to", "none")
    return folder


def test_the_help_names_every_kind():
    kinds = ROBUSTNESS.split("kinds: ")[1].split("\n\n")[0]
    assert list(CORRUPTIONS) == re.sub(r"\(\w+\),?", "", kinds).replace(",", "").split()


def report_of(folder, capsys, *options: str) -> dict:
    assert main(["robustness", str(folder), "--json", "-", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_clean_cell_is_the_runs_own_test_row(folder, capsys):
    results = json.loads((folder / "results.json").read_text())
    rows = {row["method"]: row for row in results["rows"] if row["split"] == "test"}
    report = report_of(folder, capsys, "--kinds", "blur", "missing_vision", "--severities", "5", "--no_figures")
    clean = report["cells"][0]
    assert (clean["kind"], clean["severity"]) == ("clean", 0) and report["n"] == rows["fused"]["n"] == 15
    for method in set(rows) & set(clean["accuracy"]):
        assert clean["accuracy"][method]["mean"] == pytest.approx(rows[method]["accuracy"], abs=1e-9), method
        assert clean["accuracy"][method]["ci"] == pytest.approx(rows[method]["accuracy_ci"], abs=1e-9), method
        assert clean["nll"][method]["mean"] == pytest.approx(rows[method]["nll"], abs=1e-5), method
    assert {"audio", "vision", "sum", "fused"} <= set(rows) & set(clean["accuracy"])
    missing = report["cells"][2]
    assert missing["accuracy"]["vision"] == {"n": 0, "mean": None, "ci": None}
    assert missing["accuracy"]["audio"]["mean"] == clean["accuracy"]["audio"]["mean"]
    assert missing["accuracy"]["sum"]["mean"] == missing["accuracy"]["audio"]["mean"]


def test_a_second_call_goes_on_from_the_files(folder, tmp_path, monkeypatch):
    run, out = load_run(folder), tmp_path / "cells"
    calls, predict = [], cells_module.predict

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*arguments, **options)

    monkeypatch.setattr(cells_module, "predict", counted)
    with pytest.raises(KeyboardInterrupt):
        judge_cells(run, out, ["white_noise", "darkness"], [1, 5])
    assert sorted(path.name for path in out.iterdir()) == ["clean.npz", "settings.json", "white_noise-1.npz"]
    first = (out / "clean.npz").stat().st_mtime_ns
    cells = judge_cells(run, out, ["white_noise", "darkness"], [1, 5])
    assert len(calls) == 6 and [(c.kind, c.severity) for c in cells] == cells_of(["white_noise", "darkness"], [1, 5])
    assert (out / "clean.npz").stat().st_mtime_ns == first
    again = judge_cells(run, out, ["white_noise", "darkness"], [5, 1])
    assert len(calls) == 6 and len(again) == len(cells) == 5
    assert all(cell.logits.shape == (15, 3) for cell in cells)


def test_results_of_other_settings_are_not_mixed(folder, tmp_path):
    judge_cells(load_run(folder), tmp_path, ["darkness"], [1])
    with pytest.raises(DataError, match=r"different settings \(seed\)"):
        judge_cells(load_run(folder), tmp_path, ["darkness"], [1], seed=1)
    with pytest.raises(DataError, match=r"different settings \(clips\)"):
        judge_cells(load_run(folder, max_clips=4), tmp_path, ["darkness"], [1])
    for content in (b"half", b""):
        (tmp_path / "darkness-1.npz").write_bytes(content)
        with pytest.raises(DataError, match="darkness-1.npz cannot be read"):
            judge_cells(load_run(folder), tmp_path, ["darkness"], [1])
    np.savez(tmp_path / "darkness-1.npz", logits=np.zeros((15, 3)))
    with pytest.raises(DataError, match="darkness-1.npz cannot be read.*modality_logits"):
        judge_cells(load_run(folder), tmp_path, ["darkness"], [1])


def test_another_processor_makes_other_results(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    judge_cells(load_run(copy), tmp_path / "cells", ["darkness"], [1])
    config = copy / "processor_config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(DataError, match=r"different settings \(model\)"):
        judge_cells(load_run(copy), tmp_path / "cells", ["darkness"], [1])


def test_test_clips_that_are_not_the_runs_own_are_refused(folder, tmp_path):
    """A source without splits of its own deals its clips anew when some are added: train clips would be judged."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    table = DecisionTable.read(copy / "decisions.parquet")
    rows = np.asarray(table.splits) == "test"
    table.take(~rows | (np.cumsum(rows) > 1)).write(copy / "decisions.parquet")
    with pytest.raises(
        DataError, match="synthetic has different test clips or labels from the run in .*: it was changed since"
    ):
        load_run(copy)


def test_curves_and_table(folder, tmp_path, capsys):
    names = ["--kinds", "babble", "darkness", "--severities", "1", "3", "--max_clips", "6", "--out", str(tmp_path)]
    assert main(["robustness", str(folder), *names]) == 0
    said = capsys.readouterr().out
    assert "6 test clips" in said and "darkness 3" in said and "accuracy of the fusion minus that of" in said
    written = {path.name for path in tmp_path.iterdir()}
    assert {"accuracy.png", "accuracy.svg", "nll.png", "nll.svg"} <= written
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kinds", "darknes"], "did you mean 'darkness'"),
        (["--severities", "7"], "from 1 to 5, got 7"),
        (["--max_clips", "0"], "max_clips must be at least 1"),
    ],
)
def test_bad_arguments_are_one_sentence(folder, capsys, options, message):
    assert main(["robustness", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_data_set_on_the_hub_is_read_at_the_commit_that_the_run_read(monkeypatch):
    data = {"name": "me/clips", "revision": "1" * 40}
    trained = {
        "arguments": {"dataset": "me/clips@v1", "revision": None, "group_column": "actor", "clip_seed": 3,
                      "data_config": "fold3", "per_device_eval_batch_size": 4},
        "provenance": {"data": data},
    }  # fmt: skip
    monkeypatch.setattr(run_module, "load_clips", lambda name, **options: (name, options))
    expected = (f"me/clips@{'1' * 40}", {"group_column": "actor", "seed": 3, "config": "fold3"})
    assert RunOptions.of(trained).read_clips() == expected
    fused = {
        "arguments": {"dataset": "me/clips", "data.revision": ["v1"], "batch_size": 4, "draws": 1},
        "classes": ["a", "b"], "heads": {}, "provenance": {"data": data},
    }  # fmt: skip
    monkeypatch.setattr(run_module, "load_dataset", lambda arguments, **more: [vars(arguments)])
    read = RunOptions.of(fused).read_clips()
    assert read["dataset"] == f"me/clips@{'1' * 40}" and "data.revision" not in read


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["robustness", str(tmp_path / "nothing")]) == 2
    assert "results.json" in capsys.readouterr().err
    results = {
        "arguments": {"dataset": "x", "per_device_eval_batch_size": 1},
        "provenance": {"data": {"revision": None}},
    }
    for text in ("{", "[]", json.dumps(results)):
        (tmp_path / "results.json").write_text(text)
        assert main(["robustness", str(tmp_path)]) == 2
        assert "damaged" in capsys.readouterr().err


def cell(kind: str, severity: int, logits: np.ndarray, mask: np.ndarray, trust: np.ndarray | None = None) -> Cell:
    return Cell(kind, severity, logits.sum(1), logits, mask, trust)


def test_sums_against_bayes_rule():
    p, q, prior = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.1, 0.4]), np.array([0.5, 0.3, 0.2])
    logits = np.log(np.stack([[p, q], [p, q]])) + 3.0  # not normalised
    mask = np.array([[True, True], [False, True]])
    found = method_logits(cell("clean", 0, logits, mask), ["audio", "vision"], np.log(prior))
    np.testing.assert_allclose(softmax(found["sum"]), [p * q / (p @ q), q])
    both = p * q / prior
    np.testing.assert_allclose(softmax(found["prior_sum"]), [both / both.sum(), q])
    assert np.isnan(found["audio"][1]).all() and np.isfinite(found["audio"][0]).all()


def test_families_average_over_cells_by_clip():
    rng = np.random.default_rng(0)
    mask, labels = np.ones((8, 2), bool), rng.integers(0, 3, 8)
    cells = [cell("clean", 0, rng.normal(size=(8, 2, 3)), mask, rng.random((8, 2)))]
    for kind in ("babble", "darkness", "blur", "conflict"):
        cells.append(cell(kind, 2, rng.normal(size=(8, 2, 3)), mask, rng.random((8, 2))))
    prior = np.log(np.full(3, 1 / 3))
    report = judge(cells, labels, ["g"] * 8, ["audio", "vision"], prior, ["babble", "blur"])
    assert [(row["family"], row["cells"]) for row in report["families"]] == [("clean", 1), ("seen", 2), ("unseen", 1)]
    by_hand = [clip_scores(c, labels, ["audio", "vision"], prior) for c in cells]
    seen, unseen = report["families"][1], report["families"][2]
    right = [by_hand[1]["accuracy"], by_hand[3]["accuracy"]]
    assert seen["accuracy"]["audio"]["mean"] == pytest.approx(np.mean([part["audio"] for part in right]))
    assert seen["gain"]["audio"]["mean"] == pytest.approx(np.mean([part["fused"] - part["audio"] for part in right]))
    assert unseen["trust"]["vision"]["mean"] == pytest.approx(cells[2].modality_trust[:, 1].mean())
    assert report["ci_unit"] == "clip" and set(CORRUPTIONS) >= {"babble", "darkness"}


def test_the_page_is_true():
    """Kinds and halves in docs/robustness.md are those of the code, and its example runs."""
    page = (Path(__file__).parents[2] / "docs" / "robustness.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:5] for line in page.splitlines() if line.startswith("| `")]
    named = {name.strip(" `"): half.strip() for first, _, _, half in rows for name in first.split(",")}
    assert named == {name: kind.half or "" for name, kind in CORRUPTIONS.items()}
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    names: dict = {}
    exec(code, names)
    assert names["draws"].draws[:3] == [0, 1, 2]


def test_the_legend_of_curves_of_one_kind_fits():
    def row(kind: str, severity: int) -> dict:
        found = {"mean": 0.5, "ci": [0.4, 0.6], "n": 3}
        methods = ("audio", "vision", "sum", "prior_sum", "fused")
        return {"kind": kind, "severity": severity, "seen": False, "accuracy": dict.fromkeys(methods, found)}

    figure = draw(_curves, row("clean", 0), [row("babble", 1), row("babble", 5)], "accuracy")
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1


def test_a_number_of_fewer_clips_is_marked():
    """Two of three clips have sound; without their pictures, `vision` is of the third clip only."""
    logits = np.log(np.full((3, 2, 2), 0.5)) + np.array([1.0, 0.0])
    mask = np.array([[True, True], [True, True], [False, True]])
    cells = [
        Cell("clean", 0, logits[:, 1], logits, mask, None),
        Cell("missing_vision", 1, logits[:, 1], logits, mask & [[True, False], [True, False], [True, True]], None),
    ]
    report = judge(cells, [0, 0, 1], list("abc"), ["audio", "vision"], np.log([0.5, 0.5]), seen=[])
    clean, missing = (line.split() for line in render(report).splitlines() if line.startswith(("clean  ", "missing")))
    assert clean[1:4] == ["100.0~", "66.7", "66.7"] and missing[2:5] == ["100.0~", "0.0~", "66.7"]
    assert "~ from fewer clips" in render(report)
