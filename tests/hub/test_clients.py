"""datasets, transformers and evaluate against the test Hub: push from one process, pull in another's fresh cache."""

from __future__ import annotations

from pathlib import Path

import pytest


PUSH_DATASET = """
    import os
    from datasets import Dataset, DatasetDict
    repo = os.environ["USER"] + "/clips"
    rows = lambda n: Dataset.from_dict({"id": [f"c{i}" for i in range(n)], "frames": [os.urandom(9000)] * n})
    DatasetDict(train=rows(40), test=rows(10)).push_to_hub(repo, num_shards={"train": 2, "test": 1}, set_default=True)
    DatasetDict(train=rows(5)).push_to_hub(repo, "small")
    DatasetDict(train=rows(7)).push_to_hub(repo, revision="next", create_pr=False)
"""
PULL_DATASET = """
    import os, time
    from datasets import get_dataset_config_names, load_dataset
    from huggingface_hub import HfApi
    repo = os.environ["USER"] + "/clips"
    assert get_dataset_config_names(repo) == ["default", "small"]
    loaded = load_dataset(repo, "default")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 40, "test": 10}
    sha = HfApi().dataset_info(repo).sha
    start = time.perf_counter()
    stream = load_dataset(repo, "default", split="train", streaming=True, revision=sha)
    assert next(iter(stream))["id"] == "c0" and stream.num_shards == 2
    print("first row after", time.perf_counter() - start)
    assert len(list(load_dataset(repo, "small", split="train", streaming=True))) == 5
    assert len(load_dataset(repo, "default", split="train", revision="next")) == 7
"""
MODELING = """import torch
from transformers import PretrainedConfig, PreTrainedModel

from .scale_tiny import scale


class TinyConfig(PretrainedConfig):
    model_type = "tiny-probe"

    def __init__(self, size=3, **kwargs):
        self.size = size
        super().__init__(**kwargs)


class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(config.size, 2)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, x):
        return scale(self.layer(x))
"""
PUSH_MODEL = """
    import os, sys
    from pathlib import Path
    Path("tinypkg").mkdir()
    Path("tinypkg/__init__.py").touch()
    Path("tinypkg/modeling_tiny.py").write_text(sys.argv[1])
    Path("tinypkg/scale_tiny.py").write_text("def scale(x):\\n    return 2 * x\\n")
    sys.path.insert(0, ".")
    import torch
    from tinypkg.modeling_tiny import TinyConfig, TinyModel
    TinyConfig.register_for_auto_class()
    TinyModel.register_for_auto_class("AutoModel")
    repo = os.environ["USER"] + "/tiny"
    for value, revision in ((1.0, None), (2.0, "later")):
        model = TinyModel(TinyConfig())
        torch.nn.init.constant_(model.layer.weight, value)
        torch.nn.init.zeros_(model.layer.bias)
        if revision is not None:
            from huggingface_hub import create_branch
            create_branch(repo, branch=revision)
        model.push_to_hub(repo, revision=revision)
"""
PULL_MODEL = """
    import os, torch
    from huggingface_hub import HfApi
    from transformers import AutoModel
    repo = os.environ["USER"] + "/tiny"
    sha = HfApi().model_info(repo).sha
    for revision, value in ((None, 6.0), ("later", 12.0), (sha, 6.0)):
        model = AutoModel.from_pretrained(repo, revision=revision, trust_remote_code=True)
        assert model(torch.ones(1, 3)).tolist() == [[value, value]], revision
    try:
        AutoModel.from_pretrained(repo, revision="absent", trust_remote_code=True)
    except OSError as error:
        assert "absent" in str(error), error
    else:
        raise AssertionError("a revision that does not exist was loaded")
"""
METRIC = """
import datasets
import evaluate


class Half(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="d", citation="c", inputs_description="i", features=features)

    def _compute(self, predictions, references):
        return {"half": 0.5 * sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


def uses_only_known_routes(hub) -> bool:
    return "none" not in hub.log.by_route()


@pytest.mark.slow
def test_dataset_round_trip(hub, run_client):
    run_client(PUSH_DATASET)
    hub.log.clear()
    pulled = run_client(PULL_DATASET)
    assert "first row after" in pulled.stdout
    assert hub.log.count("resolve", status=206) >= 2, "streaming did not read by ranges"
    assert uses_only_known_routes(hub), hub.log.select(status=404)


@pytest.mark.slow
def test_model_round_trip(hub, run_client, tmp_path: Path):
    """By branch and commit; weights are downloaded once each, and a warm cache needs no server at all."""
    run_client(PUSH_MODEL, args=[MODELING])
    hub.log.clear()
    pulled = run_client(PULL_MODEL, home=tmp_path / "home", without=["hf_mmbalance"])
    assert hub.token not in pulled.stdout + pulled.stderr
    assert hub.log.count("resolve", method="GET", path=r"model\.safetensors$") == 2
    assert uses_only_known_routes(hub), hub.log.select(status=404)
    hub.log.clear()
    code = "from transformers import AutoModel\n"
    code += f"AutoModel.from_pretrained('{hub.user}/tiny', trust_remote_code=True)"
    run_client(code, home=tmp_path / "home", env={"HF_HUB_OFFLINE": "1"})
    assert not list(hub.log)


@pytest.mark.slow
def test_metric_from_a_space(hub, run_client):
    run_client(
        f"""
from huggingface_hub import HfApi
api, repo = HfApi(), "{hub.user}/half_right"
api.create_repo(repo, repo_type="space", space_sdk="gradio")
api.upload_file(repo_id=repo, repo_type="space", path_in_repo="half_right.py", path_or_fileobj={METRIC.encode()!r})
"""
    )
    run_client(
        f"""
import evaluate
metric = evaluate.load("{hub.user}/half_right")
assert metric.compute(predictions=[1, 0], references=[1, 1]) == {{"half": 0.25}}
"""
    )
    assert uses_only_known_routes(hub), hub.log.select(status=404)
