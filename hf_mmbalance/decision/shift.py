"""Clips that are unlike those the allocation was fitted on: a check, and a correction for shifted priors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_mmbalance.decision.folds import standard_error
from hf_mmbalance.metrics.measures import log_softmax


#: A mean has moved if it differs by this many standard deviations (of the fitting clips) ...
MOVED_SPREADS = 0.5
#: ... and by this many standard errors of the difference, so that chance causes no warning.
MOVED_ERRORS = 4.0
MOVED_RATE = 0.2


@dataclass
class LogitProfile:
    """Summary of each modality's logits on the fitting clips.

    Args:
        entropy: `(M,)` mean entropy divided by log C, NaN for a modality that was never present.
        entropy_spread: `(M,)` standard deviation of that over clips.
        entropy_error: `(M,)` group-clustered standard error of the mean.
        probability: `(M, C)` mean probability of every class.
        missing: `(M,)` fraction of clips without the modality.
        clips: number of clips.
    """

    entropy: list[float]
    entropy_spread: list[float]
    entropy_error: list[float]
    probability: list[list[float]]
    missing: list[float]
    clips: int

    @classmethod
    def of(cls, logits: np.ndarray, groups: np.ndarray) -> LogitProfile:
        """Return the profile of `(N, M, C)` logits, with NaN rows where a modality is missing."""
        present = ~np.isnan(logits[:, :, 0])
        rows: list[tuple[float, float, float]] = []
        probability = np.full(logits.shape[1:], np.nan)
        for m in range(logits.shape[1]):
            here = present[:, m]
            if not here.any():
                rows.append((np.nan, np.nan, np.nan))
                continue
            entropy, p = _entropy(logits[here, m])
            probability[m] = p.mean(axis=0)
            rows.append((float(entropy.mean()), float(entropy.std()), standard_error(entropy, groups[here])))
        mean, spread, error = (list(column) for column in zip(*rows, strict=True))
        return cls(mean, spread, error, probability.tolist(), (1 - present.mean(axis=0)).tolist(), len(logits))

    def differences(self, logits: np.ndarray, modalities: list[str]) -> list[str]:
        """Return how logits differ from those of the fitting clips, one sentence each; empty if they do not."""
        present, found = ~np.isnan(logits[:, :, 0]), []
        for m, name in enumerate(modalities):
            here = present[:, m]
            rate = float(1 - here.mean())
            noise = MOVED_ERRORS * np.sqrt(0.25 / max(len(logits), 1))
            if abs(rate - self.missing[m]) > max(MOVED_RATE, noise):
                found.append(f"{name} is missing in {rate:.0%} of the clips, {self.missing[m]:.0%} in the fit")
            if not here.any() or np.isnan(self.entropy[m]):
                continue
            entropy, p = _entropy(logits[here, m])
            moved = float(entropy.mean()) - self.entropy[m]
            # The spread of a few clips says little, and a single clip has none.
            spread = max(entropy.std(), self.entropy_spread[m])
            error = np.hypot(self.entropy_error[m], spread / np.sqrt(len(entropy)))
            if abs(moved) > max(MOVED_SPREADS * self.entropy_spread[m], MOVED_ERRORS * error):
                change = "less confident" if moved > 0 else "more confident"
                found.append(f"{name} is {change} than in the fit (mean entropy {entropy.mean():.2f} against"
                             f" {self.entropy[m]:.2f} of log C)")  # fmt: skip
            distance = 0.5 * float(np.abs(p.mean(axis=0) - np.asarray(self.probability[m])).sum())
            chance = MOVED_ERRORS * np.sqrt(p.shape[1] / 4) * np.sqrt(1 / len(entropy) + 1 / self.clips)
            if distance > max(MOVED_RATE, 0.5 * chance):
                found.append(
                    f"{name} spreads its probability over the classes differently from the fit"
                    f" (distance {distance:.2f})"
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def estimate_prior(log_probs: np.ndarray, prior: np.ndarray, *, steps: int = 200) -> np.ndarray:
    """Estimate the class prior of unlabelled clips by EM (Saerens, Latinne & Decaestecker 2002, eq. 2.9).

    This is only sound if the class prior changed and nothing else did.

    Args:
        log_probs: `(N, C)` log posterior under the prior of the fit.
        prior: `(C,)` prior of the fit.
        steps: largest number of iterations.

    Returns:
        `(C,)` estimated prior.
    """
    probabilities, new = np.exp(log_probs), prior.copy()
    for _ in range(steps):
        weighted = probabilities * (new / prior)
        updated = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
        done = np.abs(updated - new).max() < 1e-8
        new = updated
        if done:
            break
    return new


def checked_prior(prior: Any, classes: int) -> np.ndarray:
    """Return a class prior `(C,)` as float64, with no probability below 1e-12.

    Raises:
        ValueError: if it is not `classes` probabilities that sum to 1.
    """
    new = np.asarray(prior, dtype=np.float64)
    if new.shape != (classes,) or not (new >= 0).all() or not np.isclose(new.sum(), 1):
        raise ValueError(f"prior must be {classes} probabilities that sum to 1.")
    return np.maximum(new, 1e-12)


def shift_prior(log_probs: np.ndarray, prior: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the log posterior `(N, C)` under a different class prior (Bayes' rule)."""
    return log_softmax(log_probs + np.log(np.maximum(new, 1e-12)) - np.log(prior))


def _entropy(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    return -(p * log_p).sum(axis=1) / np.log(logits.shape[1]), p
