"""Command line over YAML over defaults, and what is said of invalid options."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from hf_mmbalance.data import DataError
from hf_mmbalance.data.sources import typed_name
from hf_mmbalance.training.arguments import (
    DataArguments,
    MMBalanceTrainingArguments,
    ModelArguments,
    parse_arguments,
    read_config,
)
from hf_mmbalance.training.cli import train
from hf_mmbalance.training.decision_layer import DecisionArguments
from hf_mmbalance.training.help import SCREEN


SYNTHETIC = read_config("synthetic")


@pytest.fixture
def write(tmp_path):
    def write(**settings) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


def parse(*argv: str):
    return parse_arguments([*argv, "--use_cpu", "true"])


def test_the_command_line_rules_over_the_file_and_the_file_over_defaults(write):
    config = write(dataset="synthetic", classes=4, learning_rate=0.5, fusion="sum", num_train_epochs=3)
    run = parse("--config", config, "--learning_rate", "0.25", "--noise=0.1", "--seed", "7")
    assert (run.source.classes, run.source.noise, run.source.frames) == (4, 0.1, 4)
    assert (run.model.fusion, run.model.audio_config) == ("sum", None)  # a file takes the place of the built-in recipe
    assert (run.training.learning_rate, run.training.num_train_epochs, run.training.seed) == (0.25, 3, 7)
    assert parse(f"--config={config}").training.learning_rate == 0.5


def test_the_file_may_name_the_dataset_and_the_command_line_another(write, caplog):
    assert parse("--config", write(dataset="grid", label="colour")).source.label == "colour"
    assert parse("--config", write(dataset="grid"), "--dataset", "synthetic").data.dataset == "synthetic"
    other = parse("--config", write(dataset="grid", label="colour", frames=3), "--dataset", "synthetic")
    assert (other.data.dataset, other.source.frames) == ("synthetic", 3)
    assert "ignored for synthetic: label of 'grid'" in caplog.text
    with pytest.raises(ValueError, match="label is not an option of dataset 'synthetic', but of grid"):
        parse("--config", write(dataset="synthetic", label="colour"))


def test_without_a_file_synthetic_means_the_built_in_recipe():
    run = parse()
    assert run.data.dataset == "synthetic" and run.model.audio_config == SYNTHETIC["audio_config"]
    assert run.training.num_train_epochs == SYNTHETIC["num_train_epochs"]
    assert parse("--num_train_epochs", "1").training.num_train_epochs == 1
    assert parse("--dataset", "grid").model.audio_config is None


def test_a_key_that_no_option_has(write):
    with pytest.raises(ValueError, match="recipe.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'?"):
        parse("--config", write(learning_rat=1))
    with pytest.raises(ValueError, match="unknown key 'xyzzy'$"):
        parse("--config", write(xyzzy=1))
    with pytest.raises(ValueError, match="recipe.yaml: .*group_pattern is not an option of .*, but of folder"):
        parse("--config", write(group_pattern="^(.)"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": "fast"}, "learning_rate: 'fast' must be float"),
        ({"per_device_train_batch_size": 16.5}, "per_device_train_batch_size: 16.5 must be int"),
        ({"modality_dropout": 0.3}, r"modality_dropout: 0.3 is not a list; write \[0.3\]"),
        ({"modality_dropout": [0.1, "much"]}, "modality_dropout: .* must be float"),
    ],
)
def test_values_of_the_wrong_kind(write, settings, words):
    with pytest.raises(ValueError, match=words):
        parse("--config", write(**settings))


def test_numbers_that_yaml_takes_for_text(tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rate: 1e-4\n")  # YAML 1.1 wants 1.0e-4
    assert parse("--config", str(tmp_path / "a.yaml")).training.learning_rate == 1e-4


def test_text_that_yaml_takes_for_something_else(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "dataset: 2024\nrun_name: 7\ntrainable_layers: 0\nsave_strategy: no\nlogging_strategy: no\n"
        "load_best_model_at_end: no\nresume_from_checkpoint: true\n"
    )
    run = parse("--config", str(tmp_path / "a.yaml"))
    assert (run.data.dataset, run.training.run_name, run.model.trainable_layers) == ("2024", "7", "0")
    assert (run.training.save_strategy, run.training.logging_strategy) == ("no", "no")
    assert run.training.resume_from_checkpoint is True
    (tmp_path / "a.yaml").write_text("dataset: [a, b]\n")
    with pytest.raises(ValueError, match=r"a.yaml: dataset: \['a', 'b'\] is not the name of one dataset"):
        parse("--config", str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"a: [1", "is not valid YAML"),
        (b"- 1\n", "expected `name: value`"),
        (b"\xff\xfe\x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, content, words):
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.yaml.*{words}"):
        parse("--config", str(path))


def test_a_packaged_config_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid_digits").mkdir()  # a folder is not a config
    assert parse("--config", "grid_digits").source.label == "digit"
    (tmp_path / "synthetic").write_text("dataset: grid\nlabel: colour\n")
    assert parse("--config", "synthetic").source.label == "colour"  # the file is what was named
    with pytest.raises(ValueError, match="packaged configs: crema_d, .*, synthetic; did you mean 'grid_digits'"):
        parse("--config", "grid_digit")


def test_a_config_option_without_a_file(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--config"])
    assert "--config: expected one argument" in capsys.readouterr().err


def test_an_option_that_there_is_not(capsys):
    with pytest.raises(ValueError, match="unknown option --learning_rat; did you mean '--learning_rate'?"):
        parse("--learning-rat", "1")
    with pytest.raises(ValueError, match="--data_dir is not an option of dataset 'synthetic', but of grid"):
        parse("--data_dir", "x")
    with pytest.raises(ValueError, match="write --option VALUE, e.g. --dataset my_clips"):
        parse("my_clips")
    with pytest.raises(SystemExit):
        parse("--learning_rate", "fast")
    assert "invalid float value: 'fast'" in capsys.readouterr().err
    assert train(["--learning_rat", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_both_spellings_of_an_option_and_both_of_a_list():
    assert parse("--learning-rate=0.5", "--output-dir", "a-b").training.learning_rate == 0.5
    for words in (["0.1", "0.2"], ["[0.1, 0.2]"]):
        assert parse("--modality_dropout", *words).model.modality_dropout == [0.1, 0.2]
    assert parse("--modality-dropout=[0.1,0.2]").model.modality_dropout == [0.1, 0.2]
    assert parse("--fusion_options", "{}", "--train_corruptions", "[blur]").data.train_corruptions == ["blur"]


def test_messages_name_the_option_as_it_is_typed(capsys):
    assert train(["--early_stopping_patience", "0", "--use_cpu", "true"]) == 2
    assert "error: --early_stopping_patience 0 must be at least 1, with --eval_strategy 'epoch'" in (
        capsys.readouterr().err
    )


def test_the_first_screen_names_options_with_their_defaults():
    run = parse("--dataset", "user/name")
    values = run.to_dict() | {"config": None, "resume_from_checkpoint": None, "push_to_hub": False}
    shown = [entry for group in SCREEN.values() for entry in group]
    assert 20 <= len(shown) <= 26
    for name, _, text in shown:
        assert name in values, name
        default = re.search(r"default ([^;)]+)", text) or re.search(r"(\S+) \(default\)", text)
        if default:
            value = values[name] if name != "dataset" else "synthetic"
            said = (" ".join(map(str, value)) or "none") if isinstance(value, list) else str(value).removesuffix(".0")
            assert said == default[1], name


def test_options_given_as_json(write):
    options = {"calibration": "vector"}
    assert parse("--fusion_options", '{"calibration": "vector"}').model.fusion_options == options
    assert parse("--config", write(fusion_options=options)).model.fusion_options == options
    assert parse("--audio_config", '{"model_type": "wav2vec2"}').model.audio_config == {"model_type": "wav2vec2"}
    with pytest.raises(ValueError, match="--fusion_options '{calibration' is not valid JSON"):
        parse("--fusion_options", "{calibration")
    with pytest.raises(ValueError, match="--vision_config '3': expected a JSON object"):
        parse("--vision_config", "3")


def test_a_named_tower_takes_the_place_of_a_configured_one(write):
    config = write(audio_config={"model_type": "wav2vec2"}, vision_model="a/b", audio_max_length=32)
    run = parse("--config", config, "--audio_model", "c/d", "--vision_config", '{"model_type": "vit"}')
    assert (run.model.audio_model, run.model.audio_config) == ("c/d", None)
    assert (run.model.vision_model, run.model.vision_config) == (None, {"model_type": "vit"})
    revised = write(audio_model="a/b", audio_revision="v1", vision_config={"model_type": "vit"}, audio_max_length=32)
    trained = parse("--config", revised, "--model_name_or_path", "outputs/a").model
    assert {trained.audio_model, trained.audio_revision, trained.vision_config, trained.audio_max_length} == {None}


def test_a_data_set_takes_the_place_of_features(write):
    config = write(embeddings="features", num_train_epochs=3)
    assert parse("--config", config).data.embeddings == "features"
    assert parse("--config", config, "--dataset", "synthetic").data.embeddings is None


def test_options_of_clips_are_refused_where_only_features_are_read(write):
    """What is in a file is of the clips that were embedded, which need not be here."""
    for settings in ({"dataset": "gone/clips.csv"}, {}, {"embeddings": "other"}):
        config = write(label="colour", calibration_fraction=0.2, fusion="sum", **settings)
        run = parse("--config", config, "--embeddings", "features")
        assert (run.data.embeddings, run.model.fusion) == ("features", "sum")
    assert parse("--config", config).data.embeddings == "other"
    for option in ("--frames=3", "--clip_seed=1"):
        with pytest.raises(ValueError, match=f"{option[:-2]} says how clips are read, but --embeddings reads"):
            parse("--embeddings", "features", option)


def test_the_seed_of_clips_is_not_the_seed_of_training():
    run = parse("--seed", "3", "--clip_seed", "11")
    assert (run.training.seed, run.source.seed) == (3, 11)
    assert parse("--seed", "3").source.seed == 0
    assert (run.to_dict()["seed"], run.to_dict()["clip_seed"]) == (3, 11)


def test_the_configuration_of_a_data_set_is_not_the_file_of_options(write):
    run = parse("--config", write(learning_rate=0.5), "--dataset", "user/name", "--data_config", "fold3")
    assert (run.training.learning_rate, run.source.config) == (0.5, "fold3")
    assert run.to_dict()["data_config"] == "fold3" and "config" not in run.to_dict()
    assert parse("--config", write(dataset="user/name", data_config="fold3")).source.config == "fold3"


def test_the_measure_that_selects_says_itself_which_way_is_better():
    assert parse().training.greater_is_better is False  # nll
    assert parse("--metric_for_best_model", "accuracy").training.greater_is_better is True
    assert parse("--metric_for_best_model", "eval_accuracy_audio").training.greater_is_better is True
    assert parse("--metric_for_best_model", "loss").training.greater_is_better is False
    chosen = parse("--metric_for_best_model", "accuracy", "--greater_is_better", "false")
    assert chosen.training.greater_is_better is False
    last = ("--load_best_model_at_end", "false")
    assert parse(*last).training.metric_for_best_model is None
    assert parse(*last, "--lr_scheduler_type", "reduce_lr_on_plateau").training.metric_for_best_model == "nll"


@pytest.mark.parametrize("options", [("2", "--eval_strategy", "no", "--load_best_model_at_end", "false"), ("0",)])
def test_early_stopping_that_could_never_or_would_always_stop(options):
    with pytest.raises(ValueError, match="early_stopping_patience=. must be at least 1, with eval_strategy"):
        parse("--early_stopping_patience", *options)


def test_the_best_weights_need_a_checkpoint_for_each_evaluation():
    with pytest.raises(ValueError, match="eval_strategy=.no. and save_strategy=.epoch.: .*best_model_at_end false"):
        parse("--eval_strategy", "no")
    assert parse("--eval_strategy", "no", "--load_best_model_at_end", "false").training.save_strategy == "epoch"
    assert parse("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "best").training.eval_steps == 2


def test_one_process_trains_on_one_gpu_whatever_there_is(monkeypatch):
    monkeypatch.setattr(MMBalanceTrainingArguments, "_setup_devices", property(lambda self: None), raising=False)
    monkeypatch.setattr(MMBalanceTrainingArguments, "_n_gpu", 4, raising=False)
    assert MMBalanceTrainingArguments(output_dir="a").n_gpu == 1


def test_a_run_knows_its_arguments_but_no_token(tmp_path):
    with pytest.raises(ValueError, match="hub_token is not accepted: log in with `hf auth login`, or set HF_") as no:
        parse("--hub_token", "hf_secret", "--classes", "4", "--output_dir", str(tmp_path))
    assert "hf_secret" not in str(no.value)
    run = parse("--classes", "4", "--output_dir", str(tmp_path))
    kept = run.to_dict()
    assert "hub_token" not in kept
    assert run.argv[:4] == ["--classes", "4", "--output_dir", str(tmp_path)]
    assert kept["dataset"] == "synthetic" and kept["classes"] == 4 and kept["fusion"] == "adaptive"
    assert kept["learning_rate"] == SYNTHETIC["learning_rate"] and kept["decision_rung"] == "auto"


def test_senseless_options_of_a_dataset():
    with pytest.raises(DataError, match="classes must be at least 2"):
        parse("--classes", "1")
    with pytest.raises(DataError, match="no such file or folder"):
        parse("--dataset", "./not_there")


@pytest.fixture
def datasets(tmp_path):
    (tmp_path / "folder" / "dog").mkdir(parents=True)
    (tmp_path / "folder" / "dog" / "a.wav").touch()
    (tmp_path / "table.csv").write_text("path,label\n")
    return {"table": str(tmp_path / "table.csv"), "folder": str(tmp_path / "folder"), "hub": "user/name"}


@pytest.mark.parametrize("kind", ["synthetic", "grid", "folder", "table", "hub"])
def test_help_of_every_dataset_prints(kind, datasets, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--dataset", datasets.get(kind, kind), "--help_all"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    from hf_mmbalance.data import options_class

    for part in (DataArguments, ModelArguments, DecisionArguments, options_class(datasets.get(kind, kind))):
        for entry in dataclasses.fields(part):
            name = typed_name(entry.name)
            assert f"--{name}" in shown
            text = entry.metadata["help"]
            assert len(text) > 8 and " ".join(text.split()) in shown, name


def test_every_training_option_of_our_own_has_a_help_text():
    ours = vars(MMBalanceTrainingArguments)["__annotations__"]
    fields = {entry.name: entry for entry in dataclasses.fields(MMBalanceTrainingArguments)}
    assert "early_stopping_patience" in ours
    for name in ours:
        assert len(fields[name].metadata["help"]) > 8, name
