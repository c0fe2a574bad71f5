"""Small tables with known truth for the decision tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_mmbalance.decision.table import DecisionTable


def draw(
    n: int = 600, modalities: int = 2, classes: int = 4, groups: int = 12, missing: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Towers that are true likelihoods under a wrong temperature (the first 4 times too sharp) and a class bias."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    seen = rng.normal(size=(n, modalities, classes))
    seen[np.arange(n), :, labels] += 1.6
    logits = 1.6 * seen
    logits[:, 0] = 4 * logits[:, 0] + np.linspace(-1, 1, classes)
    gone = rng.random((n, modalities)) < missing
    gone[np.arange(n), rng.integers(0, modalities, n)] = False
    logits[gone] = np.nan
    return {"logits": logits, "labels": labels, "groups": [f"g{i}" for i in rng.integers(0, groups, n)]}


def make_table(**options: Any) -> DecisionTable:
    """A decision table, half calibration, half test, groups apart."""
    drawn = draw(**options)
    n, modalities, classes = drawn["logits"].shape
    names = sorted(set(drawn["groups"]))
    return DecisionTable(
        ids=[f"clip{i}" for i in range(n)],
        splits=["calibration" if g < names[len(names) // 2] else "test" for g in drawn["groups"]],
        classes=[f"class {c}" for c in range(classes)],
        modalities=["audio", "vision", "depth", "touch", "smell", "taste"][:modalities],
        **drawn,
    )


def draw_with_features(
    n: int = 600, modalities: int = 2, classes: int = 4, groups: int = 12, missing: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Linear towers on features 2 e_y + noise in 6 dimensions; of half the clips one modality is corrupted.

    A corrupted feature is noise of six times the size: the tower is as confident as ever, and wrong; but the clip lies
    far from every class mean. `clean` holds features and labels of 300 training clips, `draws` is 1 where corrupted.
    """
    rng = np.random.default_rng(seed)
    width = classes + 2

    def tower(labels: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
        x = rng.normal(size=(len(labels), width))
        x[np.arange(len(labels)), labels] += 2.0
        x[corrupted] = 6 * rng.normal(size=(int(corrupted.sum()), width))
        return x

    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    which = np.where(rng.random(n) < 0.5, rng.integers(0, modalities, n), -1)
    features = [tower(labels, which == m) for m in range(modalities)]
    logits = np.stack([2 * x[:, :classes] for x in features], axis=1)
    gone = rng.random((n, modalities)) < missing
    gone[np.arange(n), rng.integers(0, modalities, n)] = False
    logits[gone] = np.nan
    own = rng.integers(0, classes, 300)
    return {
        "logits": logits,
        "labels": labels,
        "groups": [f"g{i}" for i in rng.integers(0, groups, n)],
        "features": features,
        "draws": (which >= 0).astype(int),
        "clean": ([tower(own, np.zeros(300, dtype=bool)) for _ in range(modalities)], own),
    }
