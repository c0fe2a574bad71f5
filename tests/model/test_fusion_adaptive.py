"""The adaptive head against its formula, computed by hand clip by clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mmbalance.model.fusion_adaptive_mmbalance import AdaptiveFusion
from hf_mmbalance.model.fusion_mmbalance import SumFusion

from .tiny import log_softmax, random_case


OPTIONS = [(c, t) for c in ("temperature", "vector", "dirichlet") for t in (False, True)]
WIDTH = 5


def random_head(modalities: int = 2, classes: int = 4, calibration: str = "temperature", typicality: bool = False):
    generator = torch.Generator().manual_seed(1)
    ranks = [WIDTH, *[3] * (modalities - 1)] if typicality else None
    head = AdaptiveFusion(modalities, classes, (WIDTH,) * modalities, calibration, ranks)
    for name, buffer in head.named_buffers():
        buffer.add_(0.5 * torch.randn(buffer.shape, generator=generator))
        if name == "log_prior":
            buffer.copy_(torch.log_softmax(buffer, 0))
        if name.startswith("typicality_basis"):
            buffer.copy_(torch.linalg.qr(buffer.T)[0].T)
        if name.startswith(("typicality_precision", "typicality_rest", "typicality_scale")):
            buffer.abs_().add_(1.0)
    return head


def features_of(batch: int, modalities: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(batch, WIDTH, generator=generator) for _ in range(modalities))


def typicality_by_hand(head: AdaptiveFusion, own: dict, x: np.ndarray, m: int) -> float:
    basis, precision = own[f"typicality_basis_{m}"], own[f"typicality_precision_{m}"]
    centred = x - own[f"typicality_mean_{m}"]
    along = basis @ centred
    rest = own["typicality_rest"][m] * ((centred - basis.T @ along) ** 2).sum()
    squares = [(precision * (along - centre) ** 2).sum() + rest for centre in own[f"typicality_centres_{m}"]]
    t = (0.5 * np.log(min(squares)) - own["typicality_location"][m]) / own["typicality_scale"][m]
    return float(np.clip(t, 0, 8))


def by_hand(head: AdaptiveFusion, logits: np.ndarray, mask: np.ndarray, features: tuple[torch.Tensor, ...]):
    """Fused logits, weights, contributions and trust, with loops and no shortcuts."""
    own = {name: value.double().numpy() for name, value in head.named_buffers()}
    batch, modalities, classes = logits.shape
    fused, weights, terms = np.zeros((batch, classes)), np.zeros(logits.shape), np.zeros(logits.shape)
    trust = np.zeros((batch, modalities))
    for b in range(batch):
        r = (mask[b].sum() - 1) / (modalities - 1)
        fused[b] = own["log_prior"] + own["prior_shift"] + r * own["bias"]
        for m in np.flatnonzero(mask[b]):
            row = log_softmax(logits[b, m])
            if head.calibration == "vector":
                row = own["calibration_scale"][m] * row + own["calibration_bias"][m]
            if head.calibration == "dirichlet":
                row = own["calibration_map"][m] @ row + own["calibration_bias"][m]
            log_factor = -own["log_temperature"][m]
            if head.ranks is not None:
                t = typicality_by_hand(head, own, features[m][b].double().numpy(), m)
                log_factor += own["typicality_slope"][m] * t
            posterior = log_softmax(row * np.exp(log_factor))
            weights[b, m] = 1 + r * (own["weights"][m] - 1)
            terms[b, m] = weights[b, m] * (posterior - own["log_prior"])
            trust[b, m] = np.exp(posterior).max()
        fused[b] += terms[b].sum(0)
    return fused, weights, terms, trust


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(("calibration", "typicality"), OPTIONS)
def test_formula(calibration, typicality, modalities):
    logits, mask = random_case(batch=8, modalities=modalities)
    features = features_of(8, modalities)
    head = random_head(modalities, calibration=calibration, typicality=typicality)
    out = head(logits, mask, features)
    fused, weights, terms, trust = by_hand(head, logits.double().numpy(), mask.numpy(), features)
    np.testing.assert_allclose(out.logits.numpy(), fused, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(out.modality_weights.numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(out.modality_contributions.numpy(), terms, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(out.modality_trust.numpy(), trust, atol=1e-5)


@pytest.mark.parametrize(("calibration", "typicality"), OPTIONS)
@pytest.mark.parametrize("modalities", [2, 3])
def test_a_new_head_is_the_plain_sum(calibration, typicality, modalities):
    logits, mask = random_case(batch=8, modalities=modalities)
    ranks = [WIDTH] * modalities if typicality else None
    head = AdaptiveFusion(modalities, 4, (WIDTH,) * modalities, calibration, ranks)
    got = head(logits, mask, features_of(8, modalities)).logits.log_softmax(-1)
    torch.testing.assert_close(got, SumFusion(modalities, 4)(logits, mask).logits.log_softmax(-1))


@pytest.mark.parametrize(("calibration", "typicality"), OPTIONS)
@pytest.mark.parametrize("modalities", [2, 3])
def test_one_modality_present_gives_its_own_calibrated_posterior(calibration, typicality, modalities):
    logits, _ = random_case(modalities=modalities)
    head = random_head(modalities, calibration=calibration, typicality=typicality)
    head.prior_shift.zero_()
    features = features_of(5, modalities)
    for present in range(modalities):
        mask = torch.zeros(5, modalities, dtype=torch.bool)
        mask[:, present] = True
        out = head(logits, mask, features)
        assert (out.modality_weights[:, present] == 1).all()
        torch.testing.assert_close(out.logits.exp().sum(1), torch.ones(5))
        torch.testing.assert_close(out.logits.exp().amax(1), out.modality_trust[:, present])


def test_a_known_prior_is_bayes_rule_for_any_number_of_modalities():
    logits, mask = random_case(modalities=3, batch=7)
    head = random_head(3)
    head.prior_shift.zero_()
    before = head(logits, mask).logits.softmax(-1)
    new = torch.tensor([0.7, 0.1, 0.1, 0.1])
    head.prior_shift.copy_(new.log() - head.log_prior)
    expected = before * new / head.log_prior.exp()
    torch.testing.assert_close(head(logits, mask).logits.softmax(-1), expected / expected.sum(1, keepdim=True))


def test_two_independent_towers_give_the_exact_posterior():
    """Binary x_m with known likelihoods and an uneven prior: the head on exact unimodal posteriors is Bayes' rule."""
    prior = np.array([0.7, 0.2, 0.1])
    likelihood = np.array([[0.9, 0.3, 0.5], [0.2, 0.6, 0.9]])  # p(x_m = 1 | c)
    head = AdaptiveFusion(2, 3)
    head.log_prior.copy_(torch.tensor(prior).log())
    for x in np.ndindex(2, 2):
        given = np.where(np.array(x)[:, None] == 1, likelihood, 1 - likelihood)
        unimodal = np.log(prior * given / (prior * given).sum(1, keepdims=True))
        exact = prior * given.prod(0)
        got = head(torch.tensor(unimodal[None]).float(), torch.ones(1, 2, dtype=torch.bool)).logits.softmax(-1)
        np.testing.assert_allclose(got[0].numpy(), exact / exact.sum(), atol=1e-6)


def test_typicality_without_features_or_with_unknown_ones_is_average():
    logits, mask = random_case(batch=6)
    head = random_head(typicality=True)
    features = features_of(6, 2)
    unknown = tuple(torch.full_like(value, torch.nan) for value in features)
    without = head(logits, mask).logits
    assert torch.equal(head(logits, mask, unknown).logits, without)
    head.typicality_slope.zero_()
    torch.testing.assert_close(head(logits, mask, features).logits, without)


def test_typicality_gives_the_towers_no_gradient():
    logits, mask = random_case()
    head = random_head(typicality=True)
    features = tuple(value.requires_grad_() for value in features_of(5, 2))
    z = logits.requires_grad_()
    head(z, mask, features).logits.square().sum().backward()
    assert z.grad.abs().sum() > 0 and all(value.grad is None for value in features)


def test_the_head_has_buffers_only_and_says_that_it_is_fitted():
    head = random_head(calibration="dirichlet", typicality=True)
    assert head.fitted and not list(head.parameters())
    assert set(dict(head.named_buffers())) == set(head.state_dict())
    default = AdaptiveFusion(2, 4).state_dict()
    assert set(default) == {"log_prior", "prior_shift", "log_temperature", "weights", "bias"}


@pytest.mark.parametrize(("calibration", "typicality"), OPTIONS)
def test_init_weights_restores_the_plain_sum(calibration, typicality):
    head = random_head(calibration=calibration, typicality=typicality)
    head.init_weights()
    neutral = AdaptiveFusion(2, 4, head.feature_sizes, calibration, head.ranks)
    for name, buffer in head.named_buffers():
        assert torch.equal(buffer, neutral.get_buffer(name)), name


def test_decisions_are_float32_in_half_precision_and_under_autocast():
    logits, mask = random_case()
    head, features = random_head(calibration="dirichlet", typicality=True), features_of(5, 2)
    reference = head(logits, mask, features).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(logits, mask, features).logits
    assert torch.equal(mixed, reference)
    assert head(logits, mask, tuple(value.bfloat16() for value in features)).logits.dtype == torch.float32
    assert head.bfloat16()(logits, mask, features).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": "platt"}, "calibration='platt' is unknown: choose one of temperature, vector"),
        ({"typicality": [1]}, "must give 2 ranks"),
        ({"typicality": [9, 1]}, "at most the width"),
        ({"typicality": [-1, 1]}, "must give 2 ranks"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveFusion(2, 4, (5, 5), **options)
