"""OPM's rates in closed form, its loss by hand, and the published code's defects."""

from __future__ import annotations

import math

import pytest
import torch

from ..model.tiny import VISION, tiny_model
from .steps import CLIPS, LABELS, attached, backward, clips, gradients, plain_gradients, some_missing
from .test_ogm import scores


JOINT = {"fused_loss_weight": 1.0, "unimodal_loss_weight": 0.0}


def inputs_of(batch):
    return {key: value for key, value in batch.items() if key not in ("clip_index", "labels")}


def test_rates_in_closed_form():
    method = attached("opm", base=0.4, strength=0.5).balancing
    assert method.rates([3.0, 2.0]) == [pytest.approx(0.4 * (1 + 0.5 * math.tanh(0.5))), 0.0]
    assert method.rates([2.0, 3.0])[0] == 0.0
    assert method.rates([2.0, 2.0]) == method.rates([0.0, 0.0]) == [0.0, 0.0]
    assert method.rates([1.0, 0.0]) == [pytest.approx(0.6), 0.0]
    assert attached("opm", base=0.9).balancing.rates([9.0, 1.0]) == [1.0, 0.0]  # not above 1


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_a_modality_that_is_far_ahead_is_missing(fusion, missing):
    """At rate 1 all clips lose it, but for those that have nothing else; the other feature is doubled."""
    inputs = some_missing(clips()) if missing else clips()
    model = attached("opm", fusion=fusion, base=1.0, strength=0.0, probability=1.0)
    first = gradients(model, inputs)
    plain = plain_gradients(fusion, inputs, **JOINT)
    for name, value in plain.items():
        torch.testing.assert_close(first[name], value, msg=name)  # no scores yet: joint training
    s = scores(fusion, inputs, [0, 2, 3, 5, 7] if missing else list(range(CLIPS)))
    torch.testing.assert_close(model.balancing.state["scores"], torch.tensor(s), atol=1e-5, rtol=1e-5)
    ahead = int(s[1] > s[0])
    reference = tiny_model(fusion=fusion).train()
    out = reference(**inputs_of(inputs))
    logits = []
    for i in range(CLIPS):
        weak = 1 - ahead if out.modality_mask[i, 1 - ahead] else ahead
        feature = 2 * out.modality_features[weak][i]
        if fusion == "sum":
            logits.append(reference.unimodal_heads[weak](feature))
        else:
            logits.append(reference.fusion.halves[weak](feature) + reference.fusion.bias / 2)
    torch.nn.functional.cross_entropy(torch.stack(logits), LABELS).backward()
    found = gradients(model, inputs)
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert not missing or found[f"{('audio', 'vision')[ahead]}_model.embeddings.cls_token"].any()


def test_as_many_clips_lose_it_as_the_rate_says():
    model = attached("opm", base=0.3, strength=0.0, probability=0.5)
    method, count, asked = model.balancing, 200, []
    method.num_clips, method.clip_index = count, torch.arange(count)
    decide = model.decide
    model.decide = lambda features, mask, *rest: asked.append((features, mask)) or decide(features, mask, *rest)
    given = tuple(torch.randn(count, 16) for _ in range(2))
    drops = []
    for _ in range(100):
        method.state["scores"] = torch.tensor([1.0, 2.0])
        asked.clear()
        model(modality_features=given, labels=torch.arange(count) % 4).loss.backward()
        method.before_step()
        if len(asked) == 2:  # the model's own decision, and that on what is left
            features, mask = asked[1]
            assert mask[:, 0].all()
            drops.append(1 - mask[:, 1].float().mean().item())
            for before, after in zip(given, features, strict=True):
                torch.testing.assert_close(after, before / (1 - 0.15))  # both of width 16: theta = (0 + .3) / 2
    assert len(drops) / 100 == pytest.approx(0.5, abs=0.15)
    assert sum(drops) / len(drops) == pytest.approx(0.3, abs=0.02)


def test_theta_weighs_by_the_widths_of_the_features():
    """The published code has 512 for both."""
    vision = {**VISION, "hidden_size": 12}
    model = attached(
        "opm", model=tiny_model(fusion="sum", vision_config=vision), base=0.5, strength=0.0, probability=1.0
    )
    asked = []
    decide = model.decide
    model.decide = lambda features, mask, *rest: asked.append(features) or decide(features, mask, *rest)
    model.balancing.state["scores"] = torch.tensor([2.0, 1.0])
    backward(model, clips())
    torch.testing.assert_close(asked[1][1], asked[0][1] / (1 - 16 * 0.5 / 28))


def test_draws_are_by_seed_step_and_clip():
    """They leave the random state alone, and another order of the same clips loses the same ones."""

    def dropped(order, seed=0):
        model = attached("opm", base=0.6, strength=0.0, probability=1.0)
        model.balancing.seed, masks = seed, []
        decide = model.decide
        model.decide = lambda features, mask, *rest: masks.append(mask) or decide(features, mask, *rest)
        model.balancing.state["scores"] = torch.tensor([2.0, 1.0])
        before = torch.get_rng_state()
        backward(model, {key: value[order] for key, value in clips().items()})
        assert torch.equal(torch.get_rng_state(), before)
        return masks[1]

    order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
    plain = dropped(torch.arange(CLIPS))
    assert torch.equal(dropped(order), plain[order])
    assert not torch.equal(dropped(torch.arange(CLIPS), seed=3), plain)


def test_it_rests_in_the_first_part_of_the_training():
    plain = plain_gradients("sum", **JOINT)
    model = attached("opm", base=0.9, probability=1.0, warmup=0.5)
    model.balancing.progress = 0.49
    for _ in range(2):
        found = gradients(model)
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    model.balancing.progress = 0.5
    assert not all(torch.equal(value, plain[name]) for name, value in gradients(model).items())
