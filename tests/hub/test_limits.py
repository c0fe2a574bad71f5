"""Somebody's config and weights are checked before and after a model is built from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hf_mmbalance import MMBalanceProcessor
from hf_mmbalance.hub.errors import HubError
from hf_mmbalance.hub.limits import check_config
from hf_mmbalance.hub.predict import load_classifier
from tests.model.tiny import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "good"
    model = tiny_model()
    model.save_pretrained(folder)
    MMBalanceProcessor.from_backbones(model.config.audio_config, model.config.vision_config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def change(path: Path, **values) -> None:
    content = json.loads(path.read_text())
    for dotted, value in values.items():
        *parents, last = dotted.split("__")
        part = content
        for name in parents:
            part = part[name]
        part[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"audio_config__num_hidden_layers": 10**7}, "audio_config.num_hidden_layers=10,000,000, the limit is 1,000"),
        ({"vision_config__hidden_size": 2**40}, "vision_config.hidden_size=1,099,511,627,776, the limit is 1,000,000"),
        ({"vision_config__image_size": [10**9, 10**9]}, "vision_config.image_size=1,000,000,000"),
        ({"cosine_scale": float("inf")}, "cosine_scale=inf"),
        ({"vision_config__hidden_size": 10**6, "vision_config__num_hidden_layers": 900}, "billion parameters"),
        ({"audio_config__hidden_size": "many"}, "Its config was made by a different version or by hand"),
        ({"fusion": "nowhere"}, "fusion"),
        ({"id2label": {str(i): str(i) for i in range(3)}}, "weights have a different shape than config.json says"),
    ],
)
def test_configs_that_ask_for_too_much_or_do_not_fit_are_refused_by_name(folder, values, words):
    change(folder / "config.json", **values)
    with pytest.raises((ValueError, HubError)) as caught:
        load_classifier(str(folder), device="cpu")
    assert words in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"feature_extractor__num_mel_bins": 10**7}, "feature_extractor.num_mel_bins=10,000,000, the limit is 4,096"),
        ({"feature_extractor__std": "x"}, "does not define a working processor (TypeError"),
        ({"image_processor__image_mean": float("nan")}, "image_mean=nan"),
        ({"image_processor__image_std": [0, 0, 0]}, "pixel_values are not finite numbers"),
    ],
)
def test_processors_that_cannot_prepare_a_clip_are_refused_by_name(folder, values, words):
    change(folder / "processor_config.json", **values)
    with pytest.raises(ValueError, match="processor_config.json") as caught:
        load_classifier(str(folder), device="cpu")
    assert words in str(caught.value) and str(folder) in str(caught.value)


def test_weights_that_are_missing_or_damaged_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "fusion" not in name)
    save_file({name: value for name, value in weights.items() if name != gone}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="1 weights are not in its files, e.g. ") as caught:
        load_classifier(str(folder), device="cpu")
    assert gone in str(caught.value) and str(folder) in str(caught.value)


def test_an_index_that_names_files_that_are_not_there(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((ValueError, RuntimeError)) as caught:
        load_classifier(str(folder), device="cpu")
    assert str(folder) in str(caught.value)


def test_published_towers_are_below_the_limits():
    """InternViT-6B, the largest vision tower in common use, in both places."""
    large = {"num_hidden_layers": 45, "hidden_size": 3200, "intermediate_size": 12_800, "image_size": 448}
    check_config({"audio_config": {**large, "max_length": 4096}, "vision_config": large, "id2label": {}}, "model")
