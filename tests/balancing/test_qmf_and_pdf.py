"""The losses of the heads `qmf` and `pdf` by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hf_mmbalance.balancing import build_method
from hf_mmbalance.balancing.qmf import ranking_loss

from ..model.tiny import tiny_model
from .steps import LABELS, attached, backward, clips, gradients, plain_gradients, some_missing


@pytest.mark.parametrize(
    ("confidence", "history", "expected"),
    [
        # The harder clip (h = .8) must be less confident by the difference .5: it is, by .6.
        ((0.3, 0.9), (0.8, 0.3), 0.0),
        # Less confident, but by .2 only: .3 are lacking. With the published sign, either order would do up to .5.
        ((0.7, 0.9), (0.8, 0.3), 0.3),
        ((0.9, 0.7), (0.8, 0.3), 0.7),
        ((0.9, 0.2), (0.4, 0.4), 0.0),
    ],
)
def test_a_pair_by_hand(confidence, history, expected):
    found = ranking_loss(torch.tensor(confidence), torch.tensor(history))
    assert found.tolist() == pytest.approx([expected, expected], abs=1e-6)  # i, j and j, i


def outputs(fusion: str, inputs):
    model = tiny_model(fusion=fusion).train()
    with torch.no_grad():
        return model(**{k: v for k, v in inputs.items() if k != "clip_index"})


@pytest.mark.parametrize("missing", [False, True])
def test_qmf_by_hand(missing):
    inputs = some_missing(clips()) if missing else clips()
    out = outputs("qmf", inputs)
    mask = out.modality_mask.bool().tolist()
    ce = [
        [float(torch.nn.functional.cross_entropy(out.modality_logits[i, m], LABELS[i])) * mask[i][m] for m in range(2)]
        for i in range(8)
    ]
    joint = float(out.fused_loss) + sum(map(sum, ce)) / 8
    model = attached("qmf", weight=0.7)
    assert backward(model, inputs) == pytest.approx(joint, abs=1e-5)  # no history yet: h = 0, no order
    history = model.balancing.state["history"]
    torch.testing.assert_close(history, torch.tensor(ce), atol=1e-5, rtol=1e-5)

    scaled = (history - history.amin(0)) / (history.amax(0) - history.amin(0))
    rank = 0.0
    for m in range(2):
        for i in range(8):
            j = (i + 1) % 8
            if mask[i][m] and mask[j][m]:
                ci, cj = (math.log(sum(math.exp(z) for z in out.modality_logits[k, m].tolist())) / 10 for k in (i, j))
                hi, hj = float(scaled[i, m]), float(scaled[j, m])
                rank += max(0.0, math.copysign(1, hi - hj) * (ci - cj) + abs(hi - hj)) / 8
    assert rank > 0.1
    assert backward(model, inputs) == pytest.approx(joint + 0.7 * rank, abs=1e-4)
    torch.testing.assert_close(model.balancing.state["history"], 2 * torch.tensor(ce), atol=1e-4, rtol=1e-4)


def test_a_clip_that_a_step_has_twice_is_counted_twice():
    """With `history[index] += loss`, as published, one of the two is lost."""
    model = attached("qmf")
    inputs = clips()
    inputs["clip_index"] = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])
    backward(model, inputs)
    out = outputs("qmf", clips())
    losses = torch.nn.functional.cross_entropy(out.modality_logits[:, 0], LABELS, reduction="none")
    torch.testing.assert_close(model.balancing.state["history"][0, 0], losses[0] + losses[7])
    assert model.balancing.state["history"][7].tolist() == [0.0, 0.0]


def test_the_ranking_loss_trains_the_towers_through_the_energy():
    model = attached("qmf")
    gradients(model, clips())
    plain = plain_gradients("qmf", fused_loss_weight=1.0, unimodal_loss_weight=1.0)
    found = gradients(model, clips())
    assert not torch.allclose(found["audio_model.embeddings.cls_token"], plain["audio_model.embeddings.cls_token"])


def test_qmf_needs_to_know_its_clips():
    method = build_method("qmf")
    with pytest.raises(ValueError, match="set num_clips"):
        method.attach(tiny_model(fusion="qmf"))
    model = attached("qmf")
    inputs = {key: value for key, value in clips().items() if key != "clip_index"}
    with pytest.raises(ValueError, match="set clip_index"):
        model(**inputs)


@pytest.mark.parametrize("missing", [False, True])
def test_pdf_by_hand(missing):
    inputs = some_missing(clips()) if missing else clips()
    out = outputs("pdf", inputs)
    head = tiny_model(fusion="pdf").fusion
    expected = float(out.fused_loss) + float(out.unimodal_loss)
    for m in range(2):
        with torch.no_grad():
            predicted = torch.sigmoid(head.confidence_nets[m](out.modality_features[m]))[:, 0]
        for i in range(8):
            if out.modality_mask[i, m]:
                target = torch.softmax(out.modality_logits[i, m], 0)[LABELS[i]]
                expected += abs(float(predicted[i] - target)) / 8
    assert backward(attached("pdf"), inputs) == pytest.approx(expected, abs=1e-5)


def test_the_loss_of_confidence_does_not_reach_the_towers():
    plain, found = plain_gradients("pdf", fused_loss_weight=1.0, unimodal_loss_weight=1.0), gradients(attached("pdf"))
    for name, value in plain.items():
        if "confidence_nets" not in name:
            torch.testing.assert_close(found[name], value, msg=name)
    assert found["fusion.confidence_nets.0.0.weight"].abs().sum() > 0
