"""`Allocation`: fit the decision layer on held-out clips, use it, save it, write it into a model's adaptive head."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from hf_mmbalance.decision.description import describe_state
from hf_mmbalance.decision.fits import fit_prior
from hf_mmbalance.decision.inputs import (
    checked_clips,
    checked_features,
    checked_logits,
    checked_reference,
)
from hf_mmbalance.decision.ladder import (
    MIN_GROUPS,
    STRENGTHS,
    Clips,
    Ladder,
    Options,
    choose,
    fit_ladder,
    rebalanced,
    some_class_unknown,
)
from hf_mmbalance.decision.optimise import one_thread
from hf_mmbalance.decision.shift import LogitProfile, checked_prior, estimate_prior, shift_prior
from hf_mmbalance.decision.state import SLOPE, Fused, HeadState, own_log_probs
from hf_mmbalance.decision.typicality import MIN_CLIPS, Features, fit_typicality
from hf_mmbalance.metrics.measures import log_softmax, predict


if TYPE_CHECKING:
    from hf_mmbalance.decision.table import DecisionTable


FILE_NAME = "allocation.npz"
STRUCTURES = ("any", "default")


class Allocation(ClassifierMixin, BaseEstimator):
    """Decision layer fitted on unimodal logits `X (N, M, C)`, with the interface of a scikit-learn classifier.

    Fit it on clips that the towers were not trained on. A missing modality is an all-NaN row of `X`.

    Args:
        rung: name of a rung of the ladder, or "auto" to choose one by group cross-validation.
        folds: number of folds of the group cross-validation.
        seed: random seed of the folds.
        known_groups: True if the groups at deployment are those of the fit (one speaker, one camera): folds are then
            over clips, and the freer rungs are allowed even with few groups.
        balance: weight, in nats, of a penalty that pulls the shares of the weights towards capability shares; above 0,
            "auto" fits and uses the rung `class` (`global` if there are too few groups, or if a modality does not know
            every class).
        prior: `(C,)` class prior at deployment, if it is known and differs from that of the fitting clips; it replaces
            their prior in every rung.
        structure: "default" allows only rungs that add no buffer to the model's head; "any" allows all.
        strengths: precisions to try for the prior that shrinks a rung to its parent, strongest first.

    Attributes after `fit`: `chosen_` (rung or `best_single`), `reason_`, `notes_`, `state_` (`HeadState` in use),
    `ladder_` (all rungs and their held-out scores), `classes_`, `prior_` (class prior of the fitting clips) and
    `profile_` (used by `check_shift`).
    """

    def __init__(
        self,
        rung: str = "auto",
        folds: int = 5,
        seed: int = 0,
        known_groups: bool = False,
        balance: float = 0.0,
        prior: Sequence[float] | np.ndarray | None = None,
        structure: str = "any",
        strengths: Sequence[float] = STRENGTHS,
    ) -> None:
        self.rung = rung
        self.folds = folds
        self.seed = seed
        self.known_groups = known_groups
        self.balance = balance
        self.prior = prior
        self.structure = structure
        self.strengths = strengths

    def fit(
        self,
        X: Any,
        y: Any,
        groups: Any = None,
        features: Any = None,
        reference: tuple[Any, Any] | None = None,
        clips: Any = None,
        draws: Any = None,
        known: Any = None,
    ) -> Self:
        """Fit the ladder and choose a rung.

        Args:
            X: `(N, M, C)` unimodal logits or log-probabilities.
            y: `(N,)` class indices.
            groups: `(N,)` group of every clip; None counts every clip as its own group.
            features: one `(N, D_m)` array per modality in the order of X (None for a modality without features), or a
                mapping by modality name; used by the rung `typicality`. A mapping sets the modality names, and later
                mappings can be in any order.
            reference: features (as above) and labels of the clips that the towers were trained on, for class means and
                covariance; None takes these from the fitting clips, out of fold.
            clips: `(N,)` name of the clip that each row is a draw of; None counts every row as its own clip.
            draws: `(N,)` 0 for the clean clip, else the number of its corrupted draw; None for zeros.
            known: `(M, C)` bool, the classes that each modality knows; None for all. Logits of the other classes can
                have any finite value.

        Raises:
            ValueError: if shapes, values or options are invalid.
        """
        found = checked_clips(X, y, groups, clips, draws, known)
        number, classes = found.data.logits.shape[1:]
        named = isinstance(features, Mapping)
        modalities = list(features) if named else [f"modality {m}" for m in range(number)]
        if len(modalities) != number:
            raise ValueError(
                f"features of {', '.join(modalities)} for {number} modalities; give None for those without features."
            )
        return self._fit(found, modalities, [str(c) for c in range(classes)], features, reference)

    def fit_table(self, table: DecisionTable, reference: DecisionTable | None = None) -> Self:
        """Fit on the rows of a decision table and keep its class and modality names.

        Args:
            table: rows to fit on; their `features.*` columns are used if present.
            reference: rows of the towers' training clips; only their features and labels are used.
        """
        clips = checked_clips(table.logits, table.labels, table.groups, table.clips, table.draws, table.known)
        training = None
        if reference is not None and reference.features:
            training = (_by_name(reference), reference.labels)
        features = _by_name(table) if table.features else None
        return self._fit(clips, table.modalities, table.classes, features, training)

    def _fit(
        self,
        clips: Clips,
        modalities: Sequence[str],
        classes: Sequence[str],
        features: Any,
        reference: tuple[Any, Any] | None,
    ) -> Self:
        self._check_options(len(classes))
        self.modality_names_, self.class_names_ = list(modalities), list(classes)
        self.n_modalities_, self.classes_ = len(modalities), np.arange(len(classes))
        self._clips = clips
        with one_thread():
            notes = self._fit_typicality(features, reference)
            self.ladder_: Ladder = fit_ladder(clips, self._ladder_options())
        self.notes_ = [_named(note, modalities) for note in notes + self.ladder_.notes]
        for note in self.notes_:
            warnings.warn(note, stacklevel=3)
        self.chosen_, self.reason_ = self.ladder_.chosen, self.ladder_.reason
        self.prior_ = np.exp(fit_prior(clips.data.labels, len(classes), clips.names))
        self.state_ = self.complete(self.ladder_.states[self.chosen_])
        self.profile_ = LogitProfile.of(own_log_probs(clips.data.logits, self.state_.known), clips.groups)
        return self

    def _fit_typicality(self, features: Any, reference: tuple[Any, Any] | None) -> list[str]:
        """Fit `statistics_`, set the typicality of the fitting clips and return notes."""
        self.statistics_: dict[str, np.ndarray] = {}
        clips = self._clips
        data = clips.data
        if features is None or self.structure != "any":
            return []
        own = checked_features(features, len(data.labels), self.modality_names_)
        if len(np.unique(clips.names)) < MIN_CLIPS:
            return [f"typicality: fewer than {MIN_CLIPS} clips to fit on; it is left out"]
        self.statistics_, typicality, notes = fit_typicality(
            own, data.labels, data.mask.numpy(), data.logits.shape[2],
            reference=checked_reference(reference, own, self.modality_names_, data.logits.shape[2]),
            groups=np.zeros(len(data.labels)) if self.known_groups else clips.groups, clips=clips.names,
            draws=clips.draws, folds=self.folds, seed=self.seed,
        )  # fmt: skip
        if self.statistics_:
            data.typicality = typicality
        return notes

    def _ladder_options(self) -> Options:
        rung = self.rung
        if self.balance and rung == "auto":
            few = len(np.unique(self._clips.groups)) < MIN_GROUPS and not self.known_groups
            rung = "global" if few or some_class_unknown(self._clips.data) else "class"
        return Options(
            folds=self.folds,
            seed=self.seed,
            rung=None if rung == "auto" else rung,
            known_groups=self.known_groups,
            structure=self.structure,
            balance=self.balance,
            strengths=tuple(sorted(self.strengths, reverse=True)),
        )

    def choose_among(self, rungs: Sequence[str]) -> None:
        """Choose again by the same rule, among only these fitted rungs and the fallbacks.

        Raises:
            ValueError: if none of these rungs, or no rung at all, was fitted; or after `load`, which keeps one rung.
        """
        check_is_fitted(self, "state_")
        if not hasattr(self, "ladder_") or not self.ladder_.scores:
            raise ValueError("there is only one rung, so there is nothing to choose from.")
        allowed = [rung for rung in self.ladder_.states if rung in rungs]
        if not allowed:
            raise ValueError(f"none of {', '.join(rungs)} was fitted; these were: {', '.join(self.ladder_.states)}.")
        self.chosen_, self.reason_ = choose(self.ladder_.scores, self._clips, allowed)
        self.state_ = self.complete(self.ladder_.states[self.chosen_])

    def complete(self, state: HeadState) -> HeadState:
        """Return a ladder state ready for use: with `prior` applied and the statistics that typicality needs."""
        if self.prior is not None:
            shift = np.log(checked_prior(self.prior, len(self.prior_))) - np.log(self.prior_)
            state = state.replace(prior_shift=shift)
        if SLOPE not in state.arrays or not state[SLOPE].any():
            return HeadState({name: value for name, value in state.arrays.items() if name != SLOPE})
        return state.replace(**self.statistics_)

    def rebalanced(self, balance: float) -> HeadState:
        """Refit the rung `class` (`global` where `class` was not fitted) with a balance penalty, for comparison.

        Raises:
            ValueError: after `load`, which keeps no clips.
        """
        if not hasattr(self, "_clips"):
            raise ValueError("a loaded allocation has no clips to refit on; fit it again.")
        with one_thread():
            return rebalanced(self.ladder_, self._clips, balance)

    def fuse(self, X: Any, features: Any = None) -> Fused:
        """Return logits, weights, contributions and trust of clips `X (N, M, C)`, with features as in `fit`.

        Without features every clip counts as typical; if the allocation uses typicality, a warning says so.
        """
        logits = self._checked(X)
        if features is None and SLOPE in self.state_.arrays:
            warnings.warn(
                "this allocation weights modalities by their features, but none are given: every clip counts as"
                " typical",
                stacklevel=2,
            )
        return self.state_.fuse(logits, self.typicality(logits, features))

    def typicality(self, X: Any, features: Any = None) -> np.ndarray | None:
        """Return the typicality t `(N, M)`; None without features, or if typicality was not fitted."""
        if features is None or not self.statistics_:
            return None
        logits = self._checked(X)
        slope = {SLOPE: np.zeros(self.n_modalities_)}
        state = HeadState.plain_sum(*logits.shape[1:]).replace(**self.statistics_, **slope)
        given = checked_features(features, len(logits), self.modality_names_)
        return state.typicality(given, ~np.isnan(logits[:, :, 0]))

    def decision_function(self, X: Any, features: Any = None) -> np.ndarray:
        """Return fused logits `(N, C)`."""
        return self.fuse(X, features).logits

    def predict_proba(
        self, X: Any, prior: str | Sequence[float] | np.ndarray | None = None, features: Any = None
    ) -> np.ndarray:
        """Return fused probabilities `(N, C)`.

        Args:
            X: `(N, M, C)` unimodal logits.
            prior: class prior of these clips, if it differs from that of the fit and nothing else does: `(C,)`
                probabilities, or "estimate" to infer it from X (Saerens et al. 2002). None keeps the prior of the fit.
            features: as in `fit`.
        """
        log_probs = log_softmax(self.decision_function(X, features))
        if prior is None:
            return np.exp(log_probs)
        in_use = np.exp(log_softmax(np.log(self.prior_) + self.state_["prior_shift"]))
        if isinstance(prior, str):
            if prior != "estimate":
                raise ValueError(f"prior is {prior!r}; give 'estimate', probabilities or None.")
            new = estimate_prior(log_probs, in_use)
        else:
            new = checked_prior(prior, len(self.prior_))
        return np.exp(shift_prior(log_probs, in_use, new))

    def predict(self, X: Any, features: Any = None) -> np.ndarray:
        """Return the class index of every clip, `(N,)`; `measures.predict` breaks ties."""
        best = predict(self.decision_function(X, features))
        return np.asarray(self.classes_[best])

    def score(self, X: Any, y: Any, sample_weight: Any = None, features: Any = None) -> float:
        """Return the accuracy of `predict` on clips with class indices `y (N,)`."""
        return float(accuracy_score(y, self.predict(X, features), sample_weight=sample_weight))

    def check_shift(self, X: Any, *, warn: bool = True) -> list[str]:
        """Return how these logits differ from those of the fit, one sentence each; also warn if `warn` is True."""
        check_is_fitted(self, "state_")
        log_probs = own_log_probs(self._checked(X), self.state_.known)
        found = self.profile_.differences(log_probs, self.modality_names_)
        if found and warn:
            warnings.warn("the evaluated logits are unlike the fitted ones: " + "; ".join(found), stacklevel=2)
        return found

    def describe(self) -> dict[str, Any]:
        """Return what is in use as plain values by name; `lines` holds the same as a few lines of text."""
        check_is_fitted(self, "state_")
        found = describe_state(self.state_, self.modality_names_, self.class_names_)
        lines = [f"rung {self.chosen_}: {self.reason_}", *found["lines"]]
        return found | {"rung": self.chosen_, "reason": self.reason_, "notes": list(self.notes_), "lines": lines}

    def write_to(self, model: Any) -> None:
        """Install this allocation as `model.fusion` and record it in `model.config`, so that saving keeps it.

        A head that has the same structure stays in place; only its values change.

        Args:
            model: model with the attributes `fusion`, `config.fusion` and `config.fusion_options`, and with modalities
                and classes in the order of the fit.

        Raises:
            ValueError: if the number, names or order of the model's modalities or classes, or the width of its
                features, differ from the fit.
        """
        from hf_mmbalance.decision.write_to_model import write_to_model

        check_is_fitted(self, "state_")
        write_to_model(self, model)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `allocation.npz` into a folder; `load` reads it back."""
        check_is_fitted(self, "state_")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        prior = None if self.prior is None else [float(p) for p in self.prior]
        content = {
            "parameters": self.get_params() | {"strengths": list(self.strengths), "prior": prior},
            "chosen": self.chosen_,
            "reason": self.reason_,
            "notes": self.notes_,
            "modalities": self.modality_names_,
            "classes": self.class_names_,
            "prior": self.prior_.tolist(),
            "profile": self.profile_.as_dict(),
        }
        arrays: dict[str, Any] = dict(self.state_.arrays)
        description = json.dumps(content, default=lambda value: value.item())  # NumPy numbers to Python ones
        np.savez_compressed(folder / FILE_NAME, description=np.array(description), **arrays)
        return folder / FILE_NAME

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Allocation:
        """Load what `save` wrote; `ladder_` (the other rungs) is not stored.

        Raises:
            ValueError: if the folder has no allocation, or a damaged one.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give a folder written by Allocation.save or `decide --save`.")
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            content = json.loads(str(arrays.pop("description")))
            made = cls(**content["parameters"])
            made.chosen_, made.reason_, made.notes_ = content["chosen"], content["reason"], content["notes"]
            made.modality_names_, made.class_names_ = content["modalities"], content["classes"]
            made.n_modalities_, made.classes_ = len(made.modality_names_), np.arange(len(made.class_names_))
            made.state_, made.prior_ = HeadState(arrays), np.array(content["prior"])
            made.profile_ = LogitProfile(**content["profile"])
            if made.state_.shape != (made.n_modalities_, len(made.classes_)):
                raise ValueError(f"weights of shape {made.state_.shape}")
        except Exception as error:  # a damaged archive can raise anything: zlib, zipfile, struct, MemoryError
            raise ValueError(f"{path}: damaged, or not written by Allocation.save ({error!r}).") from error
        made.statistics_ = {
            name: value for name, value in arrays.items() if name.startswith("typicality_") and name != SLOPE
        }
        return made

    def _check_options(self, classes: int) -> None:
        if not isinstance(self.folds, Integral) or self.folds < 2:
            raise ValueError(f"folds is {self.folds}; it must be an integer of at least 2.")
        strengths = np.asarray(self.strengths, dtype=np.float64)
        if strengths.ndim != 1 or not len(strengths) or not ((strengths > 0) & np.isfinite(strengths)).all():
            raise ValueError(f"strengths are {self.strengths}; they must be a list of positive numbers.")
        if self.structure not in STRUCTURES:
            raise ValueError(f"structure is {self.structure!r}; choose among {', '.join(STRUCTURES)}.")
        if not 0 <= self.balance < np.inf:
            raise ValueError(f"balance is {self.balance}; it must be a number of at least 0.")
        if self.prior is not None:
            checked_prior(self.prior, classes)

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "state_")
        logits = checked_logits(X)
        expected = (self.n_modalities_, len(self.classes_))
        if logits.shape[1:] != expected:
            raise ValueError(f"X has {logits.shape[1:]} modalities and classes; the fit had {expected}.")
        return logits


def fit_decision_layer(table: DecisionTable, **options: Any) -> Allocation:
    """Fit the decision layer on a table's calibration rows, as training and `mmbalance decide` do.

    Args:
        table: table with rows of split `calibration`, all draws of which are fitted on. Rows of split `train`, if any,
            only give the class means and covariance of features. Rows of other splits are not used.
        **options: arguments of [`Allocation`].

    Raises:
        TableError: if the table has no calibration rows.
    """
    reference = table.select("train") if "train" in table.splits else None
    return Allocation(**options).fit_table(table.select("calibration"), reference)


def _by_name(table: DecisionTable) -> Features:
    return [table.features.get(name) for name in table.modalities]


def _named(note: str, modalities: Sequence[str]) -> str:
    for m, name in enumerate(modalities):
        note = note.replace(f"modality {m} ", f"{name} ")
    return note
