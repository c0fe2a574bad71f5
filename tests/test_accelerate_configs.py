"""Launch configurations: each is read by accelerate itself, says what it is for, and starts what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType


FOLDER = Path(__file__).parents[1] / "accelerate_configs"
EXPECTED = {  # distributed type, processes, machines, precision, on the CPU
    "cpu": ("NO", 1, 1, "no", True),
    "cpu_2proc": ("MULTI_GPU", 2, 1, "no", True),
    "single_gpu": ("NO", 1, 1, "bf16", False),
    "multi_gpu": ("MULTI_GPU", 2, 1, "bf16", False),
    "fsdp2": ("FSDP", 2, 1, "bf16", False),
    "deepspeed_zero2": ("DEEPSPEED", 2, 1, "bf16", False),
    "multi_node": ("MULTI_GPU", 16, 2, "bf16", False),
}


def test_there_are_those_that_are_promised():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_accelerate_reads_it(name):
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))  # raises for a key that accelerate does not know
    kind, processes, machines, precision, cpu = EXPECTED[name]
    assert config.distributed_type == DistributedType(kind)
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert str(config.mixed_precision) == precision and bool(config.use_cpu) == cpu


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_it_says_what_it_is_for(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# ") and len(first) > 30
    assert isinstance(yaml.safe_load(text)["mixed_precision"], str)  # a bare `no` is False in YAML
    assert isinstance(yaml.safe_load(text)["distributed_type"], str)


def test_sharded_layers_are_those_of_the_default_towers():
    from transformers.models.audio_spectrogram_transformer import modeling_audio_spectrogram_transformer as ast
    from transformers.models.vit import modeling_vit as vit

    named = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    assert named.split(",") == ["ASTLayer", "ViTLayer"]
    assert hasattr(ast, "ASTLayer") and hasattr(vit, "ViTLayer")


def test_fsdp_and_deepspeed_settings_are_ones_that_their_plugins_take():
    import dataclasses

    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    fsdp = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    taken = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)} | {
        "transformer_layer_cls_to_wrap"
    }
    offload = {"offload_params": "cpu_offload"}
    for key in fsdp:
        name = key.removeprefix("fsdp_")
        assert key in taken or offload.get(name, name) in taken or key == "fsdp_version", key
    zero = load_config_from_file(str(FOLDER / "deepspeed_zero2.yaml")).deepspeed_config
    fields = {field.name for field in dataclasses.fields(DeepSpeedPlugin)}
    assert set(zero) <= fields and zero["zero_stage"] == 2
