"""Methods in the Trainer, in `train.py`, and in a loop of one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate.state import GradientState
from safetensors.torch import load_file

from hf_mmbalance.balancing import BALANCING_METHODS, build_method

from ..training.tiny_runs import random_splits, tiny_model, tiny_run, tiny_trainer
from .everything import Everything
from .steps import FUSIONS, NAMES, attached, clips


DOCS = Path(__file__).parents[2] / "docs" / "balancing.md"


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_trains_by_every_method(name, tmp_path):
    without = {"train": {0: "audio", 5: "vision"}}
    trainer = tiny_trainer(
        tmp_path, tiny_model(FUSIONS.get(name, "adaptive")), random_splits(without=without),
        balancing=build_method(name), num_train_epochs=2,
    )  # fmt: skip
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert trainer.balancing.step == 4 == trainer.state.global_step
    assert all(torch.isfinite(value).all() for value in after.values())
    assert {"audio_model", "vision_model"} <= {
        key.split(".")[0] for key in after if not torch.equal(after[key], before[key])
    }
    assert trainer.evaluate()["eval_nll"] > 0


def resumable(folder, method, **options):
    clips_of = random_splits(train=20)
    return tiny_trainer(
        folder, tiny_model("sum", classifier_dropout=0.2), clips_of, balancing=method, num_train_epochs=4,
        save_strategy="steps", save_steps=3, save_total_limit=9, **options,
    )  # fmt: skip


def test_a_resumed_run_ends_like_one_left_alone_bit_for_bit(tmp_path):
    """20 clips by 6 are epochs of 4 steps: checkpoint 6 lies within the second epoch."""
    whole = resumable(tmp_path / "whole", Everything())
    whole.train()
    resumed = resumable(tmp_path / "whole", Everything())
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    state, expected = resumed.balancing.state_dict(), whole.balancing.state_dict()
    assert expected["step"] == 16 and expected["history"].all()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    forgetful = resumable(tmp_path / "whole", Everything())
    forgetful.balancing.load_state_dict = lambda state: None
    forgetful.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert any(not torch.equal(forgetful.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())


def test_a_checkpoint_without_the_methods_state_is_refused(tmp_path):
    resumable(tmp_path, None).train()
    with pytest.raises(ValueError, match="checkpoint-6 has no balancing.pt: .* without a balancing method"):
        resumable(tmp_path, Everything()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_new_model_of_a_search_starts_the_method_anew(tmp_path):
    method = Everything()
    trainer = tiny_trainer(tmp_path, None, balancing=method, model_init=lambda: tiny_model("sum"))
    trainer.train()
    assert method.step == 2
    model = trainer.call_model_init()
    assert method.step == 0 and method.model is model and not method.state["history"].any()


def test_the_head_pdf_is_not_trained_without_its_method(tmp_path):
    with pytest.raises(ValueError, match="the fusion head 'pdf' learns from its own loss: add --balancing pdf"):
        tiny_trainer(tmp_path, tiny_model("pdf"))


def test_train_py(tmp_path):
    results = tiny_run(tmp_path / "run", "--balancing", "ogm_ge", "--balancing_options", '{"alpha": 0.5, "end": 0.5}')
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (kept["fused_loss_weight"], kept["unimodal_loss_weight"]) == (1.0, 0.0)
    assert results["arguments"]["balancing"] == "ogm_ge"
    assert results["arguments"]["balancing_options"] == {"alpha": 0.5, "end": 0.5}
    assert [row["method"] for row in results["rows"]][-1] == "fused"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--balancing", "omg"), "balancing='omg' is unknown"),
        (("--balancing", "ogm", "--balancing_options", '{"beta": 1}'), "'ogm' does not accept beta"),
        (("--balancing_options", '{"alpha": 1}'), "--balancing_options needs --balancing"),
        (("--balancing", "ogm", "--balancing_options", "alpha=1"), "--balancing_options 'alpha=1' is not valid JSON"),
        (("--balancing", "ogm", "--fusion", "film"), "the fusion head 'film' has none"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_run(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_bf16_follows_the_curve_of_float32(tmp_path):
    curves = []
    for precision in ({}, {"bf16": True}):
        trainer = tiny_trainer(tmp_path, tiny_model("sum"), balancing=Everything(), num_train_epochs=3, **precision)
        trainer.train()
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert curves[1] != curves[0] and curves[1] == pytest.approx(curves[0], abs=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*NAMES, "everything"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_a_gpu_follows_the_curve_of_float32(tmp_path, name, precision):
    curves = []
    for options in ({}, {precision: True}):
        method = Everything() if name == "everything" else build_method(name)
        trainer = tiny_trainer(
            tmp_path, tiny_model(FUSIONS.get(name, "sum")), balancing=method, num_train_epochs=6, use_cpu=False,
            learning_rate=1e-3, **options,
        )  # fmt: skip
        trainer.train()
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert all(value.device.type == "cuda" for value in method.state.values())
    if precision == "fp16":
        assert trainer.accelerator.scaler.get_scale() > 1
    assert curves[1] == pytest.approx(curves[0], abs=0.05)


@pytest.mark.parametrize("name", ["everything", "mcr", "mmpareto", "ogm_ge", "olm"])
def test_a_gradient_scaler_changes_nothing_and_skips_steps_that_overflow(name):
    def run(scaler, overflow=False):
        model = attached(Everything() if name == "everything" else build_method(name))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for seed in range(3):
            optimizer.zero_grad()
            inputs = clips(seed)
            model.balancing.clip_index = inputs.pop("clip_index")
            before = {key: value.clone() for key, value in model.state_dict().items()}
            loss = model(**inputs).loss
            scaler.scale(loss).backward()
            if overflow:
                model.vision_model.get_parameter("embeddings.cls_token").grad.fill_(float("inf"))
            model.balancing.before_step()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            if overflow:
                assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        return model

    plain = run(torch.amp.GradScaler("cpu", enabled=False))
    scaled = run(torch.amp.GradScaler("cpu", init_scale=2.0**14))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(scaled.state_dict()[key], value, atol=1e-5, rtol=1e-4, msg=key)
    run(torch.amp.GradScaler("cpu", init_scale=2.0**14), overflow=True)


def test_the_loop_in_the_docs_trains_as_the_trainer_does(tmp_path):
    """The snippet, with the Trainer's batches and optimiser, against the Trainer."""
    snippet = re.search(r"<!-- loop -->\n```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert snippet is not None and len(snippet[1].strip().splitlines()) <= 16
    clips_of, options = random_splits(train=24), {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = tiny_trainer(
        tmp_path, tiny_model("sum"), clips_of, balancing=build_method("ogm_ge", {"alpha": 0.5}),
        lr_scheduler_type="constant", optim="sgd", **options,
    )  # fmt: skip
    trainer.train()
    other = tiny_trainer(tmp_path, tiny_model("sum"), clips_of, **options)
    model = tiny_model("sum")
    loader = [{k: v for k, v in batch.items() if k != "clip_index"} for batch in other.get_train_dataloader()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    GradientState._reset_state()  # the Trainer's is shared by all of a process
    exec(snippet[1], {"model": model, "loader": loader, "optimizer": optimizer})  # noqa: S102
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, atol=1e-5, rtol=1e-3, msg=key)


def test_the_docs_table_has_every_method():
    section = DOCS.read_text().split("## The methods")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert sorted(rows) == sorted(BALANCING_METHODS)


def test_the_method_in_the_docs_works(tmp_path):
    snippet = re.search(r"<!-- own -->\n```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert snippet is not None
    (tmp_path / "my_method.py").write_text(snippet[1])
    name = re.search(r"class (\w+)\(BalancingMethod\)", snippet[1])[1]
    tiny_run(tmp_path / "run", "--balancing", f"{tmp_path / 'my_method.py'}:{name}")
    assert load_file(tmp_path / "run" / "model.safetensors")


def test_the_method_in_the_docs_leaves_alone_a_step_without_sound():
    snippet = re.search(r"<!-- own -->\n```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(snippet[1], names)  # noqa: S102
    method, model = names["SlowTheConfident"](), tiny_model().train()
    method.attach(model)
    batch = {"pixel_values": torch.rand(3, 2, 3, 16, 16), "labels": torch.tensor([0, 1, 2])}
    model(**batch).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    method.before_step()
    for name, value in before.items():
        torch.testing.assert_close(model.get_parameter(name).grad, value, msg=name)
