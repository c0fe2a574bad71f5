"""`Allocation`: fit the decision layer on held-out logits, use it, save it, write it into a model's adaptive head."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from hf_mmbalance.decision.calibration import calibrated_state
from hf_mmbalance.decision.head import HeadState, state_from_arrays
from hf_mmbalance.decision.ladder import STRENGTHS, Ladder, fit_ladder
from hf_mmbalance.decision.shift import LogitProfile, estimate_prior, shift_prior
from hf_mmbalance.metrics.measures import capability, log_softmax, predict


if TYPE_CHECKING:
    from hf_mmbalance.decision.table import DecisionTable


FILE_NAME = "allocation.json"


class Allocation(ClassifierMixin, BaseEstimator):
    """Calibrated, allocated fusion of unimodal logits; a scikit-learn classifier over `X (N, M, C)`.

    Fit it on clips that the towers did not learn from. A missing modality is an all-NaN row of `X`.

    Args:
        rung: "auto" chooses by group cross-validation; or a rung of the ladder by name.
        calibration: of each modality under every rung but `linear`: "temperature", "vector" or "dirichlet".
        folds: of the group cross-validation.
        strengths: precisions of the prior that shrinks a rung to its parent, strongest first.
        seed: of the folds.

    After `fit`: `chosen_` (rung or `best_single`), `reason_`, `notes_`, `state_` (`HeadState` in use), `ladder_` (all
    rungs and their held-out scores), `classes_`, `prior_` (class frequencies), `profile_` (for the shift warning).
    """

    def __init__(
        self,
        rung: str = "auto",
        calibration: str = "temperature",
        folds: int = 5,
        strengths: Sequence[float] = STRENGTHS,
        seed: int = 0,
    ) -> None:
        self.rung = rung
        self.calibration = calibration
        self.folds = folds
        self.strengths = strengths
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit the ladder and choose a rung.

        Args:
            X: `(N, M, C)` unimodal logits or log-probabilities.
            y: `(N,)` class indices.
            groups: `(N,)` group of every clip; None takes every clip as its own group.

        Raises:
            ValueError: if shapes, values or options are unusable.
        """
        logits = checked_logits(X)
        labels = checked_labels(y, logits)
        names = np.arange(len(labels)).astype(str) if groups is None else np.asarray(groups).astype(str)
        if len(names) != len(labels):
            raise ValueError(f"groups has {len(names)} entries for {len(labels)} clips.")
        if self.folds < 2 or not len(self.strengths) or min(self.strengths) <= 0:
            raise ValueError("folds must be at least 2 and strengths positive.")
        # The products are small and many: a second BLAS thread costs more in waiting than it brings.
        with threadpool_limits(limits=1):
            self.ladder_: Ladder = fit_ladder(
                logits,
                labels,
                names,
                calibrator=lambda z, own: calibrated_state(self.calibration, z, own),
                folds=self.folds,
                strengths=sorted(self.strengths, reverse=True),
                seed=self.seed,
                rung=None if self.rung == "auto" else self.rung,
            )
        for note in self.ladder_.notes:
            warnings.warn(note, stacklevel=2)
        self.chosen_, self.reason_, self.notes_ = self.ladder_.chosen, self.ladder_.reason, self.ladder_.notes
        self.state_: HeadState = self.ladder_.states[self.chosen_]
        self.n_modalities_, classes = logits.shape[1:]
        self.classes_ = np.arange(classes)
        self.modality_names_ = [f"modality {m}" for m in range(self.n_modalities_)]
        self.class_names_ = [str(c) for c in range(classes)]
        self.prior_ = (np.bincount(labels, minlength=classes) + 0.5) / (len(labels) + 0.5 * classes)
        self.capability_ = np.nan_to_num(capability(logits, labels))
        self.profile_ = LogitProfile.of(logits, names)
        return self

    def fit_table(self, table: DecisionTable) -> Self:
        """`fit` on the rows of a decision table, keeping its names of classes and modalities."""
        self.fit(table.logits, table.labels, table.groups)
        self.modality_names_, self.class_names_ = list(table.modalities), list(table.classes)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Fused logits `(N, C)`."""
        return self._state().fuse(self._checked(X))[0]

    def predict_proba(self, X: Any, prior: str | Sequence[float] | np.ndarray | None = None) -> np.ndarray:
        """Fused probabilities `(N, C)`.

        Args:
            X: `(N, M, C)`.
            prior: class prior of these clips where it differs from the fitting clips' and nothing else does: `(C,)`
                probabilities, or "estimate" to infer it from X (Saerens et al. 2002). None leaves it.
        """
        log_probs = log_softmax(self.decision_function(X))
        if prior is None:
            return np.exp(log_probs)
        if isinstance(prior, str):
            if prior != "estimate":
                raise ValueError(f"prior is {prior!r}; give 'estimate', probabilities or None.")
            new = estimate_prior(log_probs, self.prior_)
        else:
            new = np.asarray(prior, dtype=np.float64)
            if new.shape != self.prior_.shape or (new < 0).any() or not np.isclose(new.sum(), 1):
                raise ValueError(f"prior must be {len(self.prior_)} probabilities that sum to 1.")
        return np.exp(shift_prior(log_probs, self.prior_, new))

    def predict(self, X: Any) -> np.ndarray:
        """Class index of every clip, `(N,)`; ties by `measures.predict`."""
        best = predict(self.decision_function(X))
        return np.asarray(self.classes_[best])

    def weights(self, X: Any) -> np.ndarray:
        """Weights `(N, M, C)` that every modality's calibrated log-probabilities got, 0 where missing."""
        return self._state().fuse(self._checked(X))[1]

    def contributions(self, X: Any) -> np.ndarray:
        """Exact terms `(N, M, C)` that sum to the fused logits minus the bias."""
        return self._state().fuse(self._checked(X))[2]

    def check_shift(self, X: Any, *, warn: bool = True) -> list[str]:
        """In what these logits are unlike the fitting ones, as sentences; also warns unless told not to."""
        check_is_fitted(self, "state_")
        found = self.profile_.differences(self._checked(X), self.modality_names_)
        if found and warn:
            warnings.warn("the evaluated logits are unlike the fitted ones: " + "; ".join(found), stacklevel=2)
        return found

    def to_head_state(self) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """Options and parameters (float32) of the model's `adaptive` head that decides like this allocation."""
        state = self._state()
        arrays = {name: value.astype(np.float32) for name, value in state.arrays().items()}
        arrays["capability"] = self.capability_.astype(np.float32)
        return {"calibration": state.calibration, "gate": state.gate}, arrays

    def write_to(self, model: Any) -> None:
        """Install this allocation as `model.fusion` and record it in `model.config`, so that saving keeps it.

        Args:
            model: a model with `fusion` and `config.fusion`, `config.fusion_options`; modalities and classes in the
                order of the fit.

        Raises:
            ValueError: if the model has another number of modalities or classes, or other names or order of them.
        """
        import torch

        from hf_mmbalance.model.fusion_adaptive_mmbalance import AdaptiveFusion

        options, arrays = self.to_head_state()
        self._check_model(model)
        old = model.fusion
        head = AdaptiveFusion(self.n_modalities_, len(self.classes_), tuple(old.feature_sizes), **options)
        head.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
        where = next(model.parameters())
        model.fusion = head.to(device=where.device, dtype=where.dtype).train(old.training)
        model.config.fusion = "adaptive"
        model.config.fusion_options = options

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `allocation.json` into a folder; `load` reads it back."""
        check_is_fitted(self, "state_")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "parameters": self.get_params() | {"strengths": list(self.strengths)},
            "chosen": self.chosen_,
            "reason": self.reason_,
            "notes": self.notes_,
            "modalities": self.modality_names_,
            "classes": self.class_names_,
            "prior": self.prior_.tolist(),
            "capability": self.capability_.tolist(),
            "profile": self.profile_.as_dict(),
            "state": {name: value.tolist() for name, value in self.state_.arrays().items()},
        }
        (folder / FILE_NAME).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        return folder / FILE_NAME

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Allocation:
        """Read what `save` wrote; `ladder_` (the other rungs) is not kept.

        Raises:
            ValueError: if the folder holds no allocation.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give a folder written by Allocation.save or `decide --save`.")
        content = json.loads(path.read_text(encoding="utf-8"))
        made = cls(**content["parameters"])
        made.chosen_, made.reason_, made.notes_ = content["chosen"], content["reason"], content["notes"]
        made.modality_names_, made.class_names_ = content["modalities"], content["classes"]
        made.state_ = state_from_arrays(content["state"])
        made.prior_, made.capability_ = np.array(content["prior"]), np.array(content["capability"])
        made.profile_ = LogitProfile(**content["profile"])
        made.n_modalities_, made.classes_ = len(made.modality_names_), np.arange(len(made.class_names_))
        return made

    def _state(self) -> HeadState:
        check_is_fitted(self, "state_")
        return self.state_

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "state_")
        logits = checked_logits(X)
        expected = (self.n_modalities_, len(self.classes_))
        if logits.shape[1:] != expected:
            raise ValueError(f"X has {logits.shape[1:]} modalities and classes; the fit had {expected}.")
        return logits

    def _check_model(self, model: Any) -> None:
        have = (model.fusion.num_modalities, model.fusion.num_labels)
        if have != (self.n_modalities_, len(self.classes_)):
            raise ValueError(f"the model has {have} modalities and classes, the allocation was fitted on"
                             f" {(self.n_modalities_, len(self.classes_))}.")  # fmt: skip
        labels = [str(model.config.id2label[i]) for i in range(have[1])] if model.config.id2label else []
        named = not all(name == str(i) for i, name in enumerate(self.class_names_))
        if named and labels and labels != self.class_names_ and not all(x.startswith("LABEL_") for x in labels):
            raise ValueError(
                f"the model's classes {labels[:5]}... are not those of the fit {self.class_names_[:5]}..."
            )
        modalities = list(getattr(model.config, "modalities", self.modality_names_))
        if not self.modality_names_[0].startswith("modality ") and modalities != self.modality_names_:
            raise ValueError(f"the model's modalities are {modalities}, those of the fit {self.modality_names_}.")


def checked_logits(X: Any) -> np.ndarray:
    """`X` as float64 `(N, M, C)`.

    Raises:
        ValueError: if the shape is another, a row is partly NaN or infinite, or a clip has no modality.
    """
    logits = np.asarray(X, dtype=np.float64)
    if logits.ndim != 3 or not len(logits) or logits.shape[1] < 2 or logits.shape[2] < 2:
        raise ValueError(f"X has shape {logits.shape}; expected (N, M, C) with N >= 1, M >= 2 and C >= 2.")
    missing: np.ndarray = np.all(np.isnan(logits), axis=2)
    if not np.all(np.all(np.isfinite(logits), axis=2) | missing):
        raise ValueError("X holds NaN or inf within a row; a missing modality is an all-NaN row.")
    nothing: np.ndarray = np.all(missing, axis=1)
    if nothing.any():
        raise ValueError(f"{int(nothing.sum())} clip(s) have no modality at all; leave them out.")
    return logits


def checked_labels(y: Any, logits: np.ndarray) -> np.ndarray:
    """`y` as int64 `(N,)` within the classes of the logits.

    Raises:
        ValueError: if it is not.
    """
    labels = np.asarray(y)
    if labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"y has shape {labels.shape} and type {labels.dtype}; expected ({len(logits)},) integers.")
    if labels.min() < 0 or labels.max() >= logits.shape[2]:
        raise ValueError(f"y runs from {labels.min()} to {labels.max()}; classes are 0..{logits.shape[2] - 1}.")
    return labels.astype(np.int64)
