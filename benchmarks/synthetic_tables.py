"""Random decision tables with a known Bayes optimum: towers of any quality, miscalibrated, missing, shifted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_mmbalance.metrics.measures import log_softmax


@dataclass
class SyntheticTable:
    """A fit part and a test part, with the best possible fused log-posterior of the test part.

    Args:
        fit_logits, test_logits: `(N, M, C)`, NaN rows where missing.
        fit_labels, test_labels: `(N,)`.
        fit_groups, test_groups: `(N,)` speakers, none on both sides.
        bayes: `(N_test, C)` log-posterior of the label given everything present, under the test part's true model.
        shifted: "no", "yes" or "strong": how far reliabilities differ between the parts.
        description: sizes and settings that were drawn.
    """

    fit_logits: np.ndarray
    fit_labels: np.ndarray
    fit_groups: np.ndarray
    test_logits: np.ndarray
    test_labels: np.ndarray
    test_groups: np.ndarray
    bayes: np.ndarray
    shifted: str
    description: str


def make_table(seed: int, strong: bool = False) -> SyntheticTable:
    """Draw one table.

    Modality m sees x_m = s_mc e_y + noise in C dimensions (a Gaussian channel whose signal s depends on the class and,
    by a factor, on the speaker), so its true log-likelihood of class c is s_mc x_mc - s_mc^2 / 2. Its tower reports a
    distorted version: scaled by its own temperature, biased towards some classes, confused between pairs of classes,
    and noisy. The optimum knows x, s and the speaker's factor; what no fusion of the tower's logits can recover is
    therefore part of every method's regret. A third of the tables draw a different signal strength for the test part.
    """
    rng = np.random.default_rng([2510, 14411, seed])
    modalities, classes = int(rng.integers(2, 5)), int(np.exp(rng.uniform(np.log(2), np.log(50.99))))
    fit_n = int(np.exp(rng.uniform(np.log(100), np.log(3000))))
    fit_speakers = int(rng.choice([3, 5, 8, 12, 20, 30]))
    missing = float(rng.choice([0.0, 0.0, 0.1, 0.3]))
    shift = 1.0 if strong else 0.5 * (seed % 3 == 2)
    quality = np.exp(rng.normal(np.log(1.2 + 0.4 * np.log(classes)), 0.5, size=modalities))
    by_class = np.exp(rng.normal(0, rng.choice([0.0, 0.3, 0.7]), size=(modalities, classes)))
    signal = quality[:, None] * by_class
    prior = rng.dirichlet(np.full(classes, 10.0))
    tower = _Tower(rng, modalities, classes)
    spread = float(rng.choice([0.0, 0.15, 0.3]))
    moved = np.exp(rng.normal(0, shift, size=(modalities, 1))) if shift else np.ones((modalities, 1))
    parts = []
    for factor, n, first, speakers in (
        (np.ones((modalities, 1)), fit_n, 0, fit_speakers),
        (moved, 2000, fit_speakers, 20),
    ):
        parts.append(_part(rng, signal * factor, prior, tower, n, first, speakers, spread, missing))
    (fit_z, fit_y, fit_g, _), (test_z, test_y, test_g, bayes) = parts
    text = f"N={fit_n} M={modalities} C={classes} speakers={fit_speakers} missing={missing} spread={spread}"
    return SyntheticTable(
        fit_z, fit_y, fit_g, test_z, test_y, test_g, bayes, {0.0: "no", 0.5: "yes", 1.0: "strong"}[float(shift)], text
    )


class _Tower:
    """Distortion that turns a modality's true log-likelihoods into the logits of its tower."""

    def __init__(self, rng: np.random.Generator, modalities: int, classes: int) -> None:
        self.scale = np.exp(rng.normal(0, 0.7, size=(modalities, 1)))
        self.bias = rng.normal(0, rng.choice([0.0, 0.5, 1.0]), size=(modalities, classes))
        confusion = rng.choice([0.0, 0.2])
        self.maps = np.stack([np.eye(classes) + confusion * np.eye(classes)[rng.permutation(classes)]
                              for _ in range(modalities)])  # fmt: skip
        self.noise = float(rng.choice([0.0, 0.3]))

    def logits(self, rng: np.random.Generator, likelihood: np.ndarray) -> np.ndarray:
        mixed = np.einsum("mdc,nmc->nmd", self.maps, likelihood)
        return self.scale * mixed + self.bias + rng.normal(0, self.noise, size=mixed.shape)


def _part(
    rng: np.random.Generator, signal: np.ndarray, prior: np.ndarray, tower: _Tower, n: int, first: int,
    speakers: int, spread: float, missing: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    modalities, classes = signal.shape
    labels = rng.choice(classes, size=n, p=prior)
    groups = rng.integers(0, speakers, size=n)
    own = signal * np.exp(rng.normal(0, spread, size=(speakers, modalities, 1)))  # speakers differ in clarity
    strength = own[groups]
    seen = rng.normal(size=(n, modalities, classes))
    seen[np.arange(n), :, labels] += strength[np.arange(n), :, labels]
    likelihood = strength * seen - strength**2 / 2
    present = rng.random((n, modalities)) >= missing
    present[np.arange(n), rng.integers(0, modalities, size=n)] = True
    bayes = log_softmax(np.log(prior) + np.where(present[..., None], likelihood, 0).sum(axis=1))
    # A tower is trained on the pooled signal: it computes likelihoods for the average channel.
    reported = tower.logits(rng, signal * seen - signal**2 / 2 + np.log(prior))
    return np.where(present[..., None], reported, np.nan), labels, groups + first, bayes
