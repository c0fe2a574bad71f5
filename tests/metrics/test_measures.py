"""Every measure against a hand computation or a closed form."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from hf_mmbalance.metrics import measures as me


def test_importing_measures_needs_numpy_only() -> None:
    code = "import sys, hf_mmbalance.metrics.measures; print({'torch', 'scipy', 'sklearn'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_log_softmax_is_normalised_stable_and_keeps_nan_rows() -> None:
    z = np.array([[1000.0, 1000.0], [0.0, np.log(3.0)], [np.nan, np.nan]])
    got = me.log_softmax(z)
    np.testing.assert_allclose(got[0], np.log([0.5, 0.5]))
    np.testing.assert_allclose(got[1], np.log([0.25, 0.75]))
    assert np.isnan(got[2]).all()
    np.testing.assert_allclose(me.log_softmax(z.T, axis=0)[:, 1], got[1])


def test_ties_go_to_the_lowest_index_also_across_rounding() -> None:
    z = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0 + 1e-9], [0.0, 1.0, 1.001]])
    assert me.predict(z).tolist() == [0, 1, 2]


def test_accuracy_nll_brier_by_hand() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.25, 0.25]])
    labels = np.array([0, 1, 0])
    z = np.log(p) + np.array([[3.0], [-1.0], [0.0]])  # measures must not depend on a shift of a row
    assert me.accuracy(z, labels) == pytest.approx(2 / 3)
    assert me.nll(z, labels) == pytest.approx(-(np.log(0.7) + np.log(0.3) + np.log(0.5)) / 3)
    hand = (0.09 + 0.04 + 0.01) + (0.01 + 0.49 + 0.36) + (0.25 + 0.0625 + 0.0625)
    assert me.brier(z, labels) == pytest.approx(hand / 3)


def test_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(400, 5)) * 2, rng.integers(0, 4, 400)
    p = me.softmax(z)
    assert me.nll(z, labels) == pytest.approx(log_loss(labels, p, labels=range(5)))
    assert me.macro_f1(z, labels) == pytest.approx(f1_score(labels, p.argmax(1), average="macro"))
    assert me.auc(np.round(z[:, 1], 1), labels == 1) == pytest.approx(roc_auc_score(labels == 1, np.round(z[:, 1], 1)))


def test_ece_by_hand() -> None:
    # confidences .55 (wrong), .60 (right), .95 (right): of two bins over (0, 1] all fall into the upper one
    p = np.array([[0.55, 0.45], [0.60, 0.40], [0.95, 0.05]])
    labels = np.array([1, 0, 0])
    assert me.ece(np.log(p), labels, bins=2) == pytest.approx(abs(2 / 3 - 0.7))
    # ten bins: (.5, .6] holds .55 and .60, (.9, 1] holds .95
    assert me.ece(np.log(p), labels, bins=10) == pytest.approx((2 * abs(0.5 - 0.575) + 0.05) / 3)
    # equal mass, three bins: one clip each
    assert me.ece(np.log(p), labels, bins=3, adaptive=True) == pytest.approx((0.55 + 0.40 + 0.05) / 3)


def test_adaptive_bins_hold_equally_many_clips() -> None:
    rng = np.random.default_rng(1)
    count = me.reliability(rng.normal(size=(150, 4)), rng.integers(0, 4, 150), adaptive=True)["count"]
    assert count.tolist() == [10] * 15


def test_reliability_of_perfectly_calibrated_bits() -> None:
    z = np.log(np.tile([0.75, 0.25], (400, 1)))
    labels = np.repeat([0, 0, 0, 1], 100)
    assert me.ece(z, labels) == pytest.approx(0, abs=1e-12)


def test_interval_covers_the_mean_at_its_rate() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        low, high = me.bootstrap_ci(rng.random(200) < 0.7, draws=400, seed=trial)
        hits += low <= 0.7 <= high
    assert 180 <= hits <= 199


def test_interval_of_clips_is_the_normal_one_on_large_samples() -> None:
    values = np.random.default_rng(3).normal(size=2000)
    low, high = me.bootstrap_ci(values, draws=4000)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_groups_widen_the_interval_and_five_are_needed() -> None:
    values = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], 50)
    groups = np.repeat(list("abcdef"), 50)
    low, high = me.bootstrap_ci(values, groups)
    # resampling six groups: the mean is Binomial(6, 1/2)/6, whose 2.5 % quantile is 1/6
    assert (low, high) == pytest.approx((1 / 6, 5 / 6))
    assert me.bootstrap_ci(values[:200], groups[:200]) == me.bootstrap_ci(values[:200])
    assert (me.ci_unit(groups), me.ci_unit(groups[:200]), me.ci_unit(None)) == ("group", "clip", "clip")


def test_resampled_counts_follow_the_unit() -> None:
    groups = list("aabbccddee")
    unit, counts = me.resampled_counts(groups, 10, draws=7)
    assert unit.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert counts.shape == (7, 5) and (counts.sum(1) == 5).all()
    assert me.resampled_counts(groups[:6], 6, draws=7)[1].shape == (7, 6)


def test_capability_is_recall_above_chance_where_present() -> None:
    right, wrong, gone = [2.0, 0.0], [0.0, 2.0], [np.nan, np.nan]
    z = np.array([[right, gone], [right, right], [wrong, wrong], [right, wrong]])
    labels = np.array([0, 0, 0, 1])
    got = me.capability(z, labels)
    np.testing.assert_allclose(got, [[2 / 3 - 0.5, 0 - 0.5], [1 / 2 - 0.5, 1 - 0.5]])


def test_class_without_clips_has_no_capability() -> None:
    got = me.capability(np.zeros((3, 2, 3)), np.array([0, 0, 1]))
    assert np.isnan(got[:, 2]).all() and np.isfinite(got[:, :2]).all()


def test_shares_clip_and_count_the_empty() -> None:
    share, empty = me.shares(np.array([[0.3, -0.1, 0.2], [0.1, -0.2, -0.5]]))
    np.testing.assert_allclose(share, [[0.75, 0.5, 1.0], [0.25, 0.5, 0.0]])
    assert empty.tolist() == [False, True, False]


def test_shapley_of_two_by_hand() -> None:
    # the vote table's own figures: v(0)=1/6, voice .455, face .690, both .748
    phi = me.shapley(np.array([1 / 6, 0.455, 0.690, 0.748]))
    np.testing.assert_allclose(
        phi, [0.5 * (0.455 - 1 / 6) + 0.5 * (0.748 - 0.690), 0.5 * (0.690 - 1 / 6) + 0.5 * (0.748 - 0.455)]
    )


def test_shapley_of_the_glove_game() -> None:
    # player 0 has a left glove, 1 and 2 right ones; a pair is worth 1: (2/3, 1/6, 1/6)
    values = [float(s & 1 and s & 6) for s in range(8)]
    values = [1.0 if v else 0.0 for v in values]
    np.testing.assert_allclose(me.shapley(np.array(values)), [2 / 3, 1 / 6, 1 / 6])


def test_shapley_is_efficient_and_additive_games_give_the_terms() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(64, 3))
    np.testing.assert_allclose(me.shapley(values).sum(0), values[-1] - values[0])
    terms = rng.normal(size=6)
    additive = np.array([sum(terms[m] for m in range(6) if s >> m & 1) for s in range(64)])
    np.testing.assert_allclose(me.shapley(additive), terms)
    with pytest.raises(ValueError, match="2\\^M"):
        me.shapley(np.zeros(6))


def test_relative_balance_index_by_hand() -> None:
    participation = np.array([[0.8, 0.5], [0.2, 0.5]])
    share = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert me.relative_balance_index(participation, share) == pytest.approx(1 - 0.3 / 2)
    assert me.relative_balance_index(share, share) == 1.0
    draws = me.relative_balance_index(np.stack([participation, share]), share)
    np.testing.assert_allclose(draws, [0.85, 1.0])


def test_rescued_and_lost_by_hand() -> None:
    # clips:            only 0, only 1, only 1, both, none
    each = np.array([[1, 0], [0, 1], [0, 1], [1, 1], [0, 0]], dtype=bool)
    fused = np.array([0, 1, 0, 1, 1], dtype=bool)
    got = me.rescued_and_lost(each, fused)
    np.testing.assert_allclose(got["only"], [0.2, 0.4])
    np.testing.assert_allclose(got["rescued"], [0.0, 0.5])
    assert got["weak"] == 0 and got["any"] == pytest.approx(0.8) and got["lost"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), "0..2"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "integers"),
        (np.zeros((0, 3)), np.array([], dtype=int), "no clips"),
        (np.zeros((2, 3)), np.array([0]), "expected logits"),
        (np.full((2, 3), np.nan), np.array([0, 1]), "NaN"),
        (np.array([[np.inf, 0.0], [0.0, 1.0]]), np.array([0, 1]), "no finite maximum"),
        (np.array([[-np.inf, -np.inf], [0.0, 1.0]]), np.array([0, 1]), "no finite maximum"),
    ],
)
def test_bad_input_is_refused(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        me.nll(logits, labels)
