"""Fuse two models: fit heads and a decision layer on the features of some labelled clips.

No clips are set aside. The decision layer is fitted and evaluated on logits that come from cross-validation: the heads
that predict a clip were fitted without its fold.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_mmbalance.console import UserError
from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.fits import FitData, fit_temperatures
from hf_mmbalance.decision.folds import draw_folds
from hf_mmbalance.decision.ladder import FALLBACKS, PARENTS, STIFF
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.embedding.heads import LinearHead, fit_head
from hf_mmbalance.embedding.stored import Embeddings
from hf_mmbalance.metrics.measures import log_softmax
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.source_heads_mmbalance import SourceHead


FOLDS = 5
FITTED, TEST = "calibration", "test"
POOLINGS = ("log_probs", "mean")
CLIPS_PER_CLASS = 10  # fewer clips cannot show how well a rung with parameters per class works


class FuseError(UserError):
    """Raised if models cannot be fused on these clips; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class FuseOptions:
    """How the decision layer is fitted; the options mean the same as in `mmbalance decide`."""

    rung: str = "auto"
    known_groups: bool = False
    folds: int = FOLDS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rung not in ("auto", *PARENTS):
            raise FuseError(f"rung={self.rung!r} is unknown: choose auto or one of {', '.join(PARENTS)}")
        if self.seed < 0:
            raise FuseError(f"seed={self.seed} must not be negative")


@dataclass
class Rows:
    """Labelled rows (clips and their draws) for fitting and evaluation.

    Attributes:
        ids, clips, groups: N names.
        labels, draws: `(N,)`.
        features, tokens: modality -> `(N, D_m)`, NaN rows where the modality is missing. Heads use the features,
            typicality uses the tokens.
        own: modality -> `(N, C)` logits of a classifier's own head; heads are fitted for the other modalities.
        classes: C names.
        known: `(M, C)` bool, the classes that each modality knows.
    """

    ids: np.ndarray
    clips: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    draws: np.ndarray
    features: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    own: dict[str, np.ndarray]
    classes: list[str]
    known: np.ndarray

    def take(self, index: np.ndarray) -> Rows:
        """Return the rows at `index`."""
        return Rows(
            self.ids[index],
            self.clips[index],
            self.groups[index],
            self.labels[index],
            self.draws[index],
            {name: values[index] for name, values in self.features.items()},
            {name: values[index] for name, values in self.tokens.items()},
            {name: values[index] for name, values in self.own.items()},
            self.classes,
            self.known,
        )

    def table(self, logits: np.ndarray, split: str, **references: np.ndarray) -> DecisionTable:
        """Return the rows as a decision table with unimodal logits `(N, M, C)`."""
        return DecisionTable(
            ids=list(self.ids),
            groups=list(self.groups),
            splits=[split] * len(self.ids),
            labels=self.labels,
            logits=logits,
            classes=self.classes,
            modalities=list(self.features),
            features=self.tokens,
            references=references,
            clips=list(self.clips),
            draws=self.draws,
            known=self.known,
        )


@dataclass
class Fit:
    """Heads and a decision layer, fitted on some rows.

    Attributes:
        heads: modality -> head fitted on all rows; classifiers that keep their own head are not included.
        logits: `(N, M, C)` held-out unimodal logits of the rows.
        folds: `(N,)` fold of every row.
        allocation: the decision layer, fitted on `logits`.
    """

    heads: dict[str, LinearHead]
    logits: np.ndarray
    folds: np.ndarray
    allocation: Allocation

    def unimodal(self, rows: Rows) -> np.ndarray:
        """Return unimodal logits `(N, M, C)` of other rows."""
        return np.stack(
            [
                self.heads[name](values) if name in self.heads else rows.own[name]
                for name, values in rows.features.items()
            ],
            axis=1,
        )

    def fused(self, rows: Rows) -> np.ndarray:
        """Return fused logits `(N, C)` of other rows."""
        return self.allocation.decision_function(self.unimodal(rows), list(rows.tokens.values()))


def rows_of_split(
    embeddings: Embeddings, model: MMBalanceForAudioVisualClassification, splits: set[str], pooling: str | None = None
) -> Rows:
    """Return the stored rows of some splits, with the logits of classifiers that keep their own head.

    Args:
        embeddings: embeddings from the towers of `model`.
        model: model that holds the classifiers' own heads.
        splits: names of the splits.
        pooling: pooling over frames, `mean` or `log_probs`; that of the model by default.
    """
    index = np.flatnonzero([split in splits for split in embeddings.splits])
    own: dict[str, np.ndarray] = {}
    for place, modality in enumerate(embeddings.modalities):
        head = model.unimodal_heads[place]
        if isinstance(head, SourceHead):
            own[modality] = _own_logits(head, embeddings, modality, index, pooling or model.config.frame_pooling)
    return Rows(
        np.asarray(embeddings.ids)[index],
        np.asarray(embeddings.clips)[index],
        np.asarray(embeddings.groups)[index],
        embeddings.labels[index],
        embeddings.draws[index],
        {name: values[index].astype(np.float64) for name, values in embeddings.features.items()},
        {name: values[index].astype(np.float64) for name, values in embeddings.tokens.items()},
        own,
        embeddings.classes,
        np.array(model.config.known_classes),
    )


def _own_logits(
    head: SourceHead, embeddings: Embeddings, modality: str, index: np.ndarray, pooling: str
) -> np.ndarray:
    """Return class log-probabilities `(N, C)` of a classifier's own head, NaN rows where the modality is missing."""
    per_frame = modality == "vision" and pooling == "log_probs"
    stored = (embeddings.log_probs if per_frame else embeddings.features)[modality][index]
    values = torch.from_numpy(np.nan_to_num(stored))
    with torch.no_grad():
        log_probs = values if per_frame else head.label_log_probs(values)
        logits = head.class_logits(log_probs).double().numpy()
    return np.where(np.isnan(stored[:, :1]), np.nan, logits)


def fit(rows: Rows, options: FuseOptions) -> Fit:
    """Fit heads and a decision layer on labelled rows.

    Raises:
        FuseError: a head must be fitted, but there are too few clips or classes.
    """
    names, inverse, draws = np.unique(rows.clips, return_inverse=True, return_counts=True)
    clips, weights = len(names), 1.0 / draws[inverse]  # every clip counts once, however many draws it has
    units = rows.clips if options.known_groups else rows.groups
    if len(np.unique(units)) < 2:
        units = rows.clips
    heads: dict[str, LinearHead] = {}
    columns: list[np.ndarray] = []
    folds = stratified_folds(rows.labels, units, rows.clips, options.folds, options.seed)
    for name, values in rows.features.items():
        if name in rows.own:
            columns.append(rows.own[name])
            continue
        there = ~np.isnan(values).any(axis=1)
        logits = np.full((len(rows.ids), len(rows.classes)), np.nan)
        try:
            heads[name], logits[there] = fit_head(
                values[there], rows.labels[there], len(rows.classes), folds[there], weights[there]
            )
        except ValueError as error:
            raise FuseError(
                f"{name}: {error}, which {clips} labelled clips ({int(there.sum())} rows with {name}) do not provide:"
                " label more clips, or give a classifier, which has its own head"
            ) from None
        columns.append(logits)
    stacked = np.stack(columns, axis=1)
    return Fit(heads, stacked, folds, fit_allocation(rows, stacked, options.rung, options))


def fit_allocation(rows: Rows, logits: np.ndarray, rung: str, options: FuseOptions) -> Allocation:
    """Fit the decision layer on held-out logits `(N, M, C)`; typicality is used only if there are corrupted draws."""
    table = rows.table(logits, FITTED)
    if not rows.draws.any():
        table.features = {}  # clean clips cannot show how typicality should change a decision
    allocation = Allocation(rung=rung, known_groups=options.known_groups, seed=options.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `notes_` holds the same texts
        allocation.fit_table(table)
    few = len(np.unique(rows.clips)) < CLIPS_PER_CLASS * len(rows.classes)
    if rung == "auto" and few and allocation.chosen_ not in (*STIFF, *FALLBACKS):
        allocation.choose_among(STIFF)
        allocation.notes_.append(
            f"fewer than {CLIPS_PER_CLASS} labelled clips per class: only {', '.join(STIFF)} and the best single"
            " modality can be chosen"
        )
    return allocation


def stratified_folds(labels: np.ndarray, units: np.ndarray, clips: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of every row: groups stay together; if each group is one clip, folds are balanced by class."""
    single = len(np.unique(units)) == len(np.unique(clips))
    return draw_folds(labels, np.zeros(len(labels)) if single else units, clips, folds, seed)


def held_out_decisions(rows: Rows, fitted: Fit, options: FuseOptions) -> np.ndarray:
    """Return fused logits `(N, C)`; the chosen rung is fitted for each fold on the rows of the other folds."""
    logits = np.empty((len(rows.ids), len(rows.classes)))
    tokens = list(rows.tokens.values())
    chosen = fitted.allocation.chosen_
    for fold in np.unique(fitted.folds):
        learn, judge = fitted.folds != fold, fitted.folds == fold
        # `best_single` and `sum` are not rungs but fallbacks, which a fit of the stiffest rung also provides.
        rung = "temperature" if chosen in ("best_single", "sum") else chosen
        allocation = fit_allocation(rows.take(np.flatnonzero(learn)), fitted.logits[learn], rung, options)
        if chosen in allocation.ladder_.states:
            allocation.state_ = allocation.complete(allocation.ladder_.states[chosen])
        logits[judge] = allocation.decision_function(fitted.logits[judge], [values[judge] for values in tokens])
    return logits


def choose_pooling(
    embeddings: Embeddings, model: MMBalanceForAudioVisualClassification, labelled: set[str]
) -> tuple[str, dict[str, float]]:
    """Choose how an image classifier is pooled over frames: the pooling with the lower NLL at its own temperature.

    Only one temperature is fitted, so no folds are needed to compare the two.

    Returns:
        `mean` (of features) or `log_probs` (of frames), and the NLL of each in nats per clip. If no labelled clip has
        a class that the classifier knows, `mean` and no NLL.
    """
    losses: dict[str, float] = {}
    for pooling in POOLINGS:
        rows = rows_of_split(embeddings, model, labelled, pooling)
        logits, known = rows.own["vision"], rows.known[list(rows.features).index("vision")]
        there = ~np.isnan(logits[:, 0]) & (rows.draws == 0) & known[rows.labels]
        if not there.any():
            return "mean", {}
        own, labels = logits[there][:, known], np.cumsum(known)[rows.labels[there]] - 1
        data = FitData(own[:, None], labels)
        temperature = np.exp(fit_temperatures(data, data.plain_sum())["log_temperature"][0])
        losses[pooling] = float(-log_softmax(own / temperature)[np.arange(len(labels)), labels].mean())
    return min(losses, key=lambda name: losses[name]), losses


def write_heads(model: MMBalanceForAudioVisualClassification, heads: dict[str, LinearHead]) -> None:
    """Copy fitted heads into a model."""
    for place, modality in enumerate(model.config.modalities):
        if modality in heads:
            head: Any = model.unimodal_heads[place]
            with torch.no_grad():
                head.weight.copy_(torch.from_numpy(heads[modality].weight))
                head.bias.copy_(torch.from_numpy(heads[modality].bias))
