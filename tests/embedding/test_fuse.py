"""Two models fused: held-out logits, the decision layer, the saved model, and what is said of few labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

from hf_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.cli import main
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.embedding.advice import learning_curve, where_to_label
from hf_mmbalance.embedding.fuse import FuseError, FuseOptions, Rows, fit, held_out_decisions
from hf_mmbalance.embedding.outcome import judge, render
from hf_mmbalance.embedding.stored import Embeddings
from hf_mmbalance.metrics import measures
from tests.media_factory import write_clip

from ..training.tiny_runs import AUDIO, VISION


def rows(n=80, classes=4, width=12, spread=(1.2, 0.8), seed=0, clips_per_group=1) -> Rows:
    """Clips whose features are Gaussian around a mean of their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = np.random.default_rng(99).normal(size=(2, classes, width))
    features = {
        name: scale * means[m][labels] + rng.normal(size=(n, width))
        for m, (name, scale) in enumerate(zip(("audio", "vision"), spread, strict=True))
    }
    ids = np.array([f"clip {i}" for i in range(n)])
    groups = np.array([f"group {i // clips_per_group}" for i in range(n)])
    names = [f"class {c}" for c in range(classes)]
    return Rows(ids, ids, groups, labels, np.zeros(n, int), features, features, {}, names, np.ones((2, classes), bool))


def test_fusing_beats_the_better_tower_on_clips_that_nothing_saw():
    fitted = fit(rows(spread=(0.7, 0.6)), FuseOptions())
    new = rows(n=400, spread=(0.7, 0.6), seed=1)
    unimodal, fused = fitted.unimodal(new), fitted.fused(new)
    single = [measures.accuracy(unimodal[:, m], new.labels) for m in range(2)]
    assert measures.accuracy(fused, new.labels) > max(single) + 0.02


def test_held_out_numbers_are_not_those_of_the_clips_that_were_learned():
    """Labels without any relation to the features: out of fold, nothing must be found."""
    noise = rows(spread=(0.0, 0.0), n=120)
    fitted = fit(noise, FuseOptions())
    decided = held_out_decisions(noise, fitted, FuseOptions())
    assert measures.accuracy(decided, noise.labels) < 0.4
    assert abs(measures.nll(decided, noise.labels) - np.log(4)) < 0.1


def test_clips_of_a_group_are_never_on_both_sides():
    grouped = rows(clips_per_group=4)
    folds = fit(grouped, FuseOptions()).folds
    for group in np.unique(grouped.groups):
        assert len(np.unique(folds[grouped.groups == group])) == 1
    known = fit(grouped, FuseOptions(known_groups=True)).folds
    assert any(len(np.unique(known[grouped.groups == group])) > 1 for group in np.unique(grouped.groups))


def test_draws_of_a_clip_count_as_one_clip_and_stay_in_one_fold():
    clean = rows()
    twice = np.repeat(np.arange(80), 2)
    doubled = clean.take(twice)
    doubled.ids = np.array([f"row {i}" for i in range(160)])
    doubled.draws = np.tile([0, 1], 80)
    found, expected = fit(doubled, FuseOptions()), fit(clean, FuseOptions())
    assert (found.folds[::2] == found.folds[1::2]).all()
    for name, head in expected.heads.items():
        assert found.heads[name].shrinkage == head.shrinkage
        assert np.abs(found.heads[name](clean.features[name]) - head(clean.features[name])).max() < 0.02


def test_a_missing_modality_is_left_out():
    some = rows()
    some.features["vision"][::5] = np.nan
    fitted = fit(some, FuseOptions())
    assert np.isnan(fitted.logits[::5, 1]).all() and not np.isnan(fitted.logits[1::5, 1]).any()
    assert np.isfinite(fitted.fused(some)).all()


def test_too_few_labels_are_refused_with_what_to_do():
    one = rows().take(np.flatnonzero(rows().labels == 0))
    with pytest.raises(FuseError, match="audio: a head needs clips of at least two classes.*label more clips"):
        fit(one, FuseOptions())


def test_the_curve_is_judged_on_clips_that_were_not_learned():
    points = learning_curve(rows(n=160, spread=(0.5, 0.4)), FuseOptions())
    assert [(point["labels"], point["judged_on"]) for point in points] == [(40, 120), (80, 80)]
    assert points[0]["nll"]["fused"] > points[1]["nll"]["fused"]
    low, high = points[1]["ci"]["fused"]
    assert low <= points[1]["accuracy"]["fused"] <= high


def test_advice_names_the_class_that_is_missed():
    some = rows(n=40)
    fused = np.eye(4)[some.labels] * 5.0
    fused[some.labels == 2] = np.eye(4)[1] * 5.0
    told = where_to_label(some, np.stack([fused, fused], axis=1), fused)
    assert told == ["class 'class 2': 10 of its 10 clips are wrong, most often predicted as 'class 1'"]


def test_the_unit_of_intervals_and_n_are_those_of_the_split_that_is_reported():
    """Four groups are labelled and three tested: seven in all, but each split's intervals are over clips."""
    labelled, test = rows(n=80, clips_per_group=20), rows(n=60, clips_per_group=20, seed=1)
    test.ids, test.clips, test.groups = (np.array([f"test {name}" for name in part]) for part in (
        test.ids, test.clips, test.groups))  # fmt: skip
    options = FuseOptions()
    results, _ = judge(labelled, test, fit(labelled, options), options)
    assert results["ci_unit"] == "clip" and {row["ci_unit"] for row in results["rows"]} == {"clip"}
    printed = render({**results, "dataset": "clips", "notes": []})
    assert printed.count("(intervals: bootstrap over clips)") == 2 and "over groups" not in printed


# From the command line, on real files.


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    for name, tower in (("audio", AUDIO), ("vision", VISION)):
        config = AutoConfig.for_model(**tower)
        model = AutoModel.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("audio", "vision")}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """28 clips of two classes that differ in pitch and in colour, four of them without a label."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    lines = ["path,label"]
    for i in range(28):
        high = i % 2
        tone, red = 300 + 900 * high + rng.normal(0, 100), 60 + 120 * high + rng.integers(-20, 20)
        write_clip(folder / f"{i}.mp4", seconds=0.4, tone=tone, colour=(int(red), 60, 90), size=(32, 32))
        lines.append(f"{i}.mp4,{('low', 'high')[high] if i < 24 else ''}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder / "clips.csv"


def fuse(table: Path, out: Path, towers: dict[str, str], *more: str) -> int:
    models = [word for name, path in towers.items() for word in (f"--{name}_model", path)]
    return main(["fuse", "--dataset", str(table), *models, "--frames", "2", "--out", str(out), *more])


@pytest.fixture(scope="module")
def fused(table, towers, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fused") / "model"
    assert fuse(table, out, towers) == 0
    return out


def test_the_saved_model_answers_as_the_table_says(fused):
    model = MMBalanceForAudioVisualClassification.from_pretrained(fused).eval()
    stored = Embeddings.read(fused / "embeddings")
    answers = {row["id"]: row for row in csv.DictReader((fused / "answers.csv").open())}
    assert set(answers) == {f"{i}.mp4" for i in range(24, 28)}
    processor = AutoProcessor.from_pretrained(fused, trust_remote_code=True)
    folder = Path(json.loads((fused / "results.json").read_text())["arguments"]["dataset"]).parent
    for name, row in answers.items():
        with torch.no_grad():
            output = model(**processor(video=str(folder / name)))
        place = stored.ids.index(name)
        for m, modality in enumerate(stored.modalities):
            assert np.abs(output.modality_features[m][0].numpy() - stored.features[modality][place]).max() < 1e-5
        probability = output.logits.softmax(-1)[0]
        assert model.config.id2label[int(probability.argmax())] == row["label"]
        assert float(probability.max()) == pytest.approx(float(row["probability"]), abs=1e-4)


def test_the_report_has_held_out_numbers_a_curve_and_the_origin(fused):
    results = json.loads((fused / "results.json").read_text())
    assert {row["method"] for row in results["rows"]} == {"audio", "vision", "sum", "prior_sum", "fused"}
    assert {row["split"] for row in results["rows"]} == {"calibration"}
    assert results["n_per_split"] == {"calibration": 24} and results["heads"] == {
        "audio": "fitted",
        "vision": "fitted",
    }
    assert results["curve"][-1]["labels"] == 24
    assert "clips without a label, which are only predicted: 4" in results["notes"]
    decisions = DecisionTable.read(fused / "decisions.parquet")
    accuracy = measures.accuracy(decisions.references["fused"], decisions.labels)
    row = next(row for row in results["rows"] if row["method"] == "fused")
    assert row["n"] == 24 and row["accuracy"] == pytest.approx(accuracy) and accuracy > 0.8


def test_methods_at_chance_are_named(table, towers, tmp_path, capsys):
    labels = table.parent / "labels.csv"  # independent of pitch and colour
    labels.write_text("path,label\n" + "".join(f"{i}.mp4,{'ab'[i // 2 % 2]}\n" for i in range(24)))
    assert fuse(labels, tmp_path / "model", towers) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "model/results.json").read_text())
    low = ", ".join(row["method"] for row in results["rows"] if row["accuracy_ci"][0] <= 0.5)
    assert "audio" in low  # its heads learn nothing of such labels
    note = f"at chance on these 24 clips: {low} (naming the largest class every time gives 50.0)"
    assert note in results["notes"] and f"note: {note}" in printed


def test_it_is_an_ordinary_model_with_an_ordinary_card(fused, table, capsys):
    assert type(AutoModel.from_pretrained(fused, trust_remote_code=True)).__name__.startswith("MMBalance")
    assert main(["predict", str(table.parent / "3.mp4"), "--model", str(fused), "--json", "-"]) == 0
    answer = json.loads(capsys.readouterr().out)[0]["answer"]
    assert answer[0]["label"] == "high"
    assert main(["card", str(fused), "--repo_id", "user/fused"]) == 0
    text = (fused / "README.md").read_text()
    assert "without its fold" in text and "read after every epoch" not in text


def test_features_that_are_there_are_used_again(fused, table, towers, tmp_path, capsys):
    capsys.readouterr()
    shared = str(fused / "embeddings")
    assert fuse(table, tmp_path / "again", towers, "--embeddings", shared, "--json", "-") == 0
    again = json.loads(capsys.readouterr().out)
    first = json.loads((fused / "results.json").read_text())
    assert again["rows"] == first["rows"]


@pytest.mark.parametrize(("option", "value"), [("--rung", "temprature"), ("--seed", "-1")])
def test_options_that_cannot_be_used_are_refused_before_the_towers_run(table, towers, tmp_path, capsys, option, value):
    assert fuse(table, tmp_path / "model", towers, option, value) == 2
    assert f"error: {option} {value!r}".replace("'-1'", "-1") in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_options_of_the_data_set_are_named_as_typed_and_none_is_ignored(table, towers, tmp_path, capsys):
    assert fuse(table, tmp_path / "model", towers, "--frames", "0") == 2
    assert "error: --frames must be at least 1" in capsys.readouterr().err
    (tmp_path / "rows.parquet").write_bytes(b"")  # a built data set, whose classes have names
    assert fuse(tmp_path, tmp_path / "model", towers, "--classes", "low", "high") == 2
    assert f"--classes is not an option of {tmp_path}" in capsys.readouterr().err


def test_half_precision_does_not_round_what_is_saved(table, towers, tmp_path):
    assert fuse(table, tmp_path / "half", towers, "--dtype", "bfloat16") == 0
    model = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path / "half")
    tower = AutoModel.from_pretrained(towers["vision"]).state_dict()
    saved = model.vision_model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in tower.items() if name in saved)
    for head in model.unimodal_heads:
        assert not torch.equal(head.weight, head.weight.bfloat16().float())


def test_a_folder_with_something_in_it_is_refused(table, towers, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert fuse(table, tmp_path, towers) == 2
    assert "is not empty: give a new folder" in capsys.readouterr().err


def test_backbones_without_any_label_are_refused(table, towers, tmp_path, capsys):
    bare = table.parent / "bare.csv"
    bare.write_text("path\n" + "\n".join(f"{i}.mp4" for i in range(6)) + "\n")
    assert fuse(bare, tmp_path / "out", towers) == 2
    assert "no clip has a label; name the classes with --classes" in capsys.readouterr().err
    assert fuse(bare, tmp_path / "out", towers, "--classes", "low", "high") == 2
    assert "the audio model is a backbone without a head: label some clips" in capsys.readouterr().err


# Classifiers, which bring heads and labels of their own.


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory) -> dict[str, str]:
    from transformers import AutoModelForAudioClassification, AutoModelForImageClassification

    folder = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(1)
    for name, tower, kind, labels in (
        ("audio", AUDIO, AutoModelForAudioClassification, ["High", "noise", "LOW"]),
        ("vision", VISION, AutoModelForImageClassification, ["blue", "red"]),
    ):
        config = AutoConfig.for_model(**tower, id2label=dict(enumerate(labels)))
        model = kind.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
    (folder / "map.json").write_text(json.dumps({"vision": {"blue": "low", "red": "high"}}))
    return {name: str(folder / name) for name in ("audio", "vision")}


def test_classifiers_keep_their_heads_and_say_what_was_mapped(table, classifiers, tmp_path, capsys):
    out = tmp_path / "out"
    assert fuse(table, out, classifiers) == 2
    assert "have nothing in common: map the labels to the classes with --label_map" in capsys.readouterr().err
    map_file = str(Path(classifiers["audio"]).parent / "map.json")
    assert fuse(table, out, classifiers, "--label_map", map_file) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["heads"] == {"audio": "own", "vision": "own"}
    told = [note for note in results["notes"] if note.startswith(("audio:", "vision:"))]
    assert "audio: low <- LOW" in told and "vision: low <- blue" in told
    assert any("left out, because no class has such a name: noise" in note for note in told)
    assert any(note.startswith("frames are pooled by") for note in results["notes"])
    model = MMBalanceForAudioVisualClassification.from_pretrained(out).eval()
    decisions = DecisionTable.read(out / "decisions.parquet")
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=True)
    with torch.no_grad():
        output = model(**processor(video=[str(table.parent / name) for name in decisions.ids[:3]]))
    assert np.abs(output.modality_logits.numpy() - decisions.logits[:3]).max() < 1e-4


def test_without_any_label_two_classifiers_are_added_as_they_are(table, classifiers, tmp_path, capsys):
    bare = table.parent / "bare2.csv"
    bare.write_text("path\n" + "\n".join(f"{i}.mp4" for i in range(6)) + "\n")
    labels = tmp_path / "map.json"
    labels.write_text(json.dumps({"vision": {"blue": "LOW", "red": "High"}}))
    out = tmp_path / "out"
    assert fuse(bare, out, classifiers) == 2
    message = capsys.readouterr().err
    assert "map the labels to the classes with --label_map; or name the classes with --classes" in message
    assert fuse(bare, out, classifiers, "--label_map", str(labels)) == 0  # which says what the classes are, too
    assert json.loads((out / "results.json").read_text())["classes"] == ["High", "LOW"]
    assert "no labels: the two classifiers' log-probabilities are added" in capsys.readouterr().out
    model = MMBalanceForAudioVisualClassification.from_pretrained(out).eval()
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=True)
    with torch.no_grad():
        output = model(**processor(video=str(table.parent / "0.mp4")))
    expected = output.modality_logits.log_softmax(-1).sum(1).log_softmax(-1)
    assert torch.allclose(output.logits.log_softmax(-1), expected, atol=1e-5)
    assert len(list(csv.DictReader((out / "answers.csv").open()))) == 6
