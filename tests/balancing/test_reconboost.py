"""ReconBoost's stages and losses by hand, and the published code's constant agreement."""

from __future__ import annotations

import pytest
import torch

from ..model.tiny import tiny_model
from .steps import CLIPS, LABELS, attached, batch_of, clips, gradients, plain_gradients, some_missing, train


@pytest.mark.parametrize(
    ("stage_epochs", "joint_epochs", "expected"),
    [
        (1, 1, [0, None, 1, None, 2, None]),
        (2, 1, [0, 0, None, 1, 1, None]),
        (1, 0, [0, 1, 2, 3, 4, 5]),
        (0, 2, [None] * 6),
    ],
)
def test_stages(stage_epochs, joint_epochs, expected):
    method = attached("reconboost", stage_epochs=stage_epochs, joint_epochs=joint_epochs).balancing
    found = []
    for method.epoch in range(6):
        found.append(method.stage())
    assert found == expected


def stage_by_hand(inputs, m: int, agreement: float) -> dict[str, torch.Tensor]:
    """Gradients of a stage's loss, clip by clip, with weight 3 and reconcile 2."""
    model = tiny_model(fusion="sum").train()
    out = model(**{k: v for k, v in inputs.items() if k not in ("clip_index", "labels")})
    total, other = 0.0, 1 - m
    for i in range(CLIPS):
        if not out.modality_mask[i, m]:
            continue
        own, rest = (out.modality_logits[i, n].softmax(0) for n in (m, other))
        alone = not out.modality_mask[i, other]
        known = 0.25 if alone else rest[LABELS[i]].item()
        total = total - (3 - 2 * known) * own[LABELS[i]].log() / 4 / CLIPS
        if not alone:
            total = total + agreement * ((own - rest.detach()) ** 2).sum() / 4 / CLIPS
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_stage_by_hand(epoch, missing):
    """Epoch 0: audio, without a stage before; epoch 2: vision, which is drawn to audio."""
    inputs = some_missing(clips()) if missing else clips()
    expected = stage_by_hand(inputs, epoch // 2, 0.7 if epoch else 0.0)
    model = attached("reconboost", weight=3.0, reconcile=2.0, agreement=0.7)
    model.balancing.epoch = epoch
    found = gradients(model, inputs)
    own = ("audio_model", "unimodal_heads.0") if epoch == 0 else ("vision_model", "unimodal_heads.1")
    assert found and all(name.startswith(own) for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4, msg=name)


def test_the_agreement_has_a_gradient():
    """In the published code both sides are cut off: whatever its weight, gradients are the same."""
    found = []
    for agreement in (0.0, 5.0):
        model = attached("reconboost", agreement=agreement)
        model.balancing.epoch = 2
        found.append(gradients(model)["vision_model.embeddings.cls_token"])
    assert (found[1] - found[0]).abs().max() > 1e-4


def test_the_rectification_is_joint_training():
    plain = plain_gradients("sum", fused_loss_weight=1.0, unimodal_loss_weight=0.0)
    model = attached("reconboost")
    model.balancing.epoch = 1
    found = gradients(model)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_what_waits_does_not_move_under_momentum_and_decay():
    model = attached("reconboost")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model.balancing.epoch = 1
    train(model, range(2), optimizer=optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.balancing.epoch = 2  # vision's stage
    train(model, range(1), optimizer=optimizer)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith(("vision_model", "unimodal_heads.1")) for name in moved)


def test_three_modalities():
    """The second stage: the second modality learns, against the sum of both others, drawn to the first."""
    logits = torch.randn(CLIPS, 3, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    method = attached("reconboost", weight=3.0, reconcile=2.0, agreement=0.7).balancing
    method.epoch = 2
    expected = 0.0
    for i, y in enumerate(LABELS):
        first, own, third = logits[i].detach()
        right = (first + third).softmax(0)[y]
        expected += float(-(3 - 2 * right) * own.softmax(0)[y].log()) / 4 / CLIPS
        expected += 0.7 * float(((own.softmax(0) - first.softmax(0)) ** 2).sum()) / 4 / CLIPS
    loss = method.loss(batch_of(logits))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert [bool(logits.grad[:, m].any()) for m in range(3)] == [False, True, False]
