"""Labels of a classifier mapped to classes: by name, spelling, variants and as given; every wrong map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_mmbalance.embedding.labels import map_labels, read_label_map


EMOTIONS = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]


@pytest.mark.parametrize(
    "source",
    [
        ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD", "SUR"],
        ["angry", "disgusted", "scared", "joy", "neutral", "sad", "surprised"],
        ["Angry", "Disgust", "Fearful", "Happy", "Neutral", "Sad", "Surprise"],
        ["emotion: anger", "emotion: disgust", "fears", "joys", "Neutral ", "SADNESS", "surprises"],
    ],
)
def test_emotions_by_their_common_names(source):
    assert list(map_labels(source, EMOTIONS).classes.values()) == [[label] for label in source]
    assert list(map_labels(EMOTIONS, source).classes.values()) == [[label] for label in EMOTIONS]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("1", "one"),
        ("digit 1", "One"),
        ("digit_01", "1"),
        ("ten", "10"),
        ("dog_bark", "Dog Bark"),
        ("dog-barking", "dog barks"),
        ("church bells", "Church_bell"),
        ("clapping", "claps"),
        ("typing", "type"),
        ("yelling", "yell"),
        ("kisses", "kissing"),
        ("babies", "baby"),
        ("Ärger", "ärger"),
        ("rock'n'roll", "Rock n Roll"),
        ("letter a", "A"),
        ("ChurchBell", "church bell"),
        ("!", "!"),
    ],
)
def test_names_that_mean_the_same(label, name):
    assert map_labels([label, "same"], ["same", name]).classes == {"same": ["same"], name: [label]}


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("LABEL_1", "1"),
        ("string", "str"),
        ("glass", "glas"),
        ("11", "1"),
        ("playing guitar", "guitar"),
        ("unhappy", "happy"),
        ("?", "!"),
        ("king", "k"),
    ],
)
def test_names_that_do_not_mean_the_same(label, name):
    found = map_labels([label, "x", "y"], ["x", "y", name])
    assert found.dropped == [label] and found.unknown == [name]


def test_the_same_name_comes_before_a_variant():
    found = map_labels(["joy", "happy", "Joy "], ["happy", "joy"])
    assert found.classes == {"happy": ["happy"], "joy": ["joy", "Joy "]}


def test_several_labels_count_for_one_class_and_the_rest_is_said():
    found = map_labels(["ang", "angry", "hap", "noise"], ["happy", "angry", "calm"])
    assert found.classes == {"happy": ["hap"], "angry": ["ang", "angry"], "calm": []}
    assert found.dropped == ["noise"] and found.unknown == ["calm"]
    assert found.describe().splitlines() == [
        "happy <- hap",
        "angry <- ang + angry",
        "left out, because no class has such a name: noise",
        "classes that this classifier does not know and gives no evidence for: calm",
    ]
    many = map_labels([f"thing {i}" for i in range(25)] + ["a", "b"], ["a", "b"]).describe()
    assert many.endswith("thing 19 and 5 more")


@pytest.mark.parametrize(
    "given",
    [{"fury": "angry", "hap": None, "LABEL_3": "happy"}, {"angry": ["fury"], "happy": ["LABEL_3"], "hap": None}],
)
def test_what_is_given_comes_first(given):
    found = map_labels(["fury", "hap", "LABEL_3"], ["angry", "happy"], given)
    assert found.classes == {"angry": ["fury"], "happy": ["LABEL_3"]} and found.dropped == ["hap"]


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        (["dog", "cat"], None, r"\(dog, cat\) and the classes \(happy, sad\) have nothing in common: map the labels"),
        (["happy", "cat"], None, "have only 'happy' in common"),
        (
            ["LABEL_0", "LABEL_1"],
            None,
            "nothing in common; these are not names but numbers .*: map the labels .* --label_map",
        ),
        (["dog", "cat"], {"dgo": "sad"}, "'dgo' is not a label of the classifier; did you mean 'dog'"),
        (["dog", "cat"], {"dog": "sadd"}, "'dog' is given the class 'sadd'; did you mean 'sad'"),
        (["dog", "cat"], {"dog": "blue"}, "given the class 'blue'; choose among happy, sad"),
        (["dog", "cat"], {"happy": ["dog"], "sad": ["dog"]}, "'dog' is given two classes"),
    ],
)
def test_wrong_maps_are_refused(source, given, message):
    with pytest.raises(ValueError, match=message):
        map_labels(source, ["happy", "sad"], given)


def test_a_label_that_fits_two_classes_is_refused():
    with pytest.raises(ValueError, match="label 'happy' fits the classes joy, happiness: choose one with --label_map"):
        map_labels(["happy", "sad"], ["joy", "happiness", "sad"])
    assert map_labels(["happy", "sad"], ["joy", "happiness", "sad"], {"happy": "joy"}).unknown == ["happiness"]


# -- files ------------------------------------------------------------------------------------------------------


def written(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder / name


def test_json_and_yaml(tmp_path):
    expected = {"audio": {"ang": "angry", "noise": None}, "vision": {"calm": ["1", "quiet"]}}
    paths = [
        written(tmp_path, "map.json", {"audio": {"ang": "angry", "noise": None}, "vision": {"calm": [1, "quiet"]}}),
        written(tmp_path, "map.yaml", "audio:\n  ang: angry\n  noise:\nvision:\n  calm: [1, quiet]\n"),
    ]
    for path in paths:
        assert read_label_map(path, ["audio", "vision"]) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("map.json", "{", "map.json: cannot be read as a label map"),
        ("map.yaml", "a: [", "map.yaml: is not YAML"),
        ("map.json", {"ang": "angry"}, 'map.json: must have the form {"audio": {source label: class}'),
        ("map.json", {"adio": {}}, "'adio' is not a modality; did you mean 'audio'"),
        ("map.yaml", "audio:\n  no: angry\n", "audio: False: 'angry' is not a pair of names; put names in quotes"),
        ("map.json", {"audio": {"ang": {"x": "y"}}}, "is not a pair of names"),
    ],
)
def test_files_of_another_form_are_refused(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_label_map(written(tmp_path, name, content), ["audio", "vision"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.json: cannot be read as a label map .*No such file"):
        read_label_map(tmp_path / "none.json", ["audio"])
