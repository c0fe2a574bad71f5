"""The hook: sums over accumulated batches, loss scales, strength 0, missing modalities, states, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_mmbalance.balancing import BalancingMethod, build_method

from ..model.tiny import tiny_inputs, tiny_model
from .steps import (
    CLIPS,
    FUSIONS,
    NAMES,
    PAIRED,
    attached,
    backward,
    clips,
    gradients,
    plain_gradients,
    some_missing,
    train,
)


#: Its clips are drawn by the process's random state, as other dropout is.
DETERMINATE = [name for name in NAMES if name != "modality_dropout"]
SPLITTABLE = [name for name in DETERMINATE if name not in PAIRED]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], factor: float = 1.0) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name] / factor, value, atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", SPLITTABLE)
def test_accumulated_batches_give_the_losses_of_whole_ones(name):
    whole, parts = attached(name), attached(name)
    expected = train(whole, range(4))
    assert train(parts, range(4), parts=2) == pytest.approx(expected, abs=1e-5)
    for (key, value), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", DETERMINATE)
def test_a_loss_scale_scales_the_gradients_and_nothing_else(name):
    plain, scaled = attached(name), attached(name)
    for step in range(2):  # the second step shows a state that the scale has touched
        expected, found = gradients(plain, clips(step)), gradients(scaled, clips(step), scale=1024.0)
        assert_close(found, expected, 1024.0)
    for key, value in plain.balancing.state_dict().items():
        torch.testing.assert_close(scaled.balancing.state_dict()[key], value, atol=1e-6, rtol=1e-4)


STRENGTH_0 = [
    ("ogm", {"alpha": 0.0}, "joint"),
    ("ogm", {"end": 0.0}, "joint"),
    ("ogm_ge", {"alpha": 0.0, "noise": 0.0}, "joint"),
    ("agm", {"alpha": 0.0}, "joint"),
    ("dgl", {"strength": 0.0}, "joint"),
    ("modality_dropout", {"rates": 0.0}, "joint"),
    ("opm", {"base": 0.0}, "joint"),
    ("opm", {"probability": 0.0}, "joint"),
    ("reconboost", {"stage_epochs": 0}, "joint"),
    ("mlb", {"alpha": 0.0}, "joint_unimodal"),
    ("inforeg", {"beta": 0.0}, "joint_unimodal"),
    ("olm", {"learning_rate": 0.0}, "joint_unimodal"),
    ("mcr", {"information": 0.0, "contrast": 0.0, "bottleneck": 0.0}, "joint_unimodal"),
    ("qmf", {"weight": 0.0}, "joint_unimodal"),
    ("remix", {"warmup": 1.0}, "joint_unimodal"),
]


@pytest.mark.parametrize(("name", "options", "plain"), STRENGTH_0)
def test_strength_0_is_plain_training_bit_for_bit(name, options, plain):
    fusion = "qmf" if name == "qmf" else "sum"
    weights = {"unimodal_loss_weight": 0.5} if plain == "joint_unimodal" else {}
    model = attached(name, model=tiny_model(fusion=fusion, **weights), **options)
    expected = attached(plain, model=tiny_model(fusion=fusion, **weights))
    assert train(model, range(3)) == train(expected, range(3))
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "weights"), [("joint", (1.0, 0.0)), ("joint_unimodal", (1.0, 1.0)), ("unimodal", (0.0, 1.0))]
)
def test_plain_methods_are_the_losses_weights(name, weights):
    expected = plain_gradients(fused_loss_weight=weights[0], unimodal_loss_weight=weights[1])
    found = gradients(attached(name))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_weights_that_the_config_sets_are_kept():
    model = attached("joint_unimodal", model=tiny_model(fusion="sum", unimodal_loss_weight=0.25))
    assert (model.config.fused_loss_weight, model.config.unimodal_loss_weight) == (1.0, 0.25)


@pytest.mark.parametrize("name", DETERMINATE)
def test_a_state_goes_on_bit_for_bit(name):
    whole, first = attached(name), attached(name)
    optimizer = torch.optim.AdamW(first.parameters(), lr=1e-2)
    train(whole, range(5), optimizer=torch.optim.AdamW(whole.parameters(), lr=1e-2))
    train(first, range(2), optimizer=optimizer)
    second = attached(name)
    second.load_state_dict(first.state_dict())
    second.balancing.load_state_dict({key: value.clone() for key, value in first.balancing.state_dict().items()})
    resumed = torch.optim.AdamW(second.parameters(), lr=1e-2)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, range(2, 5), optimizer=resumed)
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key
    for key, value in whole.balancing.state_dict().items():
        assert torch.equal(second.balancing.state_dict()[key], value), key


def test_a_state_of_another_method_is_refused():
    olm, agm = attached("olm").balancing, attached("agm").balancing
    with pytest.raises(ValueError, match=r"state .* does not fit AGM, .*: resume with the balancing method"):
        agm.load_state_dict(olm.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_clips_that_lack_a_modality(name):
    model = attached(name)
    inputs = some_missing(clips())
    expected = gradients(model, inputs)
    assert all(torch.isfinite(value).all() for value in expected.values())
    # What stands in place of a missing modality has no effect.
    inputs["input_values"][1] = float("nan")
    inputs["pixel_values"][4] = float("nan")
    assert_close(gradients(attached(name), inputs), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_any_sound(name):
    inputs = {key: value for key, value in clips().items() if key != "input_values"}
    assert all(torch.isfinite(value).all() for value in gradients(attached(name), inputs).values())


@pytest.mark.parametrize("name", ["opm", "dgl"])
def test_vision_that_is_decided_frame_by_frame_is_refused_where_pooled_features_are_needed(name):
    with pytest.raises(ValueError, match="works on pooled features: use a frame_pooling other than 'log_probs'"):
        attached(name, model=tiny_model(fusion="sum", frame_pooling="log_probs"))


def test_the_hook_is_for_training_with_labels_only():
    model = attached("joint_unimodal")
    called = []
    model.balancing = lambda batch: called.append(batch) or batch.loss
    inputs = {key: value for key, value in clips().items() if key != "clip_index"}
    model.eval()(**inputs)
    model.train()(**{key: value for key, value in inputs.items() if key != "labels"})
    assert not called
    model(**inputs)
    (batch,) = called
    assert (
        batch.modality_logits.shape == (CLIPS, 2, 4) and batch.modality_mask.all() and batch.labels.shape == (CLIPS,)
    )
    torch.testing.assert_close(batch.fused.logits, batch.modality_logits.log_softmax(-1).sum(1))


def test_a_method_is_not_saved_with_the_model(tmp_path):
    model = attached("olm")
    train(model, range(1))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.balancing is None and not [name for name in loaded.state_dict() if "balanc" in name]


def test_before_step_needs_a_backward():
    model = attached("ogm")
    with pytest.raises(RuntimeError, match="after the backward of a step's last batch"):
        model.balancing.before_step()
    backward(model, clips())
    with pytest.raises(RuntimeError, match="after the backward"):
        model.balancing.before_step()


@pytest.mark.parametrize("fusion", ["gated", "film"])
@pytest.mark.parametrize("name", ["ogm", "agm", "dgl", "olm", "mmpareto", "joint_unimodal", "unimodal"])
def test_heads_that_do_not_split_are_refused(name, fusion):
    with pytest.raises(
        ValueError, match=f"unimodal logits that are parts of the decision; the fusion head '{fusion}'"
    ):
        attached(name, fusion=fusion)


@pytest.mark.parametrize("name", ["joint", "modality_dropout"])
def test_heads_for_diagnosis_go_on_learning(name):
    found = gradients(attached(name, fusion="gated"))
    assert all(found[f"unimodal_heads.{m}.weight"].abs().sum() > 0 for m in range(2))


@pytest.mark.parametrize(
    ("name", "fusion", "message"),
    [
        ("mla", "sum", "MLA belongs to the fusion head 'mla': set --fusion mla"),
        ("qmf", "adaptive", "QMF belongs to the fusion head 'qmf'"),
        ("pdf", "sum", "PDF belongs to the fusion head 'pdf'"),
        ("frozen", "adaptive", "'adaptive' has no parameters to learn: use the method unimodal"),
        ("unimodal", "pdf", "'pdf' learns from the fused loss"),
    ],
)
def test_heads_that_a_method_is_not_defined_for(name, fusion, message):
    with pytest.raises(ValueError, match=message):
        attached(name, fusion=fusion)


@pytest.mark.parametrize("name", ["ogm", "ogm_ge", "agm", "mlb", "inforeg", "mcr", "opm"])
def test_more_than_two_modalities_are_refused(name):
    model = tiny_model(fusion="sum")
    model.config.modalities = ["audio", "vision", "touch"]
    with pytest.raises(ValueError, match="compares two modalities; the model has 3"):
        build_method(name).attach(model)


@pytest.mark.parametrize("name", ["ogm", "agm", "mlb", "ogm_ge", "mmpareto", "mla", "inforeg", "frozen", "reconboost"])
def test_gradients_that_another_engine_keeps_are_not_passed_over(name):
    model = attached(name)
    backward_only(model)
    model.zero_grad()
    with pytest.raises(ValueError, match="which DeepSpeed does not show: train in plain processes"):
        model.balancing.before_step()


@pytest.mark.parametrize("name", ["ogm_ge", "mmpareto", "mla", "inforeg", "reconboost"])
def test_sharded_gradients_are_refused_where_whole_ones_are_needed(name):
    model = attached(name)
    backward_only(model)
    next(p for p in model.parameters() if p.grad is not None).grad.placements = ("a part",)
    with pytest.raises(ValueError, match="which FSDP splits"):
        model.balancing.before_step()


def backward_only(model) -> None:
    inputs = clips()
    model.balancing.clip_index = inputs.pop("clip_index")
    model(**inputs).loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_towers_that_are_frozen_have_no_gradients_and_the_rest_learns(name):
    model = tiny_model(fusion=FUSIONS.get(name, "sum"))
    model.freeze_towers(0)
    found = gradients(attached(name, model=model))
    assert found and all(torch.isfinite(value).all() for value in found.values())
    assert not [key for key in found if key.startswith(("audio_model.", "vision_model."))]


def test_a_pass_without_gradients_counts_for_nothing():
    expected = gradients(attached("ogm"))
    model = attached("ogm")
    with torch.no_grad():
        model(**{key: value for key, value in clips(5).items() if key != "clip_index"})
    assert all(torch.equal(value, expected[name]) for name, value in gradients(model).items())


def test_weights_without_any_loss_are_refused():
    with pytest.raises(ValueError, match="OGM has no loss to learn from: .* or set them to 1 and 0"):
        attached("ogm", model=tiny_model(fusion="sum", fused_loss_weight=0.0))
    attached("mmpareto", model=tiny_model(fusion="sum", fused_loss_weight=0.0))  # says so, and goes on


@pytest.mark.parametrize("name", ["mmpareto", "dgl", "olm", "ogm_ge"])
def test_gradient_checkpointing_changes_nothing(name):
    expected = gradients(attached(name))
    model = attached(name)
    model.gradient_checkpointing_enable()
    assert_close(gradients(model), expected)


class Doubled(BalancingMethod):
    """A user's method: the smallest possible."""

    def loss(self, batch):
        return 2 * batch.loss


def typical_model() -> Any:
    """A model whose decision depends on the towers' tokens."""
    model = tiny_model(fusion="adaptive", fusion_options={"typicality": [2, 2]})
    for name, value in model.fusion.named_buffers():
        if name.startswith("typicality_basis"):
            value.copy_(torch.eye(*value.shape))
        elif name.startswith(("typicality_precision", "typicality_rest")):
            value.fill_(1.0)
    model.fusion.typicality_slope.fill_(-0.3)
    return model


class Again(BalancingMethod):
    """Decides again what the model has decided, also in another order of the clips."""

    def loss(self, batch):
        backwards = torch.arange(CLIPS).flip(0)
        again = self.fuse(batch, batch.modality_logits, batch.modality_mask)
        other = self.fuse(batch, batch.modality_logits.flip(0), batch.modality_mask, [backwards, backwards])
        without = self.model.fusion(batch.modality_logits, batch.modality_mask).logits
        self.differences = [(value - batch.fused.logits).abs().max() for value in (again, other.flip(0), without)]
        return batch.loss


def test_a_decision_that_is_made_again_reads_what_the_first_one_read():
    model = attached(Again(), model=typical_model())
    gradients(model)
    again, other, without = model.balancing.differences
    assert max(again, other) < 1e-6 and without > 1e-3


@pytest.mark.parametrize(("name", "options"), [("opm", {"base": 1.0, "probability": 1.0}), ("frozen", {})])
def test_methods_that_decide_by_other_features_pass_the_tokens_on(name, options):
    model = attached(name, **options)
    decide, given = model.decide, []

    def noting(features, mask, tokens=None, *rest):
        given.append(tokens)
        return decide(features, mask, tokens, *rest)

    model.decide = noting
    model.balancing.progress = 0.9
    if name == "opm":
        model.balancing.state["scores"] = torch.tensor([1.0, 2.0])
    backward(model, clips())
    first, second = given
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_method_of_ones_own():
    expected = plain_gradients(fused_loss_weight=2.0, unimodal_loss_weight=0.0)
    assert_close(gradients(attached(Doubled())), expected)


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("inforeg", {}, "epoch"),
        ("reconboost", {}, "epoch"),
        ("frozen", {}, "progress"),
        ("remix", {}, "progress"),
        ("opm", {"warmup": 0.1}, "progress"),
    ],
)
def test_what_a_loop_does_not_set_is_an_error_where_it_is_read(name, options, value):
    model = attached(name, **options)
    del vars(model.balancing)[value]
    with pytest.raises(ValueError, match=f"reads {value}: set it before each batch"):
        gradients(model)


@pytest.mark.parametrize(("name", "options"), [("ogm_ge", {}), ("opm", {"warmup": 0.0}), ("remix", {"warmup": 0.0})])
def test_a_method_without_a_schedule_needs_neither_epoch_nor_progress(name, options):
    model = attached(name, **options)
    del model.balancing.epoch, model.balancing.progress
    gradients(model)


@pytest.mark.parametrize(("loss", "found"), [(None, "not NoneType"), (torch.zeros(4), r"not one of shape \(4,\)")])
def test_a_loss_that_is_not_a_scalar_is_refused(loss, found):
    method = type("Mine", (BalancingMethod,), {"loss": lambda self, batch: loss})()
    model = tiny_model().train()
    method.attach(model)
    with pytest.raises(ValueError, match=f"Mine.loss must return the loss, a scalar tensor, {found}"):
        model(**tiny_inputs(), labels=torch.tensor([0, 1, 2, 3]))
