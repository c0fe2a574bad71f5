"""Typicality: distances by hand, low rank, cross-fitting, and what it brings on clips of unforeseen corruption."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from hf_mmbalance.decision import typicality as module
from hf_mmbalance.decision.allocation import Allocation, fit_decision_layer
from hf_mmbalance.decision.state import SLOPE
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.decision.typicality import fit_typicality, log_distances, statistics, tower_statistics
from hf_mmbalance.metrics.measures import accuracy, nll

from .drawn_tables import draw, draw_with_features


def mahalanobis(x: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log distance to the nearest class mean, by inverting the shrunk pooled covariance."""
    centres = np.stack([features[labels == c].mean(axis=0) for c in np.unique(labels)])
    within = features - centres[np.searchsorted(np.unique(labels), labels)]
    covariance = within.T @ within / len(features)
    inverse = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    away = x[:, None] - centres
    return 0.5 * np.log(np.einsum("ncd,de,nce->nc", away, inverse, away).min(axis=1))


def test_distances_by_hand() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 100)
    features = rng.normal(size=(100, 4)) @ rng.normal(size=(4, 4)) + 3 * np.eye(4)[labels]
    fresh = rng.normal(size=(20, 4)) * 3
    arrays, without = statistics([features], labels, 3)
    assert without == []
    np.testing.assert_allclose(log_distances(arrays, (1, 3), [fresh])[:, 0], mahalanobis(fresh, features, labels))


def test_low_rank_keeps_class_means_and_the_largest_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isotropic but for 3 directions: with class means inside the basis the low-rank distance is the exact one."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4000)
    scale = np.concatenate([[9.0, 7.0, 5.0], np.ones(27)])
    features = rng.normal(size=(4000, 30)) * scale + 4 * np.eye(30)[labels + 5]
    full = statistics([features], labels, 4)[0]
    monkeypatch.setattr(module, "MAX_NUMBERS", 60 + 12 * (30 + 4 + 1))
    low = statistics([features], labels, 4)[0]
    assert low["typicality_basis_0"].shape == (12, 30)
    np.testing.assert_allclose(low["typicality_basis_0"] @ low["typicality_basis_0"].T, np.eye(12), atol=1e-9)
    fresh = rng.normal(size=(50, 30)) * scale
    exact, near = (log_distances(arrays, (1, 4), [fresh])[:, 0] for arrays in (full, low))
    np.testing.assert_allclose(near, exact, atol=0.02)


def test_two_megabytes_at_most() -> None:
    rng = np.random.default_rng(0)
    found = tower_statistics(rng.normal(size=(400, 900)), rng.integers(0, 200, 400), 200)
    assert found is not None
    assert 4 * sum(value.size for value in found.values()) <= 2**21


def fitted_on(data: dict[str, Any], **options: Any) -> Allocation:
    allocation = Allocation(folds=3, strengths=(30.0, 3.0), **options)
    reference = data["clean"]
    return allocation.fit(
        data["logits"], data["labels"], data["groups"], data["features"], reference, None, data["draws"]
    )


def test_corrupted_towers_lose_their_weight() -> None:
    data, fresh = draw_with_features(), draw_with_features(seed=1)
    with_it = fitted_on(data)
    assert with_it.chosen_ in ("typicality", "global") and (with_it.state_[SLOPE] < -0.3).all()
    plain = Allocation(rung="temperature").fit(data["logits"], data["labels"], data["groups"])
    logits = with_it.decision_function(fresh["logits"], fresh["features"])
    assert (
        accuracy(logits, fresh["labels"]) > accuracy(plain.decision_function(fresh["logits"]), fresh["labels"]) + 0.05
    )
    assert nll(logits, fresh["labels"]) < nll(plain.decision_function(fresh["logits"]), fresh["labels"]) - 0.15
    # trust is calibrated: what a tower says of itself is how often it is right, corrupted or not
    trust = with_it.fuse(fresh["logits"], fresh["features"]).trust
    right = fresh["logits"].argmax(axis=2) == fresh["labels"][:, None]
    assert abs(trust.mean() - right.mean()) < 0.04
    low, high = trust < np.quantile(trust, 0.2), trust > np.quantile(trust, 0.8)
    assert right[low].mean() < 0.45 and right[high].mean() > 0.85


def test_without_training_clips_every_clip_is_measured_out_of_fold() -> None:
    data = draw_with_features(n=200)
    groups, clips = np.array(data["groups"]), np.arange(200).astype(str)
    arguments: dict[str, Any] = {
        "reference": None,
        "groups": groups,
        "clips": clips,
        "draws": data["draws"],
        "folds": 4,
    }
    mask = np.ones((200, 2), dtype=bool)
    _, before, notes = fit_typicality(data["features"], data["labels"], mask, 4, **arguments)
    assert any("out of fold" in note for note in notes)
    assert before.min() == 0 and before[data["draws"] == 0].mean() < before[data["draws"] > 0].mean()
    # a group's own features do not move the statistics that measure them: far away they are as untypical as can be
    moved = [value.copy() for value in data["features"]]
    own = groups == groups[0]
    moved[0][own] += 100
    arrays, after, _ = fit_typicality(moved, data["labels"], mask, 4, **arguments)
    assert (after[own, 0] > 3).all() and after[own, 0].min() >= after[~own, 0].max()
    assert arrays["typicality_scale"].shape == (2,)


def test_t_counts_from_the_mean_of_the_clean_clips_in_their_deviations() -> None:
    data = draw_with_features(n=200)
    features, labels = [data["features"][0]], data["labels"]
    logs = mahalanobis(data["features"][0], data["clean"][0][0], data["clean"][1])
    clean = data["draws"] == 0
    _, found, _ = fit_typicality(
        features, labels, np.ones((200, 1), dtype=bool), 4, reference=([data["clean"][0][0]], data["clean"][1]),
        groups=np.array(data["groups"]), clips=np.arange(200).astype(str), draws=data["draws"],
    )  # fmt: skip
    expected = np.clip((logs - logs[clean].mean()) / logs[clean].std(), 0, 8)
    np.testing.assert_allclose(found[:, 0], expected)
    assert (found[clean, 0] == 0).any() and 0 < clean.sum() < 200


def test_unknown_features_count_as_typical_and_this_is_said() -> None:
    data = draw_with_features(n=100)
    data["features"][1][:7] = np.nan
    mask = np.ones((100, 2), dtype=bool)
    _, found, notes = fit_typicality(
        data["features"], data["labels"], mask, 4, reference=data["clean"], groups=np.array(data["groups"]),
        clips=np.arange(100).astype(str), draws=data["draws"],
    )  # fmt: skip
    assert (found[:7, 1] == 0).all() and any("7 clip(s) have modality 1 but not its features" in n for n in notes)


@pytest.mark.parametrize("spoil", ["constant", "few", "none"])
def test_unusable_features_fall_back_with_a_note(spoil: str) -> None:
    data = draw_with_features(n=100)
    rows = slice(0, 15) if spoil == "few" else slice(None)
    features = [np.ones((100, 3)) if spoil == "constant" else value for value in data["features"]]
    if spoil == "none":
        features = [None, None]
    groups = np.array(data["groups"])[rows]
    kept = [None if value is None else value[rows] for value in features]
    with pytest.warns(UserWarning, match="typicality: .* left out"):
        allocation = Allocation(folds=2).fit(data["logits"][rows], data["labels"][rows], groups, kept)
    assert "typicality" not in allocation.ladder_.states


def test_a_class_of_fewer_clips_than_dimensions_is_fine() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 3)
    arrays, without = statistics([rng.normal(size=(30, 64))], labels, 10)
    assert without == [] and np.isfinite(log_distances(arrays, (1, 10), [rng.normal(size=(5, 64))])).all()


def table_of(data: dict[str, Any]) -> DecisionTable:
    n, own = len(data["labels"]), data["clean"]
    logits = np.concatenate([data["logits"], 2 * np.stack([x[:, :4] for x in own[0]], axis=1)])
    features = [np.concatenate(pair) for pair in zip(data["features"], own[0], strict=True)]
    return DecisionTable(
        ids=[str(i) for i in range(n + 300)], groups=[*data["groups"], *["t"] * 300],
        splits=["calibration"] * n + ["train"] * 300, labels=np.concatenate([data["labels"], own[1]]), logits=logits,
        classes=list("abcd"), modalities=["audio", "vision"],
        draws=np.concatenate([data["draws"], np.zeros(300, int)]),
        features=dict(zip(("audio", "vision"), features, strict=True)),
    )  # fmt: skip


def test_the_one_call_uses_train_rows_for_statistics_only() -> None:
    data = draw_with_features()
    table = table_of(data)
    allocation = fit_decision_layer(table)
    np.testing.assert_allclose(
        allocation.state_["typicality_mean_0"], data["clean"][0][0].mean(axis=0), err_msg="means are of train clips"
    )
    other = table_of(data)
    other.logits[len(data["labels"]) :] *= -1
    assert fit_decision_layer(other).describe() == allocation.describe()
    kept = fit_decision_layer(table, structure="default")
    assert not kept.state_.options and "typicality" not in kept.ladder_.states
    other.features = {name: np.where(np.arange(len(table))[:, None] < 600, value, np.nan)
                      for name, value in table.features.items()}  # fmt: skip
    with pytest.warns(UserWarning, match="no features of training clips"):
        assert "typicality" in fit_decision_layer(other).ladder_.states


def test_features_by_name_may_come_in_any_order() -> None:
    data = draw_with_features(n=200)
    names = ("audio", "vision")
    features = dict(zip(names, data["features"], strict=True))
    reference = (dict(zip(names, data["clean"][0], strict=True)), data["clean"][1])
    allocation = Allocation(rung="typicality", folds=2)
    turned = {name: features[name] for name in reversed(names)}
    allocation.fit(data["logits"], data["labels"], data["groups"], features, reference, None, data["draws"])
    right = allocation.decision_function(data["logits"], data["features"])
    np.testing.assert_array_equal(allocation.decision_function(data["logits"], turned), right)
    assert not np.allclose(allocation.decision_function(data["logits"], list(turned.values())), right)
    assert allocation.score(data["logits"], data["labels"], features=turned) == accuracy(right, data["labels"])
    half = allocation.decision_function(data["logits"], {"vision": features["vision"]})
    np.testing.assert_array_equal(half, allocation.decision_function(data["logits"], [None, data["features"][1]]))
    with pytest.raises(ValueError, match="features of sound: the modalities are audio, vision"):
        allocation.predict(data["logits"], {"sound": features["audio"]})
    with pytest.raises(ValueError, match="features of audio for 2 modalities"):
        Allocation().fit(data["logits"], data["labels"], features={"audio": features["audio"]})


def test_missing_features_are_told_where_they_matter() -> None:
    """A decision without them is another one than that which was judged."""
    data = draw_with_features(n=200)
    allocation = fitted_on(data, rung="typicality")
    with pytest.warns(UserWarning, match="none are given: every clip counts as typical"):
        allocation.predict(data["logits"])
    plain = fitted_on(data, rung="temperature")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.predict(data["logits"])


@pytest.mark.parametrize("labels", [np.full(300, 4), np.full(300, -1), np.zeros(300), np.array(["a"] * 300)])
def test_labels_of_reference_clips_are_checked(labels: np.ndarray) -> None:
    data = draw_with_features(n=60)
    with pytest.raises(ValueError, match="labels of the reference clips must be integers from 0 to 3"):
        Allocation().fit(data["logits"], data["labels"], None, data["features"], (data["clean"][0], labels))


def test_features_of_the_training_clips_only_are_not_enough() -> None:
    data = draw_with_features(n=60)
    with pytest.warns(UserWarning, match="no modality has features that vary"):
        Allocation(folds=2, strengths=(3.0,)).fit(
            data["logits"], data["labels"], data["groups"], [None, None], data["clean"]
        )


def test_partly_nan_features_are_refused() -> None:
    data = draw_with_features(n=60)
    data["features"][0][3, 1] = np.inf
    with pytest.raises(ValueError, match="features of modality 0 hold NaN or inf within 1 row"):
        Allocation().fit(data["logits"], data["labels"], data["groups"], data["features"])
    with pytest.raises(ValueError, match="features of 1 modalities for 2"):
        Allocation().fit(data["logits"], data["labels"], data["groups"], data["features"][:1])


def test_folds_of_features_are_over_clips_where_the_groups_are_known() -> None:
    """Features that tell the group: a clip of a new group lies far from all class means, one of a known group near."""
    data, rng = draw(n=120, groups=4), np.random.default_rng(0)
    features = 20 * np.eye(4)[[int(group[1:]) for group in data["groups"]]] + rng.normal(size=(120, 4))
    distances = []
    for known in (False, True):
        allocation = Allocation(rung="temperature", folds=2, known_groups=known)
        allocation.fit(data["logits"], data["labels"], data["groups"], [features, None])
        distances.append(allocation.statistics_["typicality_location"][0])
    assert distances[1] < distances[0] - 0.5
