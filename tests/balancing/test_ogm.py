"""OGM and OGM-GE against hand computations, and the published code's defects."""

from __future__ import annotations

import math

import pytest
import torch

from hf_mmbalance.balancing.ogm import deviations, groups

from ..model.tiny import tiny_model
from .steps import LABELS, attached, by_tower, clips, gradients, plain_gradients, some_missing


def scores(fusion: str, inputs: dict[str, torch.Tensor], rows: list[int]) -> list[float]:
    """sum_i softmax(z_m,i)[y_i], clip by clip."""
    model = tiny_model(fusion=fusion).train()
    with torch.no_grad():
        logits = model(**{k: v for k, v in inputs.items() if k != "clip_index"}).modality_logits.double()
    totals = [0.0, 0.0]
    for i in rows:
        for m in range(2):
            exponentials = [math.exp(value) for value in logits[i, m].tolist()]
            totals[m] += exponentials[int(LABELS[i])] / sum(exponentials)
    return totals


def expected_factors(totals: list[float], alpha: float) -> list[float]:
    ratio = totals[0] / totals[1]
    if ratio > 1:
        return [1 - math.tanh(alpha * ratio), 1.0]
    return [1.0, 1 - math.tanh(alpha / ratio)]


@pytest.mark.parametrize("fusion", ["sum", "concat", "qmf", "adaptive"])
@pytest.mark.parametrize("missing", [False, True])
def test_the_tower_that_is_ahead_is_slowed(fusion, missing):
    inputs = some_missing(clips()) if missing else clips()
    totals = scores(fusion, inputs, [0, 2, 3, 5, 7] if missing else list(range(8)))
    factors = expected_factors(totals, 0.3)
    assert min(factors) < 0.95 and max(factors) == 1
    plain = plain_gradients(fusion, inputs, fused_loss_weight=1.0, unimodal_loss_weight=0.0)
    found = gradients(attached("ogm", fusion=fusion, alpha=0.3), inputs)
    for name, value in plain.items():
        factor = {"audio_model": factors[0], "vision_model": factors[1]}.get(name.split(".")[0], 1.0)
        torch.testing.assert_close(found[name], factor * value, atol=1e-7, rtol=1e-5, msg=name)


def test_coefficients_in_closed_form():
    method = attached("ogm", alpha=0.5).balancing
    assert method.coefficients([3.0, 2.0]) == [1 - math.tanh(0.75), 1.0]
    assert method.coefficients([2.0, 3.0]) == [1.0, 1 - math.tanh(0.75)]
    assert method.coefficients([2.0, 2.0]) == [1.0, 1.0]
    assert method.coefficients([0.0, 0.0]) == [1.0, 1.0]  # no clip has both
    assert method.coefficients([1.0, 0.0]) == [0.0, 1.0]


def test_all_trained_parameters_of_a_transformer_are_modulated():
    """The published code takes 4-D weights only: of a transformer, the patch embedding."""
    plain = plain_gradients(fused_loss_weight=1.0, unimodal_loss_weight=0.0)
    found = gradients(attached("ogm", alpha=5.0))
    slowed = [name for name in plain if not torch.equal(found[name], plain[name])]
    tower = slowed[0].split(".")[0]
    assert {name for name in plain if name.startswith(tower) and plain[name].any()} == set(slowed)
    assert len(slowed) > 20 and sum(plain[name].dim() == 4 for name in slowed) == 1


def test_frozen_parameters_are_left_out_and_pooling_belongs_to_vision():
    model = tiny_model(fusion="sum", frame_pooling="temporal")
    model.freeze_towers(1)
    method = attached("ogm", model=model).balancing
    audio, vision = method.tower_parameters()
    assert all(p.requires_grad for p in [*audio, *vision])
    pooling = set(model.frame_pooling.parameters())
    assert pooling and pooling <= set(vision) and not pooling & set(audio)
    assert len(vision) < len(list(model.vision_model.parameters()))


def test_noise_has_the_gradients_own_deviation_in_both_towers():
    plain = gradients(attached("ogm", alpha=0.3))
    noisy = gradients(attached("ogm_ge", alpha=0.3))
    for before, after in zip(by_tower(plain), by_tower(noisy), strict=True):
        assert not torch.equal(before, after)
    name = "vision_model.layers.0.mlp.fc1.weight"
    name = name if name in plain else max(plain, key=lambda key: plain[key].numel() * key.startswith("vision"))
    ratio = (noisy[name] - plain[name]).std() / plain[name].std()
    assert ratio.item() == pytest.approx(1, abs=4 / math.sqrt(2 * plain[name].numel()))
    half = gradients(attached("ogm_ge", alpha=0.3, noise=0.5))
    torch.testing.assert_close(half[name] - plain[name], (noisy[name] - plain[name]) / 2)
    heads = [key for key in plain if not key.startswith(("audio_model", "vision_model"))]
    assert heads and all(torch.equal(plain[key], noisy[key]) for key in heads)


def test_deviations():
    tensors = [torch.randn(7, 5) + 3, torch.tensor([1.0, 1.0]), torch.randn(100) * 1e-4]
    for found, tensor in zip(deviations(tensors), tensors, strict=True):
        torch.testing.assert_close(found, tensor.std(), rtol=1e-5, atol=1e-7)


def test_groups_hold_every_tensor_once_and_no_more_than_needed():
    tensors = [torch.zeros(size) for size in (3, 4, 9, 1, 2, 2, 20, 1)]
    sizes = [[len(tensor) for tensor in group] for group in groups(tensors, 5)]
    assert sizes == [[3, 4], [9], [1, 2, 2], [20], [1]]


def test_noise_is_drawn_by_seed_and_step_and_leaves_the_random_state_alone():
    """Drawn from the process's own state, replicas of the model would drift apart and a resumed run would differ."""
    first = attached("ogm_ge")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    values = gradients(first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = attached("ogm_ge")
    again = gradients(second)
    assert all(torch.equal(values[name], again[name]) for name in values)
    later = gradients(second)
    assert not torch.equal(later["audio_model.embeddings.cls_token"], again["audio_model.embeddings.cls_token"])
    other = attached("ogm_ge")
    other.balancing.seed = 7
    assert not torch.equal(gradients(other)["audio_model.embeddings.cls_token"],
                           values["audio_model.embeddings.cls_token"])  # fmt: skip


def test_it_rests_after_its_part_of_the_training():
    plain = plain_gradients(fused_loss_weight=1.0, unimodal_loss_weight=0.0)
    model = attached("ogm_ge", alpha=5.0, end=0.5)
    model.balancing.progress = 0.5
    found = gradients(model)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    model.balancing.progress = 0.49
    found = gradients(model)
    assert not all(torch.equal(found[name], plain[name]) for name in plain)
