"""`Allocation` as an estimator: conventions, missing data, shift, saving, and bad input."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.crossfit import cross_fit_logits
from hf_mmbalance.decision.fits import fit_prior
from hf_mmbalance.decision.shift import estimate_prior
from hf_mmbalance.metrics.measures import log_softmax

from .drawn_tables import draw, make_table


FAST: dict[str, Any] = {"strengths": (30.0, 3.0), "folds": 3}


@pytest.fixture(scope="module")
def fitted() -> tuple[Allocation, dict[str, Any]]:
    data = draw(n=500, missing=0.1)
    return Allocation(**FAST).fit(data["logits"], data["labels"], data["groups"]), data


def test_scikit_learn_conventions(fitted: tuple[Allocation, dict[str, Any]]) -> None:
    allocation, data = fitted
    assert clone(allocation).get_params() == allocation.get_params()
    assert clone(allocation).set_params(rung="class").rung == "class"
    p = allocation.predict_proba(data["logits"])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (allocation.predict(data["logits"]) == p.argmax(axis=1)).all()
    assert allocation.score(data["logits"], data["labels"]) > 0.6
    np.testing.assert_allclose(np.exp(log_softmax(allocation.decision_function(data["logits"]))), p)
    with pytest.raises(NotFittedError):
        Allocation().predict(data["logits"])


def test_fits_are_repeatable(fitted: tuple[Allocation, dict[str, Any]]) -> None:
    allocation, data = fitted
    again = clone(allocation).fit(data["logits"], data["labels"], data["groups"])
    np.testing.assert_array_equal(again.predict_proba(data["logits"]), allocation.predict_proba(data["logits"]))


def test_a_shift_of_a_row_changes_nothing(fitted: tuple[Allocation, dict[str, Any]]) -> None:
    allocation, data = fitted
    moved = data["logits"] + np.random.default_rng(0).normal(size=(500, 2, 1)) * 10
    np.testing.assert_allclose(allocation.predict_proba(moved), allocation.predict_proba(data["logits"]), atol=1e-9)


def test_contributions_and_bias_add_up(fitted: tuple[Allocation, dict[str, Any]]) -> None:
    allocation, data = fitted
    rest = allocation.decision_function(data["logits"]) - allocation.fuse(data["logits"]).contributions.sum(axis=1)
    both = ~np.isnan(data["logits"]).any(axis=(1, 2))
    prior = allocation.state_["log_prior"]
    np.testing.assert_allclose(rest[both], np.tile(prior + allocation.state_["bias"], (both.sum(), 1)), atol=1e-9)
    np.testing.assert_allclose(rest[~both], np.tile(prior, ((~both).sum(), 1)), atol=1e-12)


def test_save_and_load(fitted: tuple[Allocation, dict[str, Any]], tmp_path: Path) -> None:
    allocation, data = fitted
    allocation.save(tmp_path / "kept")
    back = Allocation.load(tmp_path / "kept")
    np.testing.assert_array_equal(back.predict_proba(data["logits"]), allocation.predict_proba(data["logits"]))
    assert (back.chosen_, back.reason_) == (allocation.chosen_, allocation.reason_)
    assert back.check_shift(data["logits"]) == []
    with pytest.raises(ValueError, match="only one rung"):
        back.choose_among(["sum"])
    with pytest.raises(ValueError, match="none of clas was fitted; these were: sum, "):
        allocation.choose_among(["clas"])
    with pytest.raises(ValueError, match="allocation.npz: no such file"):
        Allocation.load(tmp_path)


def test_options_of_numpy_are_saved(tmp_path: Path) -> None:
    data = draw(n=60)
    options: dict[str, Any] = {"seed": np.int64(3), "strengths": np.array([30, 3]), "folds": np.int32(2)}
    Allocation(**options).fit(data["logits"], data["labels"], data["groups"]).save(tmp_path)
    assert Allocation.load(tmp_path).get_params()["strengths"] == [30, 3]


def test_damaged_files_are_refused_by_name(fitted: tuple[Allocation, dict[str, Any]], tmp_path: Path) -> None:
    path = fitted[0].save(tmp_path)
    whole = path.read_bytes()
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    np.savez(tmp_path / "partly.npz", description=np.array('{"parameters": {}}'))
    np.savez(tmp_path / "shape.npz", **(arrays | {"weights": np.ones((3, 4))}))
    others = [(tmp_path / f"{name}.npz").read_bytes() for name in ("other", "partly", "shape")]
    for content in (b"", whole[: len(whole) // 2], b"no archive", *others):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="allocation.npz: damaged, or not written by"):
            Allocation.load(tmp_path)


@pytest.mark.parametrize("modalities", [2, 5])
def test_any_number_of_modalities_and_two_classes(modalities: int) -> None:
    data = draw(n=200, modalities=modalities, classes=2, missing=0.3)
    allocation = Allocation(**FAST).fit(data["logits"], data["labels"], data["groups"])
    assert allocation.predict_proba(data["logits"]).shape == (200, 2)


def test_shift_is_told_and_sameness_is_not() -> None:
    data = draw(n=1000, seed=1)
    allocation = Allocation(rung="global", **FAST).fit(data["logits"], data["labels"], data["groups"])
    for seed in range(2, 12):
        assert allocation.check_shift(draw(n=300, seed=seed)["logits"]) == []
    for seed in range(2, 6):
        for clip in draw(n=30, seed=seed)["logits"]:  # one clip has no spread that would tell how much is chance
            assert not any("confident" in text for text in allocation.check_shift(clip[None], warn=False))
    unsure = data["logits"] * np.array([1.0, 0.2])[:, None]
    with pytest.warns(UserWarning, match="modality 1 is less confident"):
        allocation.check_shift(unsure)
    leaning = data["logits"] + np.array([0, 0, 0, 6.0])
    assert any("differently from the fit" in text for text in allocation.check_shift(leaning, warn=False))
    gone = data["logits"].copy()
    gone[:400, 0] = np.nan
    assert any("missing in 40%" in text for text in allocation.check_shift(gone, warn=False))


def test_prior_shift_is_estimated_and_undone() -> None:
    rng = np.random.default_rng(0)
    true_prior, prior = np.array([0.7, 0.2, 0.1]), np.full(3, 1 / 3)
    labels = rng.choice(3, size=5000, p=true_prior)
    seen = rng.normal(size=(5000, 3)) + 1.5 * np.eye(3)[labels]
    log_p = log_softmax(1.5 * seen)  # the exact posterior under equal priors
    np.testing.assert_allclose(estimate_prior(log_p, prior), true_prior, atol=0.03)
    data = draw(n=2000, classes=3)
    allocation = Allocation(rung="class", **FAST).fit(data["logits"], data["labels"], data["groups"])
    fresh = draw(n=4000, classes=3, seed=9)
    kept = (fresh["labels"] != 2) | (rng.random(4000) < 0.15)
    logits, labels = fresh["logits"][kept], fresh["labels"][kept]
    plain = allocation.predict_proba(logits)
    mended = allocation.predict_proba(logits, prior="estimate")
    rows = np.arange(len(labels))
    assert -np.log(mended[rows, labels]).mean() < -np.log(plain[rows, labels]).mean()
    np.testing.assert_allclose(allocation.predict_proba(logits, prior=allocation.prior_), plain, atol=1e-9)
    with pytest.raises(ValueError, match="3 probabilities"):
        allocation.predict_proba(logits, prior=[0.5, 0.5])
    with pytest.raises(ValueError, match="'guess'"):
        allocation.predict_proba(logits, prior="guess")


def test_write_to_a_model_and_refusals() -> None:
    torch = pytest.importorskip("torch")
    from hf_mmbalance.model.fusion_mmbalance import SumFusion

    table = make_table(n=300)
    allocation = Allocation(rung="vector", **FAST).fit_table(table)

    class Model(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.fusion = SumFusion(2, 4, (8, 8))
            self.head = torch.nn.Linear(8, 4)
            self.config = SimpleNamespace(fusion="sum", fusion_options=None, modalities=["audio", "vision"],
                                          id2label=dict(enumerate(table.classes)))  # fmt: skip

    model = Model().eval()
    allocation.write_to(model)
    assert (model.config.fusion, model.config.fusion_options) == ("adaptive", {"calibration": "vector"})
    assert not model.fusion.training and model.fusion.feature_sizes == (8, 8)
    with torch.no_grad():
        out = model.fusion(torch.from_numpy(table.logits).float(), torch.from_numpy(table.mask)).logits.softmax(-1)
    np.testing.assert_allclose(out.numpy(), allocation.predict_proba(table.logits), atol=1e-5)
    head = model.fusion
    allocation.write_to(model)
    assert model.fusion is head, "a head of the same structure stays in place"
    model.config.id2label = dict(enumerate(reversed(table.classes)))
    with pytest.raises(ValueError, match="classes .* are not those of the fit"):
        allocation.write_to(model)
    model.config.id2label, model.config.modalities = dict(enumerate(table.classes)), ["vision", "audio"]
    with pytest.raises(ValueError, match="modalities are"):
        allocation.write_to(model)
    model.fusion = SumFusion(2, 7)
    with pytest.raises(ValueError, match="modalities and classes"):
        allocation.write_to(model)


def test_cross_fitting_never_judges_a_group_it_learned() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 15)
    labels = rng.integers(0, 3, 300)
    # features name the group: a tower that saw the group would be perfect, one that did not knows nothing
    x = np.eye(20)[groups] * 0 + rng.normal(size=(300, 20))
    own = {"a": x + 2 * np.eye(20)[labels], "b": x.copy()}
    own["b"][:5] = np.nan
    logits = cross_fit_logits({"a": LogisticRegression(), "b": LogisticRegression()}, own, labels, groups)
    assert logits.shape == (300, 2, 3) and np.isnan(logits[:5, 1]).all() and not np.isnan(logits[:, 0]).any()
    assert (logits[:, 0].argmax(1) == labels).mean() > 0.8
    assert abs((logits[5:, 1].argmax(1) == labels[5:]).mean() - 1 / 3) < 0.12
    with pytest.raises(ValueError, match="same modalities"):
        cross_fit_logits({"a": LogisticRegression()}, own, labels)
    both = {"a": LogisticRegression(), "b": LogisticRegression()}
    with pytest.raises(ValueError, match="expected .N,. class indices"):
        cross_fit_logits(both, own, np.array(["x", "y", "z"])[labels])
    with pytest.raises(ValueError, match="groups has 299 entries for 300"):
        cross_fit_logits(both, own, labels, groups[1:])


# ---- bad input


def bad(**change: Any) -> dict[str, Any]:
    data = draw(n=60)
    return {"X": data["logits"], "y": data["labels"], "groups": data["groups"]} | change


def spoiled(value: float) -> np.ndarray:
    logits = draw(n=60)["logits"]
    logits[7, 1, 2] = value
    return logits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(X=np.zeros((60, 4))), r"expected \(N, M, C\)"),
        (bad(X=np.zeros((60, 1, 4))), "M >= 2"),
        (bad(X=spoiled(np.nan)), "NaN or inf within a row"),
        (bad(X=spoiled(np.inf)), "NaN or inf within a row"),
        (bad(X=np.full((60, 2, 4), np.nan)), "60 clip\\(s\\) have no modality"),
        (bad(y=np.zeros(59, dtype=int)), "y has shape"),
        (bad(y=np.zeros(60)), "integers"),
        (bad(y=np.full(60, 4)), r"classes are 0\.\.3"),
        (bad(groups=["a"]), "groups has 1 entries"),
        (bad(groups=[None] * 30 + ["a"] * 30), "groups has 30 empty entries"),
        (bad(groups=[float("nan"), *range(59)]), "groups has 1 empty entries"),
        (bad(draws=np.full(60, 0.5)), "expected integers from 0"),
        (bad(draws=np.full(60, -1)), "expected integers from 0"),
        (bad(clips=["one"] * 60), "draws of one clip have different groups or labels"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Allocation(**FAST).fit(**arguments)


def test_refused_options_and_other_shapes_at_use(fitted: tuple[Allocation, dict[str, Any]]) -> None:
    allocation, data = fitted
    for options, message in [({"folds": 1}, "folds"), ({"strengths": (0.0,)}, "strengths"), ({"rung": "x"}, "unknown"),
                             ({"structure": "x"}, "structure is 'x'"), ({"balance": -1.0}, "balance is -1.0"),
                             ({"balance": np.inf}, "balance is inf"), ({"strengths": 3.0}, "list of positive"),
                             ({"strengths": (3.0, np.nan)}, "strengths are"), ({"folds": 2.5}, "folds is 2.5"),
                             ({"prior": [0.5, 0.5]}, "prior must be 4")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Allocation(**options).fit(data["logits"], data["labels"], data["groups"])
    with pytest.raises(ValueError, match="the fit had"):
        allocation.predict(data["logits"][:, :, :3])


def test_three_rows_fall_back_to_the_sum_with_a_warning() -> None:
    data = draw(n=60)
    with pytest.warns(UserWarning, match="too few to fit"):
        allocation = Allocation().fit(data["logits"][:3], data["labels"][:3], ["a", "b", "c"])
    want = log_softmax(log_softmax(data["logits"]).sum(axis=1))
    np.testing.assert_allclose(np.log(allocation.predict_proba(data["logits"])), want)


def test_one_class_falls_back_with_a_warning() -> None:
    data = draw(n=60)
    with pytest.warns(UserWarning, match="1 class"):
        assert Allocation(**FAST).fit(data["logits"], np.zeros(60, dtype=int), data["groups"]).chosen_ == "sum"


@pytest.mark.parametrize("number", [1, 2])
def test_one_or_two_groups_warn(number: int) -> None:
    data = draw(n=100, groups=number)
    with pytest.warns(UserWarning, match=f"{number} group"):
        assert Allocation(**FAST).fit(data["logits"], data["labels"], data["groups"]).chosen_ != "class"


def test_a_class_absent_from_the_fit_warns_and_can_still_win() -> None:
    data = draw(n=600)
    kept = data["labels"] != 1
    groups = np.array(data["groups"])[kept]
    with pytest.warns(UserWarning, match=r"1 class\(es\) have no clip"):
        allocation = Allocation(**FAST).fit(data["logits"][kept], data["labels"][kept], groups)
    for name, state in allocation.ladder_.states.items():
        recall = (state.fuse(data["logits"][~kept]).logits.argmax(axis=1) == 1).mean()
        assert recall > 0.3, name


def test_a_modality_missing_everywhere_warns_and_stays_neutral() -> None:
    data = draw(n=200, modalities=3)
    data["logits"][:, 2] = np.nan
    with pytest.warns(UserWarning, match="modality 2 is missing in every clip"):
        allocation = Allocation(**FAST).fit(data["logits"], data["labels"], data["groups"])
    assert allocation.score(data["logits"], data["labels"]) > 0.6
    data["logits"][:, 1] = np.nan
    with pytest.warns(UserWarning, match="fewer than 10 clips have two modalities"):
        allocation = Allocation(**FAST).fit(data["logits"], data["labels"], data["groups"])
    assert allocation.chosen_ in ("sum", "prior_sum", "temperature", "best_single")


def test_describe_says_what_is_in_use() -> None:
    import json

    table = make_table(n=400)
    allocation = Allocation(rung="class", **FAST).fit_table(table)
    found = allocation.describe()
    json.dumps(found, allow_nan=False)
    assert found["rung"] == "class" and set(found["temperature"]) == {"audio", "vision"}
    assert found["temperature"]["audio"] > 2 * found["temperature"]["vision"]
    assert found["weights"]["audio"] == allocation.state_["weights"][0].tolist()
    assert sum(found["prior"].values()) == pytest.approx(1) and set(found["bias"]) == set(table.classes)
    assert any(line.startswith("temperature audio") for line in found["lines"])


def test_balance_pulls_weights_towards_capability() -> None:
    data = draw(n=600)
    spread = []
    for balance in (0.01, 10.0):
        allocation = Allocation(balance=balance, **FAST).fit(data["logits"], data["labels"], data["groups"])
        assert allocation.chosen_ == "class"
        weights = allocation.state_["weights"]
        share = weights / weights.sum(axis=0)
        right = data["logits"].argmax(axis=2) == data["labels"][:, None]
        able = np.stack([right[data["labels"] == c].mean(axis=0) for c in range(4)], axis=1) - 0.25
        spread.append(np.abs(share - able / able.sum(axis=0)).max())
    assert spread[1] < 0.02 < spread[0]


def test_a_known_prior_is_used_by_every_rung_and_written_into_the_state() -> None:
    data = draw(n=600)
    new = [0.7, 0.1, 0.1, 0.1]
    for rung in ("sum", "temperature", "class", "vector"):
        plain = Allocation(rung=rung, **FAST).fit(data["logits"], data["labels"], data["groups"])
        known = Allocation(rung=rung, prior=new, **FAST).fit(data["logits"], data["labels"], data["groups"])
        want = plain.predict_proba(data["logits"], prior=new)
        np.testing.assert_allclose(known.predict_proba(data["logits"]), want, atol=1e-9)
        np.testing.assert_allclose(known.predict_proba(data["logits"], prior=new), want, atol=1e-9)


def test_a_known_prior_stays_when_a_rung_is_chosen_again_and_is_described() -> None:
    data = draw(n=300)
    known = Allocation(prior=[0.7, 0.1, 0.1, 0.1], **FAST).fit(data["logits"], data["labels"], data["groups"])
    shift = known.state_["prior_shift"].copy()
    assert shift[0] > 0.5
    known.choose_among(["temperature"])
    np.testing.assert_array_equal(known.state_["prior_shift"], shift)
    assert any(line.startswith("prior at deployment, 0.") for line in known.describe()["lines"])


def test_prior_counted_right_under_a_shift() -> None:
    """Exact towers under a prior of k^-1.5, judged under a uniform one: F - M log pi_fit + log pi_use is Bayes."""
    rng = np.random.default_rng(0)
    prior = np.arange(1, 6) ** -1.5
    prior /= prior.sum()

    def towers(labels: np.ndarray) -> np.ndarray:
        x = rng.normal(size=(len(labels), 2, 5))
        x[np.arange(len(labels)), :, labels] += 1.0
        return x + np.log(prior)  # log-likelihood ratios of unit Gaussians, plus the prior of the training clips

    labels, fresh = rng.choice(5, size=3000, p=prior), rng.integers(0, 5, 6000)
    allocation = Allocation(rung="prior_sum", prior=np.full(5, 0.2)).fit(towers(labels), labels)
    logits = towers(fresh)
    exact = log_softmax((logits - np.log(prior)).sum(axis=1))
    got = np.log(allocation.predict_proba(logits))
    assert np.abs(got - exact).mean() < 0.15
    plain = log_softmax(logits).sum(axis=1)
    assert (got.argmax(axis=1) == fresh).mean() > (plain.argmax(axis=1) == fresh).mean() + 0.1


def test_smoothing_of_the_prior_follows_the_counts() -> None:
    even = np.repeat(np.arange(10), [18, 22, 20, 19, 21, 23, 17, 20, 22, 18])
    np.testing.assert_allclose(np.exp(fit_prior(even, 10)), 0.1, atol=0.003)
    uneven = np.repeat(np.arange(3), [800, 150, 50])
    np.testing.assert_allclose(np.exp(fit_prior(uneven, 3)), [0.8, 0.15, 0.05], atol=0.01)
    absent = np.exp(fit_prior(uneven, 4))
    assert absent[3] == pytest.approx(absent[2]) and absent.sum() == pytest.approx(1)


def test_draws_of_a_clip_count_once_in_the_prior() -> None:
    """12 clips of 20 are as many as chance gives: uniform; 240 draws of 400 taken for clips would not be."""
    labels, clips = np.repeat([0, 1], [12, 8]), np.arange(20)
    drawn, of = np.repeat(labels, 20), np.repeat(clips, 20)
    np.testing.assert_array_equal(fit_prior(drawn, 2, of), fit_prior(labels, 2))
    np.testing.assert_allclose(np.exp(fit_prior(drawn, 2, of)), 0.5, atol=0.005)
    logits = np.random.default_rng(0).normal(size=(400, 2, 2))
    allocation = Allocation(rung="prior_sum", **FAST).fit(logits, drawn, clips=of, draws=np.tile(np.arange(20), 20))
    np.testing.assert_allclose(allocation.prior_, 0.5, atol=0.005)
    np.testing.assert_allclose(np.exp(allocation.state_["log_prior"]), 0.5, atol=0.005)


def test_warnings_name_the_modalities() -> None:
    table = make_table(n=60)
    table.logits[:, 1] = np.nan
    with pytest.warns(UserWarning, match="^vision is missing in every clip"):
        Allocation(rung="temperature", **FAST).fit_table(table)
    features = {"first": np.zeros((60, 2)), "second": np.zeros((59, 2))}
    with pytest.raises(ValueError, match="features of second have shape"):
        Allocation(**FAST).fit(table.logits, table.labels, features=features)
