"""`Allocation`: fit the decision layer on held-out clips, use it, save it, write it into a model's adaptive head."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from hf_mmbalance.decision.fits import FitData, fit_prior
from hf_mmbalance.decision.ladder import STRENGTHS, Clips, Ladder, Options, choose, fit_ladder, rebalanced
from hf_mmbalance.decision.optimise import one_thread
from hf_mmbalance.decision.shift import LogitProfile, checked_prior, estimate_prior, shift_prior
from hf_mmbalance.decision.state import SLOPE, Fused, HeadState
from hf_mmbalance.decision.typicality import MIN_CLIPS, Features, fit_typicality
from hf_mmbalance.metrics.measures import log_softmax, predict


if TYPE_CHECKING:
    from hf_mmbalance.decision.table import DecisionTable


FILE_NAME = "allocation.npz"
STRUCTURES = ("any", "default")


class Allocation(ClassifierMixin, BaseEstimator):
    """Calibrated, allocated fusion of unimodal logits; a scikit-learn classifier over `X (N, M, C)`.

    Fit it on clips that the towers did not learn from. A missing modality is an all-NaN row of `X`.

    Args:
        rung: "auto" chooses by group cross-validation; or a rung of the ladder by name.
        folds: of the group cross-validation.
        seed: of the folds.
        known_groups: the place of use has the same groups (one speaker, one camera): folds are over clips, and few
            groups do not rule out the freer rungs.
        balance: weight of a penalty that pulls the weights' shares towards capability shares, in nats; above 0 the
            rung `class` (`global` where the groups are too few) is fitted and taken.
        prior: `(C,)` class prior of the place of use where it is known and differs from the fitting clips'.
        structure: "default" keeps to rungs that add no buffer to the model's head; "any" allows all.
        strengths: precisions of the prior that shrinks a rung to its parent, strongest first.

    After `fit`: `chosen_` (rung or `best_single`), `reason_`, `notes_`, `state_` (`HeadState` in use), `ladder_`
    (all rungs and their held-out scores), `classes_`, `prior_` (class prior of the fit), `profile_` (for shifts).
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
            groups: `(N,)` group of every clip; None takes every clip as its own group.
            features: one `(N, D_m)` per modality, by name or in the order of X (None where there are none); for
                the rung `typicality`.
            reference: features (as above) and labels of the towers' own training clips, for class means and
                covariance; None takes them from the fitting clips, out of fold.
            clips: `(N,)` name of the clip that a row is a draw of; None takes every row as its own clip.
            draws: `(N,)` 0 for the clean clip, else the number of a corrupted draw of it; None for zeros.
            known: `(M, C)` bool, the classes that each modality knows; None for all. Logits of the others may have any
                finite value.

        Raises:
            ValueError: if shapes, values or options are unusable.
        """
        logits = checked_logits(X)
        labels = checked_labels(y, logits)
        self._check_options()
        names = _column(clips, "clips", np.arange(len(labels))).astype(str)
        group = _column(groups, "groups", names).astype(str)
        draw = _column(draws, "draws", np.zeros(len(labels), dtype=np.int64))
        self.n_modalities_, classes = logits.shape[1:]
        self.classes_ = np.arange(classes)
        self.modality_names_ = [f"modality {m}" for m in range(self.n_modalities_)]
        self.class_names_ = [str(c) for c in range(classes)]
        known = None if known is None else checked_known(known, logits.shape[1:])
        self.prior_ = np.exp(fit_prior(labels, classes))
        shifted = None if self.prior is None else checked_prior(self.prior, classes)
        with one_thread():
            typicality: np.ndarray | None = None
            notes: list[str] = []
            self.statistics_: dict[str, np.ndarray] = {}
            if features is not None and self.structure == "any":
                self.statistics_, typicality, notes = self._typicality(
                    features, reference, logits, labels, group, names, draw
                )
            rung = self.rung
            if self.balance and rung == "auto":
                few = len(np.unique(group)) < 3 and not self.known_groups
                rung = "global" if few or known is not None and not known.all() else "class"
            self._clips = Clips(FitData(logits, labels, typicality, known), group, names, draw)
            strengths = tuple(sorted(self.strengths, reverse=True))
            self._options = Options(
                folds=self.folds,
                seed=self.seed,
                rung=None if rung == "auto" else rung,
                known_groups=self.known_groups,
                structure=self.structure,
                balance=self.balance,
                strengths=strengths,
            )
            self.ladder_: Ladder = fit_ladder(self._clips, self._options)
        self.notes_ = notes + self.ladder_.notes
        for note in self.notes_:
            warnings.warn(note, stacklevel=2)
        self.chosen_, self.reason_ = self.ladder_.chosen, self.ladder_.reason
        self.state_ = self.complete(self.ladder_.states[self.chosen_])
        if shifted is not None:
            self.state_ = self.state_.replace(prior_shift=np.log(shifted) - np.log(self.prior_))
        self.profile_ = LogitProfile.of(logits, group)
        return self

    def fit_table(self, table: DecisionTable, reference: DecisionTable | None = None) -> Self:
        """`fit` on the rows of a decision table, keeping its names of classes and modalities.

        Args:
            table: rows to fit on; `features.*` are used where they are there.
            reference: rows of the towers' training clips, of which only features and labels are used.
        """
        training = None
        if reference is not None and reference.features:
            training = (_by_name(reference), reference.labels)
        features = _by_name(table) if table.features else None
        self.fit(
            table.logits, table.labels, table.groups, features, training, table.clips, table.draws, table.known
        )  # fmt: skip
        self.modality_names_, self.class_names_ = list(table.modalities), list(table.classes)
        self.notes_ = [_named(note, table.modalities) for note in self.notes_]
        return self

    def _typicality(
        self,
        features: Any,
        reference: tuple[Any, Any] | None,
        logits: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        clips: np.ndarray,
        draws: np.ndarray,
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None, list[str]]:
        own = checked_features(features, len(labels), self.n_modalities_)
        if len(np.unique(clips)) < MIN_CLIPS:
            return {}, None, [f"typicality: fewer than {MIN_CLIPS} clips to fit on; it is left out"]
        known = None
        if reference is not None:
            known_labels = np.asarray(reference[1])
            known = (checked_features(reference[0], len(known_labels), self.n_modalities_), known_labels)
            if all(value is None or np.isnan(value).all() for value in known[0]):
                known = None
            elif any(
                a is not None and b is not None and a.shape[1] != b.shape[1]
                for a, b in zip(own, known[0], strict=True)
            ):
                raise ValueError("features of the reference clips have other widths than those of the fitting clips.")
        mask = ~np.isnan(logits[:, :, 0])
        arrays, typicality, notes = fit_typicality(
            own, labels, mask, logits.shape[2], reference=known, groups=groups, clips=clips, draws=draws,
            folds=self.folds, seed=self.seed,
        )  # fmt: skip
        return arrays, typicality if arrays else None, notes

    def choose_among(self, rungs: Sequence[str]) -> None:
        """Choose again, by the same rule, among some of the rungs that were fitted (and the fallbacks)."""
        check_is_fitted(self, "state_")
        allowed = [rung for rung in self.ladder_.states if rung in rungs]
        self.chosen_, self.reason_ = choose(self.ladder_.scores, self._clips, allowed)
        self.state_ = self.complete(self.ladder_.states[self.chosen_])

    def complete(self, state: HeadState) -> HeadState:
        """A state of the ladder with the statistics of the towers' features, where it uses them."""
        if SLOPE not in state.arrays or not state[SLOPE].any():
            return HeadState({name: value for name, value in state.arrays.items() if name != SLOPE})
        return state.replace(**self.statistics_)

    def rebalanced(self, balance: float) -> HeadState:
        """The `class` rung (`global` where groups are too few) refitted under a balance penalty, for comparison.

        Raises:
            ValueError: after `load`, which keeps no clips.
        """
        if not hasattr(self, "_clips"):
            raise ValueError("a loaded allocation holds no clips to refit on; fit it anew.")
        with one_thread():
            return rebalanced(self.ladder_, self._clips, self._options, balance)

    def fuse(self, X: Any, features: Any = None) -> Fused:
        """Logits, weights, contributions and trust of clips `X (N, M, C)` with features as in `fit`."""
        check_is_fitted(self, "state_")
        logits = self._checked(X)
        return self.state_.fuse(logits, self.typicality(logits, features))

    def typicality(self, X: Any, features: Any = None) -> np.ndarray | None:
        """Standardised typicality `(N, M)`; None without features or where none was fitted."""
        if features is None or not self.statistics_:
            return None
        logits = self._checked(X)
        state = self.state_ if SLOPE in self.state_.arrays else HeadState.plain_sum(*logits.shape[1:]).replace(
            **self.statistics_, **{SLOPE: np.zeros(logits.shape[1])}
        )  # fmt: skip
        given = checked_features(features, len(logits), self.n_modalities_)
        return state.typicality(given, ~np.isnan(logits[:, :, 0]))

    def decision_function(self, X: Any, features: Any = None) -> np.ndarray:
        """Fused logits `(N, C)`."""
        return self.fuse(X, features).logits

    def predict_proba(
        self, X: Any, prior: str | Sequence[float] | np.ndarray | None = None, features: Any = None
    ) -> np.ndarray:
        """Fused probabilities `(N, C)`.

        Args:
            X: `(N, M, C)`.
            prior: class prior of these clips where it differs from the fitting clips' and nothing else does: `(C,)`
                probabilities, or "estimate" to infer it from X (Saerens et al. 2002). None keeps that of the fit.
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
        """Class index of every clip, `(N,)`; ties by `measures.predict`."""
        best = predict(self.decision_function(X, features))
        return np.asarray(self.classes_[best])

    def check_shift(self, X: Any, *, warn: bool = True) -> list[str]:
        """In what these logits are unlike the fitting ones, as sentences; also warns unless told not to."""
        check_is_fitted(self, "state_")
        found = self.profile_.differences(self._checked(X), self.modality_names_)
        if found and warn:
            warnings.warn("the evaluated logits are unlike the fitted ones: " + "; ".join(found), stacklevel=2)
        return found

    def describe(self) -> dict[str, Any]:
        """What is in use, as plain values by name; `lines` says the same in a few lines for a person."""
        check_is_fitted(self, "state_")
        state, names = self.state_, self.modality_names_
        by_name = lambda values: dict(zip(names, np.asarray(values).tolist(), strict=True))  # noqa: E731
        found: dict[str, Any] = {
            "rung": self.chosen_,
            "reason": self.reason_,
            "calibration": state.calibration,
            "temperature": by_name(np.exp(state["log_temperature"])),
            "prior": dict(zip(self.class_names_, np.exp(state["log_prior"]).tolist(), strict=True)),
            "weights": by_name(state["weights"]),
            "bias": dict(zip(self.class_names_, state["bias"].tolist(), strict=True)),
            "typicality_slope": by_name(state[SLOPE]) if SLOPE in state.arrays else None,
            "notes": list(self.notes_),
        }
        spans = {name: (min(row), max(row)) for name, row in found["weights"].items()}
        lines = [f"rung {self.chosen_}: {self.reason_}"]
        lines.append("temperature " + ", ".join(f"{name} {value:.3g}" for name, value in found["temperature"].items()))
        lines.append("weight " + ", ".join(
            f"{name} {low:.3g}" if high - low < 1e-9 else f"{name} {low:.3g} to {high:.3g} by class"
            for name, (low, high) in spans.items()
        ))  # fmt: skip
        prior = np.exp(state["log_prior"])
        lines.append(f"prior {prior.min():.3g} to {prior.max():.3g}, counted once")
        if np.any(state["bias"]):
            lines.append(f"class bias {state['bias'].min():+.3g} to {state['bias'].max():+.3g}")
        if state.calibration != "temperature":
            lines.append(f"own {state.calibration} map per modality before the temperature")
        if found["typicality_slope"] is not None:
            slopes = ", ".join(f"{name} {value:.3g}" for name, value in found["typicality_slope"].items())
            lines.append(f"typicality slope {slopes} (log 1/T per standard deviation)")
        return found | {"lines": lines}

    def write_to(self, model: Any) -> None:
        """Install this allocation as `model.fusion` and record it in `model.config`, so that saving keeps it.

        A head of the same structure stays in place and gets new values.

        Args:
            model: a model with `fusion` and `config.fusion`, `config.fusion_options`; modalities and classes in the
                order of the fit.

        Raises:
            ValueError: if the model has another number of modalities or classes, other names or order of them, or
                features of another width.
        """
        import torch

        from hf_mmbalance.model.fusion_adaptive_mmbalance import AdaptiveFusion

        check_is_fitted(self, "state_")
        self._check_model(model)
        old, options = model.fusion, self.state_.options
        head = self.state_.head(old.feature_sizes).float()
        same = isinstance(old, AdaptiveFusion) and (old.calibration, old.ranks) == (head.calibration, head.ranks)
        if same:
            with torch.no_grad():
                old.load_state_dict(head.state_dict())
        else:
            model.fusion = head.to(next(model.parameters()).device).train(old.training)
        model.config.fusion = "adaptive"
        model.config.fusion_options = options or None

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
        np.savez_compressed(folder / FILE_NAME, description=np.array(json.dumps(content)), **arrays)
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
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        content = json.loads(str(arrays.pop("description")))
        made = cls(**content["parameters"])
        made.chosen_, made.reason_, made.notes_ = content["chosen"], content["reason"], content["notes"]
        made.modality_names_, made.class_names_ = content["modalities"], content["classes"]
        made.state_ = HeadState(arrays)
        made.statistics_ = {
            name: value for name, value in arrays.items() if name.startswith("typicality_") and name != SLOPE
        }
        made.prior_ = np.array(content["prior"])
        made.profile_ = LogitProfile(**content["profile"])
        made.n_modalities_, made.classes_ = len(made.modality_names_), np.arange(len(made.class_names_))
        return made

    def _check_options(self) -> None:
        if self.folds < 2 or not len(self.strengths) or min(self.strengths) <= 0:
            raise ValueError("folds must be at least 2 and strengths positive.")
        if self.structure not in STRUCTURES:
            raise ValueError(f"structure is {self.structure!r}; choose among {', '.join(STRUCTURES)}.")
        if not self.balance >= 0:
            raise ValueError(f"balance is {self.balance}; it must be at least 0.")

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
        known = np.asarray(getattr(model.config, "known_classes", np.ones(have)), dtype=bool)
        if not np.array_equal(known, self.state_.known):
            raise ValueError(
                f"the model's modalities know {known.sum(axis=1).tolist()} of {have[1]} classes, those of the fit"
                f" others ({self.state_.known.sum(axis=1).tolist()}): fit on a table whose `known` is the model's"
            )
        widths = [self.state_.arrays.get(f"typicality_mean_{m}") for m in range(have[0])]
        for m, mean in enumerate(widths):
            if mean is not None and len(mean) != model.fusion.feature_sizes[m]:
                raise ValueError(
                    f"the model's {self.modality_names_[m]} features have width {model.fusion.feature_sizes[m]}, those"
                    f" of the fit {len(mean)}."
                )


def fit_decision_layer(
    table: DecisionTable,
    *,
    rung: str = "auto",
    known_groups: bool = False,
    balance: float = 0.0,
    seed: int = 0,
    structure: str = "any",
    **options: Any,
) -> Allocation:
    """Fit the decision layer on a table's calibration rows: what training and `mmbalance decide` both call.

    Args:
        table: rows of split `calibration` (all draws); those of `train`, if there are any, give only the class means
            and covariance of features. Rows of other splits are not touched.
        rung, known_groups, balance, seed, structure: see [`Allocation`].
        **options: further arguments of `Allocation`.

    Raises:
        TableError: if the table has no calibration rows.
    """
    allocation = Allocation(
        rung=rung, known_groups=known_groups, balance=balance, seed=seed, structure=structure, **options
    )
    reference = table.select("train") if "train" in table.splits else None
    return allocation.fit_table(table.select("calibration"), reference)


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


def checked_known(known: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`known` as bool `(M, C)`.

    Raises:
        ValueError: for another shape, or a modality that knows less than two classes.
    """
    found = np.asarray(known, dtype=bool)
    if found.shape != tuple(shape):
        raise ValueError(f"known has shape {found.shape}; expected {tuple(shape)}, one row per modality.")
    if found.sum(axis=1).min() < 2:
        raise ValueError(f"modalities know {found.sum(axis=1).tolist()} classes; each must know at least 2.")
    return found


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


def checked_features(features: Any, clips: int, modalities: int) -> list[np.ndarray | None]:
    """Features as one `(N, D_m)` array or None per modality; a mapping is taken in its own order.

    Raises:
        ValueError: for another number of modalities or rows, or a row that is partly NaN or infinite.
    """
    given = list(features.values()) if isinstance(features, Mapping) else list(features)
    if len(given) != modalities:
        raise ValueError(f"features of {len(given)} modalities for {modalities}; give None where there are none.")
    found: list[np.ndarray | None] = []
    for m, value in enumerate(given):
        array = None if value is None else np.asarray(value, dtype=np.float64)
        if array is not None:
            if array.ndim != 2 or len(array) != clips:
                raise ValueError(f"features of modality {m} have shape {array.shape}; expected ({clips}, D).")
            bad = ~np.isfinite(array).all(axis=1) & ~np.isnan(array).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"features of modality {m} hold NaN or inf within {int(bad.sum())} row(s); features that are not"
                    " known are an all-NaN row."
                )
        found.append(array)
    return found


def _by_name(table: DecisionTable) -> Features:
    return [table.features.get(name) for name in table.modalities]


def _named(note: str, modalities: Sequence[str]) -> str:
    for m, name in enumerate(modalities):
        note = note.replace(f"modality {m} ", f"{name} ")
    return note


def _column(values: Any, name: str, default: np.ndarray) -> np.ndarray:
    found = default if values is None else np.asarray(values)
    if len(found) != len(default):
        raise ValueError(f"{name} has {len(found)} entries for {len(default)} clips.")
    return found
