"""Towers trained apart and then frozen; modality dropout."""

from __future__ import annotations

import pytest
import torch

from ..model.tiny import tiny_model
from .steps import attached, clips, gradients, plain_gradients, some_missing, train


@pytest.mark.parametrize("missing", [False, True])
def test_towers_learn_apart_and_then_rest(missing):
    inputs = some_missing(clips()) if missing else clips()
    model = attached("frozen", pretraining=0.5)
    model.balancing.progress = 0.49
    expected = plain_gradients("concat", inputs, fused_loss_weight=0.0, unimodal_loss_weight=1.0)
    found = gradients(model, inputs)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)
    model.balancing.progress = 0.5
    expected = plain_gradients("concat", inputs, fused_loss_weight=1.0, unimodal_loss_weight=0.0)
    found = gradients(model, inputs)
    assert set(found) == {"fusion.halves.0.weight", "fusion.halves.1.weight", "fusion.bias"}
    for name in found:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_frozen_towers_do_not_move_under_momentum_and_decay():
    model = attached("frozen", pretraining=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    train(model, range(2), optimizer=optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.balancing.progress = 0.5
    train(model, range(2), optimizer=optimizer)
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"fusion"}


@pytest.mark.parametrize(("rates", "expected"), [(0.4, [0.4, 0.4]), ([0.5, 0.1], [0.5, 0.1])])
def test_modality_dropout_is_the_models(rates, expected):
    model = attached("modality_dropout", rates=rates)
    assert model.config.modality_dropout == expected
    torch.manual_seed(0)
    many = {key: value.repeat_interleave(50, dim=0) for key, value in clips().items() if key != "clip_index"}
    present = torch.cat([model(**many).modality_mask for _ in range(4)]).float().mean(0)
    a, v = expected  # a clip that would lose both keeps both
    assert present.tolist() == pytest.approx([1 - a + a * v, 1 - v + a * v], abs=0.05)


def test_rates_of_the_method_and_others_of_the_config_are_refused():
    with pytest.raises(ValueError, match=r"the method's rates are \[0.3, 0.3\], the config's are \[0.5, 0.0\]"):
        attached("modality_dropout", model=tiny_model(modality_dropout=[0.5, 0.0]))
    model = attached("modality_dropout", rates=0.2)
    assert attached("modality_dropout", model=model, rates=0.2).config.modality_dropout == [0.2, 0.2]


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"modality_dropout=\[1.0, 0.0\]: give one rate in \[0, 1\)"):
        attached("modality_dropout", model=tiny_model(), rates=[1.0, 0.0])
