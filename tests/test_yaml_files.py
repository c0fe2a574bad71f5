"""A key that stands twice in a YAML file is an error wherever people write YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hf_mmbalance.data.adapter import read_adapter
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.embedding.labels import read_label_map
from hf_mmbalance.training.arguments import read_config
from hf_mmbalance.yaml_files import load_yaml


def test_yaml_is_read_as_by_pyyaml():
    text = "a: &base {x: 1}\nb: {<<: *base, y: [2, 3.5, null, yes]}\n1: one\n"
    assert (
        load_yaml(text) == yaml.safe_load(text) == {"a": {"x": 1}, "b": {"x": 1, "y": [2, 3.5, None, True]}, 1: "one"}
    )


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "outer:\n  a: 1\n  a: 1\n", "{a: 1, a: 2}"])
def test_a_key_that_stands_twice_is_refused_with_its_line(text):
    with pytest.raises(yaml.YAMLError, match="key 'a' is given twice\n.*line "):
        load_yaml(text)


def test_every_file_that_people_write(tmp_path: Path):
    file = tmp_path / "file.yaml"
    file.write_text("labels: {ang: angry, ang: calm}\naudio: {x: a, x: b}\n")
    with pytest.raises(ValueError, match="not valid YAML: key 'ang' is given twice"):
        read_config(str(file))
    with pytest.raises(DataError, match="not valid YAML: key 'ang' is given twice"):
        read_adapter(file, "mine")
    with pytest.raises(ValueError, match="is not YAML .key 'ang' is given twice"):
        read_label_map(file, ["audio", "vision"])
