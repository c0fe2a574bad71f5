"""The classifier: missing modalities, gradient rules, modality dropout, errors, saving, precision."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from hf_mmbalance import MMBalanceForAudioVisualClassification

from .tiny import HEADS, tiny_config, tiny_inputs, tiny_model


LABELS = torch.tensor([0, 1, 2, 3])


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


# -- outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", HEADS)
def test_outputs_have_the_documented_shapes(fusion):
    out = tiny_model(fusion=fusion)(**tiny_inputs(), labels=LABELS)
    assert out.logits.shape == (4, 4) and out.loss.shape == ()
    assert out.modality_logits.shape == out.modality_contributions.shape == (4, 2, 4)
    assert [feature.shape for feature in out.modality_features] == [(4, 16), (4, 16)]
    assert out.modality_mask.tolist() == [[1, 1]] * 4
    has_weights = fusion not in ("mean_prob", "gated", "film")
    assert (out.modality_weights is not None) == has_weights
    assert out.audio_model_output.last_hidden_state.shape[0] == 4
    assert out.vision_model_output.last_hidden_state.shape[0] == 12  # every frame of every clip


def test_heads_get_mean_tokens_unless_they_read_pooled_features():
    frame_mask = torch.tensor([[True, True, False]] * 4)
    out = tiny_model(fusion="adaptive")(**tiny_inputs(), frame_mask=frame_mask)
    audio, vision = out.modality_tokens
    assert tiny_model(fusion="adaptive").fusion.features_read(out) is out.modality_tokens
    _close(audio, out.audio_model_output.last_hidden_state.mean(1))
    frames = out.vision_model_output.last_hidden_state.view(4, 3, -1, 16)
    _close(vision, frames[:, :2].mean((1, 2)))
    model = tiny_model(fusion="gated")
    out = model(**tiny_inputs())
    _close(model._unimodal_logits(out.modality_features), out.modality_logits)
    assert model.fusion.features_read(out) is out.modality_features


def test_one_frame_may_come_without_its_axis():
    model, inputs = tiny_model(), tiny_inputs(frames=1)
    five = model(**inputs).logits
    four = model(input_values=inputs["input_values"], pixel_values=inputs["pixel_values"][:, 0]).logits
    assert torch.equal(four, five)


def test_return_dict_false_gives_the_same_values():
    model, inputs = tiny_model(), tiny_inputs()
    out, values = model(**inputs, labels=LABELS), model(**inputs, labels=LABELS, return_dict=False)
    assert torch.equal(values[0], out.loss) and torch.equal(values[1], out.logits)


def test_cosine_unimodal_heads_ignore_the_norm_of_features():
    model = tiny_model(unimodal_head="cosine", fusion="sum")
    features = tuple(torch.randn(3, 16) for _ in range(2))
    _close(model._unimodal_logits(tuple(9 * f for f in features)), model._unimodal_logits(features))
    assert tiny_model(fusion="mmcosine").unimodal_heads[0].scale == 10.0


# -- missing modalities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["audio", "vision"])
@pytest.mark.parametrize("fusion", HEADS)
def test_leaving_an_input_out_masking_it_and_passing_nan_are_the_same(fusion, missing):
    model, inputs = tiny_model(fusion=fusion), tiny_inputs()
    name = {"audio": "input_values", "vision": "pixel_values"}[missing]
    mask = torch.tensor([[missing != "audio", missing != "vision"]] * 4)
    left_out = model(**{key: value for key, value in inputs.items() if key != name}, labels=LABELS)
    masked = model(**inputs, modality_mask=mask, labels=LABELS)
    nan = model(**{**inputs, name: torch.full_like(inputs[name], torch.nan)}, modality_mask=mask.long(), labels=LABELS)
    for other in (masked, nan):
        for field in ("loss", "logits", "modality_logits", "modality_contributions", "modality_mask"):
            _close(other[field], left_out[field])
    assert torch.isfinite(left_out.logits).all()
    both = model(**inputs).logits
    assert not torch.allclose(left_out.logits, both, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fusion", HEADS)
def test_every_clip_gives_the_same_result_in_a_mixed_batch(fusion, training):
    model, inputs = tiny_model(fusion=fusion, frame_pooling="temporal").train(training), tiny_inputs()
    mask = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    frames = torch.tensor([[True] * 3, [True] * 3, [True, True, False], [True, False, False]])
    dirty = {key: value.clone() for key, value in inputs.items()}
    dirty["input_values"][2] = torch.nan
    dirty["pixel_values"][1] = torch.inf
    dirty["pixel_values"][2, 2] = torch.nan
    whole = model(**dirty, modality_mask=mask, frame_mask=frames, labels=LABELS)
    assert torch.isfinite(whole.loss)
    for row, count in enumerate(frames.sum(1).tolist()):
        alone = {}
        if mask[row, 0]:
            alone["input_values"] = inputs["input_values"][row : row + 1]
        if mask[row, 1]:
            alone["pixel_values"] = inputs["pixel_values"][row : row + 1, :count]
        out = model(**alone)
        for field in ("logits", "modality_logits", "modality_contributions"):
            _close(out[field], whole[field][row : row + 1])
    assert whole.modality_mask.tolist() == mask.long().tolist()


@pytest.mark.parametrize("fusion", HEADS)
def test_a_missing_input_leaves_finite_gradients(fusion):
    model, inputs = tiny_model(fusion=fusion).train(), tiny_inputs()
    inputs["input_values"][0] = torch.nan
    mask = torch.tensor([[False, True], [True, False], [True, True], [True, True]])
    model(**inputs, modality_mask=mask, labels=LABELS).loss.backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)


def test_a_clip_without_frames_in_the_frame_mask_has_no_vision():
    model, inputs = tiny_model(), tiny_inputs()
    frames = torch.tensor([[True] * 3, [False] * 3, [True] * 3, [True] * 3])
    out = model(**inputs, frame_mask=frames)
    assert out.modality_mask.tolist() == [[1, 1], [1, 0], [1, 1], [1, 1]]
    _close(out.logits[1:2], model(input_values=inputs["input_values"][1:2]).logits)


# -- errors -----------------------------------------------------------------------------------------------------


def test_no_modality_at_all_is_refused():
    model, inputs = tiny_model(), tiny_inputs()
    with pytest.raises(ValueError, match="no modality at all: pass input_values, pixel_values or both"):
        model()
    mask = torch.tensor([[True, True], [False, False], [True, False], [False, False]])
    with pytest.raises(ValueError, match=r"no modality at all in clip\(s\) \[1, 3\] of the batch"):
        model(**inputs, modality_mask=mask)
    with pytest.raises(ValueError, match=r"no modality at all in clip\(s\) \[0\]"):
        model(pixel_values=inputs["pixel_values"], frame_mask=torch.tensor([[False] * 3] + [[True] * 3] * 3))


@pytest.mark.parametrize("label", [4, -1])
def test_labels_outside_the_classes_are_refused(label):
    message = rf"label {label} is outside the model's 4 classes \(0 to 3\): check id2label"
    with pytest.raises(ValueError, match=message):
        tiny_model()(**tiny_inputs(), labels=torch.tensor([0, 1, label, 2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": torch.zeros(3, 2, 3, 16, 16)}, "input_values has 4 clips, pixel_values 3: give the same"),
        ({"pixel_values": torch.zeros(4, 16, 16)}, r"pixel_values has 3 axes: expected \(B, T, 3, H, W\)"),
        (
            {"input_values": torch.zeros(4, 30, 16)},
            r"input_values has shape \(4, 30, 16\), expected \(B, 24, 16\): use",
        ),
        ({"input_values": torch.zeros(4)}, r"input_values has shape \(4,\), expected \(B, 24, 16\)"),
        ({"modality_mask": torch.ones(4, 3)}, r"modality_mask has shape \(4, 3\), expected \(4, 2\)"),
        ({"frame_mask": torch.ones(4, 2)}, r"frame_mask has shape \(4, 2\), expected \(4, 3\)"),
        ({"frame_mask": torch.ones(3)}, r"frame_mask has shape \(3,\), expected \(4, 3\)"),
        ({"labels": torch.zeros(4)}, r"labels has type torch.float32, expected torch.int64"),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, r"labels has type torch.int32, expected torch.int64"),
        ({"labels": torch.zeros(4, 1, dtype=torch.long)}, r"labels has shape \(4, 1\), expected \(4,\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**{**tiny_inputs(), "labels": LABELS, **changes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "summ"}, "fusion='summ' is unknown: choose one of adaptive, concat"),
        ({"fusion_options": {"gates": "class"}}, "'adaptive' does not accept fusion_options={'gates': 'class'}"),
        ({"fusion_options": {"calibration": "cubic"}}, "calibration='cubic' is unknown: choose one of temperature"),
        ({"frame_pooling": "temporal", "temporal_heads": 3}, "temporal_heads=3 must divide"),
    ],
)
def test_configs_with_unknown_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MMBalanceForAudioVisualClassification(tiny_config(**options))


# -- who learns from what ---------------------------------------------------------------------------------------


def test_towers_learn_through_a_fitted_head_that_does_not_change():
    model = tiny_model().train()
    assert not list(model.fusion.parameters())
    grads = []
    for temperature in (0.0, 1.0):
        model.fusion.log_temperature.fill_(temperature)
        model.zero_grad()
        model(**tiny_inputs(), labels=LABELS).loss.backward()
        grads.append(model.unimodal_heads[0].weight.grad.clone())
    assert not torch.allclose(*grads)


@pytest.mark.parametrize("fusion", ["gated", "film"])
def test_unimodal_heads_for_diagnosis_do_not_reach_the_towers(fusion):
    model = tiny_model(fusion=fusion)
    model(**tiny_inputs(), labels=LABELS).unimodal_loss.backward()
    for name, parameter in model.named_parameters():
        touched = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert touched == name.startswith("unimodal_heads."), name


def test_ensembles_do_not_learn_from_the_fused_loss():
    model = tiny_model(fusion="mean_prob")
    out = model(**tiny_inputs(), labels=LABELS)
    torch.testing.assert_close(out.loss, out.unimodal_loss)


# -- modalities that no training clip had -----------------------------------------------------------------------


@pytest.mark.parametrize(("untrained", "given"), [("audio", "pixel_values"), ("vision", "input_values")])
def test_an_untrained_modality_is_left_out(untrained, given):
    model, inputs = tiny_model(), tiny_inputs()
    expected = model(**{given: inputs[given]})
    model.config.untrained_modalities = [untrained]
    out = model(**inputs)
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.modality_mask, expected.modality_mask)
    other = next(name for name in inputs if name != given)
    with pytest.raises(ValueError, match=f"no modality at all: .*{untrained} does not count: no clip that this model"):
        model(**{other: inputs[other]})
    present = torch.tensor([[True, True], [untrained == "audio", untrained == "vision"]] + [[True, True]] * 2)
    with pytest.raises(ValueError, match=rf"no modality at all in clip\(s\) \[1\].*{untrained} does not count"):
        model(**inputs, modality_mask=present)


# -- modality dropout -------------------------------------------------------------------------------------------


def test_modality_dropout_rates():
    """P(audio dropped) = r_a (1 - r_v): drawn independently, a clip that would lose both keeps both."""
    model = tiny_model(modality_dropout=[0.3, 0.5])
    torch.manual_seed(0)
    here = torch.ones(40_000, 2, dtype=torch.bool)
    kept = model._drop_modalities(here)
    assert kept.any(1).all()
    assert (~kept).float().mean(0).tolist() == pytest.approx([0.3 * 0.5, 0.5 * 0.7], abs=0.01)


def test_modality_dropout_keeps_a_single_modality():
    model = tiny_model(modality_dropout=[0.9, 0.9])
    torch.manual_seed(0)
    here = torch.tensor([[True, True], [True, False], [False, True]]).repeat(500, 1)
    kept = model._drop_modalities(here)
    assert torch.equal(kept[1::3], here[1::3]) and torch.equal(kept[2::3], here[2::3])
    assert not kept[0::3].all()
    assert not (kept & ~here).any()


def test_modality_dropout_acts_in_training_only():
    model = tiny_model(modality_dropout=[0.6, 0.6])
    inputs = tiny_inputs(batch=32)
    torch.manual_seed(0)
    assert model.train()(**inputs).modality_mask.min() == 0
    assert model.eval()(**inputs).modality_mask.min() == 1


# -- saving, precision, memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", HEADS)
def test_save_and_load(fusion, tmp_path):
    model, inputs = tiny_model(fusion=fusion, frame_pooling="temporal"), tiny_inputs()
    if fusion == "adaptive":
        for buffer in model.fusion.buffers():
            buffer.uniform_(0.1, 0.9)
    model.save_pretrained(tmp_path)
    again, info = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "modeling_mmbalance.py").is_file()


def test_legacy_weight_names_load_too(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, save_original_format=True)
    again = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def assert_plain_sum(out):
    """The same probabilities as the sum of log-probabilities; logits are known but for a constant."""
    _close(out.logits.softmax(-1), out.modality_logits.log_softmax(-1).sum(1).softmax(-1))


def test_a_new_number_of_classes_starts_new_heads(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    new = MMBalanceForAudioVisualClassification.from_pretrained(
        tmp_path, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}, ignore_mismatched_sizes=True
    )
    assert_plain_sum(new(**tiny_inputs()))
    assert new.num_labels == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fitted_decision_layer_of_a_model_in_half_precision_is_not_rounded(dtype, tmp_path):
    model = tiny_model(fusion_options={"typicality": [4, 4]})
    with torch.no_grad():
        for name, buffer in model.fusion.named_buffers():
            buffer.copy_(torch.rand(buffer.shape) * (1e6 if "precision" in name else 1.0))
    model.save_pretrained(tmp_path)
    half = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    for (name, buffer), other in zip(model.fusion.named_buffers(), half.fusion.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert torch.isfinite(half(**tiny_inputs()).logits).all()


@pytest.mark.parametrize("fusion", HEADS)
def test_bf16(fusion):
    model = tiny_model(fusion=fusion, frame_pooling="temporal")
    inputs = tiny_inputs()
    reference = model(**inputs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**inputs, labels=LABELS)
    mixed.loss.backward()
    half = model.bfloat16()(**inputs, labels=LABELS)
    for out in (mixed, half):
        assert out.logits.dtype == torch.float32 and torch.isfinite(out.loss)
        torch.testing.assert_close(out.logits.float(), reference, atol=0.3, rtol=0.1)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = tiny_model(frame_pooling="temporal").train()
    stored = copy.deepcopy(model)
    stored.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in stored.audio_model.modules())
    for each in (model, stored):
        each(**tiny_inputs(), labels=LABELS).loss.backward()
    for (name, one), other in zip(model.named_parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_attention_implementation_per_tower():
    reference, inputs = tiny_model(), tiny_inputs()
    mixed = MMBalanceForAudioVisualClassification._from_config(
        tiny_config(), attn_implementation={"audio_config": "eager", "vision_config": "sdpa"}
    ).eval()
    mixed.load_state_dict(reference.state_dict())
    assert mixed.audio_model.config._attn_implementation == "eager"
    assert mixed.vision_model.config._attn_implementation == "sdpa"
    _close(mixed(**inputs).logits, reference(**inputs).logits)
    mixed.set_attn_implementation("eager")
    assert mixed.vision_model.config._attn_implementation == "eager"
    out = mixed(**inputs, output_attentions=True)
    assert len(out.audio_model_output.attentions) == len(out.vision_model_output.attentions) == 2


def test_a_new_model_starts_as_the_plain_sum():
    model = MMBalanceForAudioVisualClassification(tiny_config(frame_pooling="temporal"))
    assert_plain_sum(model(**tiny_inputs()))
    assert model.frame_pooling.positions.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["adaptive", "gated"])
def test_torch_compile(fusion):
    model, inputs = tiny_model(fusion=fusion, frame_pooling="temporal"), tiny_inputs()
    counter = CompileCounter()
    counted = torch.compile(model, backend=counter)
    _close(counted(**inputs).logits, model(**inputs).logits)
    assert counter.frame_count >= 1
    has_compiler = os.environ.get("CXX") or any(os.access(f"{folder}/c++", os.X_OK) for folder in os.get_exec_path())
    if fusion == "adaptive" and has_compiler:  # the towers, which take the time, are the same for both
        torch._dynamo.reset()
        _close(torch.compile(model)(**inputs).logits, model(**inputs).logits)
