"""The adaptive head against its formula, computed by hand clip by clip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_mmbalance.model.fusion_adaptive_mmbalance import AdaptiveFusion, evidence
from hf_mmbalance.model.fusion_mmbalance import SumFusion

from .tiny import log_softmax, random_case


OPTIONS = [(c, g) for c in ("temperature", "vector", "dirichlet") for g in ("none", "modality", "class")]


def _random_head(modalities: int = 2, classes: int = 4, **options: str) -> AdaptiveFusion:
    torch.manual_seed(1)
    head = AdaptiveFusion(modalities, classes, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return head


def _by_hand(head: AdaptiveFusion, logits: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fused logits, weights and calibrated log-probabilities, with loops and no shortcuts."""
    own = {name: value.detach().double().numpy() for name, value in head.named_parameters()}
    batch, modalities, classes = logits.shape
    fused, weights, scores = np.zeros((batch, classes)), np.zeros(logits.shape), np.zeros(logits.shape)
    for b in range(batch):
        present = [m for m in range(modalities) if mask[b, m]]
        sure = np.zeros(3 * modalities)
        for m in present:
            row = log_softmax(logits[b, m])
            if head.calibration == "vector":
                row = own["calibration_scale"][m] * row + own["calibration_bias"][m]
            if head.calibration == "dirichlet":
                row = own["calibration_map"][m] @ row + own["calibration_bias"][m]
            scores[b, m] = log_softmax(row / np.exp(own["log_temperature"][m]))
            p = np.sort(np.exp(scores[b, m]))[::-1]
            sure[3 * m : 3 * m + 3] = -(p * np.log(p)).sum() / math.log(classes), p[0] - p[1], p[0]
        for c in range(classes):
            push = {}
            for m in present:
                push[m] = own["alpha"][m, c]
                if head.gate == "modality":
                    push[m] += own["gate_weight"][m] @ sure
                if head.gate == "class":
                    push[m] += own["gate_weight"][m, c] @ sure
            total = sum(math.exp(value) for value in push.values())
            kappa = math.exp(own["log_kappa"][c]) * len(present) / modalities if len(present) > 1 else 1.0
            for m in present:
                weights[b, m, c] = kappa * math.exp(push[m]) / total
            fused[b, c] = (weights[b, :, c] * scores[b, :, c]).sum() + (own["bias"][c] if len(present) > 1 else 0.0)
    return fused, weights, scores


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(("calibration", "gate"), OPTIONS)
def test_formula(calibration, gate, modalities):
    logits, mask = random_case(batch=8, modalities=modalities)
    head = _random_head(modalities, calibration=calibration, gate=gate)
    out = head(logits, mask)
    fused, weights, scores = _by_hand(head, logits.double().numpy(), mask.numpy())
    np.testing.assert_allclose(out.logits.detach().numpy(), fused, atol=1e-4)
    np.testing.assert_allclose(out.modality_weights.detach().numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(out.modality_contributions.detach().numpy(), weights * scores, atol=1e-4)
    np.testing.assert_allclose(out.shares.detach().sum(1).numpy(), 1.0, atol=1e-6)


@pytest.mark.parametrize(("calibration", "gate"), OPTIONS)
@pytest.mark.parametrize("modalities", [2, 3])
def test_a_new_head_is_the_plain_sum(calibration, gate, modalities):
    logits, mask = random_case(batch=8, modalities=modalities)
    head = AdaptiveFusion(modalities, 4, calibration=calibration, gate=gate)
    torch.testing.assert_close(
        head(logits, mask).logits, SumFusion(modalities, 4)(logits, mask).logits, atol=1e-5, rtol=1e-5
    )
    assert head.shrinkage().item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("calibration", "gate"), OPTIONS)
@pytest.mark.parametrize("modalities", [2, 3])
def test_one_modality_present_gives_its_own_calibrated_log_probabilities(calibration, gate, modalities):
    logits, _ = random_case(modalities=modalities)
    head = _random_head(modalities, calibration=calibration, gate=gate)
    for present in range(modalities):
        mask = torch.zeros(5, modalities, dtype=torch.bool)
        mask[:, present] = True
        out = head(logits, mask)
        _, _, scores = _by_hand(head, logits.double().numpy(), mask.numpy())
        np.testing.assert_allclose(out.logits.detach().numpy(), scores[:, present], atol=1e-5)
        assert (out.modality_weights[:, present] == 1).all()


def test_evidence_by_hand():
    """Uniform, certain, and (1/2, 1/4, 1/4): entropies 1, 0 and 1.5 bits of log2(3)."""
    probs = torch.tensor([[[1 / 3] * 3, [1 - 2e-12, 1e-12, 1e-12], [0.5, 0.25, 0.25]]], dtype=torch.float64)
    rows = evidence(probs.log(), torch.tensor([[True, True, True]])).view(3, 3).numpy()
    np.testing.assert_allclose(rows[0], [1, 0, 1 / 3], atol=1e-9)
    np.testing.assert_allclose(rows[1], [0, 1, 1], atol=1e-9)
    np.testing.assert_allclose(rows[2], [1.5 / math.log2(3), 0.25, 0.5], atol=1e-9)
    assert (evidence(probs.log(), torch.tensor([[True, False, True]]))[0, 3:6] == 0).all()


def test_the_gate_reads_detached_evidence():
    """The gate passes gradient to its weights, not to the towers: with alpha-only weights dF/dz is the same."""
    logits, mask = random_case()
    mask[:] = True
    head = _random_head(gate="class")
    grads = []
    for frozen_shares in (False, True):
        z = logits.clone().requires_grad_()
        out = head(z, mask)
        weights = out.modality_weights.detach() if frozen_shares else out.modality_weights
        (weights * torch.log_softmax(z / head.log_temperature.exp().detach()[:, None], -1)).sum().backward()
        grads.append(z.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_freeze_allocation_stops_the_heads_own_gradients_and_detached_inputs_the_towers():
    logits, mask = random_case()
    head = _random_head(calibration="dirichlet", gate="modality")
    z = logits.clone().requires_grad_()
    frozen = head(z, mask, freeze_allocation=True)
    frozen.logits.square().sum().backward()
    assert all(parameter.grad is None for parameter in head.parameters())
    assert z.grad.abs().sum() > 0
    z = logits.clone().requires_grad_()
    free = head(z.detach(), mask)
    free.logits.square().sum().backward()
    assert z.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    torch.testing.assert_close(frozen.logits, free.logits)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_clip_without_modality_gives_finite_gradients():
    head = _random_head(gate="class")
    logits, _ = random_case()
    with torch.autograd.detect_anomaly(check_nan=True):  # not even on the way
        head(logits, torch.zeros(5, 2, dtype=torch.bool)).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_capability_share_is_clipped_normalised_and_uniform_where_nothing_is_known():
    head = AdaptiveFusion(2, 4)
    assert torch.equal(head.capability_share(), torch.full((2, 4), 0.5))
    head.capability.copy_(torch.tensor([[0.3, -0.2, -0.1, 0.0], [0.1, 0.4, -0.5, 0.0]]))
    expected = torch.tensor([[0.75, 0.0, 0.5, 0.5], [0.25, 1.0, 0.5, 0.5]])
    torch.testing.assert_close(head.capability_share(), expected)


def test_balance_loss_is_the_kl_divergence_of_the_mean_share():
    head = AdaptiveFusion(2, 3)
    head.capability.copy_(torch.tensor([[0.3, 0.0, 0.2], [0.1, 0.5, 0.2]]))
    shares = torch.rand(6, 2, 3).softmax(1)
    clips = torch.tensor([True, False, True, True, False, True])
    mean = shares[clips].mean(0).double().numpy()
    target = np.array([[0.75, 0.0, 0.5], [0.25, 1.0, 0.5]])
    kl = [sum(t * math.log(t / m) for t, m in zip(target[:, c], mean[:, c], strict=True) if t > 0) for c in range(3)]
    assert head.balance_loss(shares, clips).item() == pytest.approx(np.mean(kl), abs=1e-5)


def test_balance_loss_is_zero_at_the_capability_share_and_without_clips():
    head = AdaptiveFusion(2, 3)
    head.capability.copy_(torch.tensor([[0.3, 0.2, 0.2], [0.1, 0.6, 0.2]]))
    shares = head.capability_share().expand(4, 2, 3)
    assert head.balance_loss(shares, torch.ones(4, dtype=torch.bool)).item() == pytest.approx(0.0, abs=1e-6)
    free = torch.rand(4, 2, 3, requires_grad=True)
    loss = head.balance_loss(free, torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0 and (free.grad == 0).all()


def test_shares_follow_capability_under_the_balance_loss_alone():
    head = AdaptiveFusion(2, 3)
    head.capability.copy_(torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.6, 0.5]]))
    logits, _ = random_case(classes=3)
    everything = torch.ones(5, 2, dtype=torch.bool)
    optimizer = torch.optim.SGD(head.parameters(), lr=10.0)
    for _ in range(200):
        optimizer.zero_grad()
        head.balance_loss(head(logits, everything).shares, everything[:, 0]).backward()
        optimizer.step()
    torch.testing.assert_close(head(logits, everything).shares[0], head.capability_share(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("calibration", "gate"), OPTIONS)
def test_shrinkage_is_the_squared_distance_from_the_plain_sum(calibration, gate):
    """All of a class's own deviation, a tenth of what classes share and of the temperatures."""
    head, neutral = _random_head(calibration=calibration, gate=gate), AdaptiveFusion(2, 4, (), calibration, gate)
    expected, others = 0.0, dict(neutral.named_parameters())
    for name, value in head.named_parameters():
        away = (value - others[name]).detach().double().numpy()
        if name == "log_temperature":
            expected += 0.1 * (away**2).sum()
        elif name in ("calibration_map", "gate_weight"):
            expected += (away**2).sum()
        else:
            for row in np.atleast_2d(away):
                expected += sum((x - row.mean()) ** 2 for x in row) + 0.1 * len(row) * row.mean() ** 2
    assert head.shrinkage().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("calibration", "gate"), OPTIONS)
def test_init_weights_restores_the_plain_sum(calibration, gate):
    head = _random_head(calibration=calibration, gate=gate)
    head.capability.fill_(0.7)
    head.init_weights()
    assert head.shrinkage().item() == pytest.approx(0.0, abs=1e-12)
    assert (head.capability == 0).all()


def test_decisions_are_float32_in_half_precision_and_under_autocast():
    logits, mask = random_case()
    head = _random_head(calibration="dirichlet", gate="class")
    reference = head(logits, mask).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(logits, mask).logits
    assert torch.equal(mixed, reference)
    assert head.bfloat16()(logits, mask).logits.dtype == torch.float32


@pytest.mark.parametrize(("option", "known"), [("calibration", "temperature, vector"), ("gate", "none, modality")])
def test_unknown_options_are_refused(option, known):
    with pytest.raises(ValueError, match=f"{option}='platt' is unknown: choose one of {known}"):
        AdaptiveFusion(2, 4, **{option: "platt"})
