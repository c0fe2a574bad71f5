"""The ladder's rules: what may be fitted, what is chosen, and why."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hf_mmbalance.decision.fits import FitData
from hf_mmbalance.decision.folds import clip_folds, draw_folds, group_folds, standard_error
from hf_mmbalance.decision.ladder import (
    DEFAULT_STRUCTURE,
    PARENTS,
    SHOWN,
    STIFF,
    Clips,
    Ladder,
    Options,
    RungScore,
    allowed_rungs,
    ancestry,
    choose,
    fit_ladder,
)

from .drawn_tables import draw


#: Without features there is no rung of typicality.
RUNGS = {name for name in PARENTS if name != "typicality"}


def clips_of(data: dict[str, Any]) -> Clips:
    n = len(data["labels"])
    return Clips(
        FitData(data["logits"], data["labels"]),
        np.asarray(data["groups"]),
        np.arange(n).astype(str),
        np.zeros(n, dtype=int),
    )


def ladder(**options: Any) -> Ladder:
    chosen = {name: options.pop(name) for name in ("rung", "known_groups", "structure") if name in options}
    return fit_ladder(clips_of(draw(**options)), Options(folds=3, strengths=(30.0, 3.0), **chosen))


def test_draws_of_a_clip_stay_together() -> None:
    clips = np.repeat([f"c{i}" for i in range(20)], 3)
    labels, groups = np.repeat(np.arange(20) % 4, 3), np.repeat([f"g{i % 5}" for i in range(20)], 3)
    for own_groups in (groups, np.repeat("one", 60)):
        fold = draw_folds(labels, own_groups, clips, 5)
        assert all(len(set(fold[clips == clip])) == 1 for clip in set(clips)) and len(set(fold)) == 5
    assert np.ptp([np.bincount(fold[labels == c], minlength=5).max() for c in range(4)]) == 0, "stratified by label"


def test_folds_keep_groups_together_and_balance_sizes() -> None:
    groups = np.repeat([f"g{i}" for i in range(10)], [50, 1, 1, 1, 1, 1, 20, 20, 5, 5])
    fold = group_folds(groups, 3, seed=4)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    assert sorted(np.bincount(fold)) == [27, 28, 50]
    assert not np.array_equal(group_folds(groups, 3, seed=5), fold)
    assert group_folds(["a", "b", "a"], 5).tolist() in ([0, 1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="at least two"):
        group_folds(["a", "a"], 5)


def test_clip_folds_are_stratified() -> None:
    labels = np.repeat([0, 1, 2], 20)
    fold = clip_folds(labels, 5)
    assert all((np.bincount(fold[labels == c]) == 4).all() for c in range(3))


def test_standard_error_by_hand() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])
    by_clip = np.std(values, ddof=1) / 2
    # two groups that are all 1 and all 0: totals about the mean are +1 and -1
    assert standard_error(values, ["a", "a", "b", "b"]) == pytest.approx(np.sqrt(2 * 2 / 1) / 4)
    assert standard_error(values, ["a", "b", "a", "b"]) == pytest.approx(by_clip)
    assert standard_error(values, ["a"] * 4) == pytest.approx(by_clip)
    assert standard_error(values[:1], ["a"]) == np.inf


def test_names_and_parents() -> None:
    assert ancestry("class") == ["class", "bias", "global", "typicality", "temperature", "prior_sum", "sum"]
    with pytest.raises(ValueError, match="'clas' is unknown"):
        ancestry("clas")


def scores(n: int = 1000, **means: float) -> dict[str, RungScore]:
    noise = np.random.default_rng(0).normal(0, 0.1, n)
    rng = np.random.default_rng(1)
    return {name: RungScore(mean + noise + rng.normal(0, 0.05, n), np.ones(n) * 0.5) for name, mean in means.items()}


ROWS = Clips(
    FitData(np.zeros((1000, 2, 2)), np.zeros(1000, dtype=int)), np.arange(1000), np.arange(1000), np.zeros(1000)
)


def test_the_simplest_within_one_paired_error_is_taken() -> None:
    # the paired error is about .002, that of a rung's own mean about .004
    found = scores(sum=2.0, best_single=2.0, temperature=1.5, **{"global": 1.0005, "bias": 1.0, "class": 0.9999})
    name, reason = choose(found, ROWS, ["sum", "temperature", "global", "bias", "class"])
    assert name == "global"
    nll, best = found["global"].nll.mean(), found["bias"].nll.mean()  # the noise drawn makes `bias` the best
    assert re.match(r"the simplest rung within one paired standard error \(0\.00\d\d\) of the best \(bias\): ", reason)
    assert reason.endswith(f": held-out NLL {nll:.4f} against {best:.4f}")
    found = scores(sum=2.0, best_single=2.0, temperature=1.5, **{"global": 1.01, "class": 1.0})
    assert choose(found, ROWS, ["sum", "temperature", "global", "class"])[0] == "class"


def test_nothing_is_taken_that_does_not_beat_the_fallbacks() -> None:
    found = scores(sum=1.0, best_single=0.9, temperature=0.95, **{"global": 0.94})
    name, reason = choose(found, ROWS, ["sum", "temperature", "global"])
    assert name == "best_single" and "does not beat the fallback" in reason


def test_what_loses_accuracy_to_a_fallback_is_out() -> None:
    found = scores(sum=2.0, best_single=2.0, temperature=1.1, **{"global": 1.0})
    found["sum"].hit[:] = 1.0
    found["temperature"].hit[:] = 1.0
    found["global"].hit[:] = np.arange(1000) >= 10  # loses .010, standard error .0031
    name, reason = choose(found, ROWS, ["sum", "temperature", "global"])
    assert name == "temperature" and "global loses held-out accuracy" in reason
    found["global"].hit[:] = 1.0
    assert choose(found, ROWS, ["sum", "temperature", "global"])[0] == "global"


def test_what_loses_accuracy_on_clean_draws_is_out_though_it_gains_on_all() -> None:
    draws = Clips(ROWS.data, ROWS.groups, ROWS.names, (np.arange(1000) >= 200).astype(int))
    found = scores(sum=2.0, best_single=2.0, temperature=1.0)
    found["sum"].hit[:] = np.arange(1000) < 600
    found["temperature"].hit[:] = np.arange(1000) >= 10  # clean: 190 of 200; corrupted: all
    assert choose(found, ROWS, ["sum", "temperature"])[0] == "temperature"
    assert choose(found, draws, ["sum", "temperature"])[0] == "sum"
    found["sum"].hit[5] = 0.0
    found["temperature"].hit[:] = np.arange(1000) >= 2  # clean: two lost, one won, within one standard error
    found["temperature"].hit[5] = 1.0
    assert choose(found, draws, ["sum", "temperature"])[0] == "temperature"


def test_fewer_than_three_groups_allow_stiff_rungs_only() -> None:
    for number in (1, 2):
        got = ladder(groups=number, n=200)
        assert set(got.states) == (RUNGS & {*STIFF, *SHOWN}) | {"best_single"}
        assert got.chosen in {*STIFF, "best_single"}
        assert any(f"{number} group(s)" in note for note in got.notes)
    assert set(ladder(groups=3, n=200).states) == {*RUNGS, "best_single"}


def test_known_groups_allow_all_rungs_by_clip_folds() -> None:
    got = ladder(groups=1, n=200, known_groups=True)
    assert set(got.states) == {*RUNGS, "best_single"} and not any("group(s)" in note for note in got.notes)


def test_the_default_structure_adds_no_buffer() -> None:
    got = ladder(n=200, structure="default")
    assert set(got.states) == {*DEFAULT_STRUCTURE, "best_single"}
    assert all(not state.options for state in got.states.values())


def test_dirichlet_is_left_out_with_many_classes() -> None:
    data = {"logits": np.zeros((200, 2, 65)), "labels": np.arange(200) % 65, "groups": np.arange(200)}
    allowed, notes = allowed_rungs(clips_of(data), Options())
    assert "dirichlet" not in allowed and "vector" in allowed and any("65 classes" in note for note in notes)


def test_a_distorted_sum_is_mended() -> None:
    got = ladder(n=900)
    assert got.chosen not in ("sum", "best_single")
    assert got.scores[got.chosen].nll.mean() < got.scores["sum"].nll.mean() - 0.05
    assert got.scores[got.chosen].hit.mean() > got.scores["sum"].hit.mean()


def test_a_rung_asked_for_is_taken_with_its_parents_only() -> None:
    got = ladder(rung="bias", n=200)
    wanted = {"sum", "prior_sum", "best_single", "temperature", "global", "bias"}
    assert got.chosen == "bias" and set(got.states) == wanted
    got = ladder(rung="class", groups=2, n=200)
    assert got.chosen in {*STIFF, "best_single"}
    assert any("'class' was requested" in note for note in got.notes)


def test_a_useless_modality_does_not_hurt() -> None:
    data = draw(n=600, classes=3)
    rng = np.random.default_rng(5)
    data["logits"][:, 1] = 3 * rng.normal(size=(600, 3))
    got = fit_ladder(clips_of(data), Options(strengths=(30.0, 3.0)))
    fused = got.states[got.chosen].fuse(data["logits"]).logits.argmax(axis=1)
    best = got.states["best_single"].fuse(data["logits"]).logits.argmax(axis=1)
    assert got.best_single == 0
    assert (fused == data["labels"]).mean() >= (best == data["labels"]).mean() - 0.01


def test_where_one_group_alone_has_both_modalities_its_fold_keeps_the_parents_weights() -> None:
    data = draw(n=120, groups=4)
    data["logits"][np.array(data["groups"]) != "g0", 1] = np.nan
    got = fit_ladder(clips_of(data), Options(folds=4, strengths=(30.0,)))
    assert {"global", "class", "vector"} <= set(got.scores)
    assert all(np.isfinite(score.nll).all() for score in got.scores.values())


def test_draws_are_not_counted_as_clips() -> None:
    """Nine clips in four draws each: too few to fit; ten of which nine have two modalities: no weights."""
    for clips, note in ((9, "9 clips of 3 class(es) are too few"), (10, "fewer than 10 clips have two modalities")):
        names = np.repeat(np.arange(clips), 4).astype(str)
        logits = np.random.default_rng(0).normal(size=(4 * clips, 2, 3))
        logits[36:, 1] = np.nan  # the draws of a tenth clip
        data = FitData(logits, np.repeat(np.arange(clips) % 3, 4))
        found = fit_ladder(Clips(data, names, names, np.tile(np.arange(4), clips)), Options(folds=3))
        assert any(line.startswith(note) for line in found.notes), found.notes
