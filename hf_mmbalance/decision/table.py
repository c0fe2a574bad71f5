"""The decision table: the logits that any model hands to the decision layer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.decision.state import HeadState, own_log_probs
from hf_mmbalance.decision.table_files import TableError, read_file, write_file
from hf_mmbalance.metrics.measures import MIN_GROUPS_FOR_CLUSTERS
from hf_mmbalance.splits import canonical_split


KINDS = ("logits", "log_probs")
#: Rows and methods of reports; a modality of the same name could not be distinguished from them.
RESERVED = frozenset(
    ("sum", "prior_sum", "mean_prob", "best_single", "temperature", "typicality", "global", "bias", "vector", "class",
     "dirichlet", "adaptive", "model", "fused")
)  # fmt: skip


@dataclass
class DecisionTable:
    """Unimodal logits of N clips from M modalities over C classes.

    Args:
        ids: N unique names, one per row.
        groups: N group names (actor, speaker, source video: what must not be on both sides of a split).
        splits: N split names, ignoring case; common aliases (`val`, `dev`, ...) become train, calibration, validation,
            test.
        labels: `(N,)` class indices or class names.
        logits: `(N, M, C)` float64, with a NaN row where the modality is missing.
        classes: names of the C classes.
        modalities: names of the M modalities.
        features: modality -> `(N, D)`, optional; NaN rows where missing.
        references: name -> `(N, C)` logits to compare with, never fused.
        kind: "logits" or "log_probs" (rows of log-probabilities).
        clips: N names of the clips that rows are draws of; None for the ids. Draws of a clip share group and label.
        draws: `(N,)` 0 for the clean clip, else the number of its corrupted draw; None for zeros.
        known: `(M, C)` bool, the classes that each modality knows; None for all. A modality gives no evidence for the
            others, and its logits for them can have any finite value.

    Raises:
        TableError: if the decision layer cannot work with the data (see docs/decision.md, "Bad input").
    """

    ids: list[str]
    groups: list[str]
    splits: list[str]
    labels: np.ndarray
    logits: np.ndarray
    classes: list[str]
    modalities: list[str]
    features: dict[str, np.ndarray] = field(default_factory=dict)
    references: dict[str, np.ndarray] = field(default_factory=dict)
    kind: str = "logits"
    clips: list[str] | None = None
    draws: np.ndarray | None = None
    known: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.ids = [str(i) for i in self.ids]
        self.clips = list(self.ids) if self.clips is None else [str(c) for c in self.clips]
        self.draws = np.zeros(len(self.ids), dtype=np.int64) if self.draws is None else np.asarray(self.draws)
        self.groups = _groups(self.groups, self.clips)
        self.splits = [canonical_split(str(s)) for s in self.splits]
        self.classes, self.modalities = [str(c) for c in self.classes], [str(m) for m in self.modalities]
        self.labels = _indices(self.labels, self.classes)
        self.logits = np.asarray(self.logits, dtype=np.float64)
        given = {name: np.asarray(value, dtype=np.float64) for name, value in self.features.items()}
        self.features = {name: value for name, value in given.items() if value.ndim != 2 or value.shape[1]}
        self.references = {name: np.asarray(value, dtype=np.float64) for name, value in self.references.items()}
        self.known = np.ones(self.logits.shape[1:], dtype=bool) if self.known is None else np.asarray(self.known) > 0
        _check_shapes(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mask(self) -> np.ndarray:
        """`(N, M)` bool, True where the modality is present."""
        return ~np.isnan(self.logits).any(axis=2)

    @property
    def units(self) -> list[str]:
        """Units that intervals resample: groups, or clips if there are fewer than 5 groups."""
        return self.groups if len(set(self.groups)) >= MIN_GROUPS_FOR_CLUSTERS else self.clip_names

    @property
    def clip_names(self) -> list[str]:
        """Name of the clip that every row is a draw of."""
        assert self.clips is not None
        return self.clips

    @property
    def clip_count(self) -> int:
        """Number of clips, each counted once with all its draws."""
        return len(set(self.clip_names))

    @property
    def draw_numbers(self) -> np.ndarray:
        """`(N,)` numbers of the draws, 0 for clean clips."""
        assert self.draws is not None
        return self.draws

    @property
    def known_classes(self) -> np.ndarray:
        """`(M, C)` bool, the classes that each modality knows."""
        assert self.known is not None
        return self.known

    @property
    def log_probs(self) -> np.ndarray:
        """`(N, M, C)` own prediction of each modality (see `own_log_probs`), NaN where missing."""
        return own_log_probs(self.logits, self.known_classes)

    def plain_sum(self) -> HeadState:
        """Return the sum of the modalities' log-probabilities, with nothing fitted."""
        return HeadState.plain_sum(*self.logits.shape[1:]).with_known(self.known)

    def take(self, index: np.ndarray | Sequence[int]) -> DecisionTable:
        """Return rows by integer or boolean index."""
        rows = np.asarray(index)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            groups=[self.groups[i] for i in rows],
            splits=[self.splits[i] for i in rows],
            labels=self.labels[rows],
            logits=self.logits[rows],
            features={name: value[rows] for name, value in self.features.items()},
            references={name: value[rows] for name, value in self.references.items()},
            clips=[self.clip_names[i] for i in rows],
            draws=self.draw_numbers[rows],
        )

    def select(self, split: str) -> DecisionTable:
        """Return the rows of one split.

        Raises:
            TableError: if no clip has that split; the message lists the existing splits.
        """
        split = canonical_split(split)
        rows = np.flatnonzero(np.asarray(self.splits) == split)
        if not len(rows):
            found = ", ".join(f"{name} ({self.splits.count(name)})" for name in sorted(set(self.splits)))
            raise TableError(f"no clip has split {split!r}; this table has: {found}.")
        return self.take(rows)

    @classmethod
    def concatenate(cls, tables: Sequence[DecisionTable]) -> DecisionTable:
        """Join tables with the same classes and modalities, such as the splits of one run, one below the other.

        Features and references are kept if every table has them.

        Raises:
            TableError: if the tables do not match, or an id is in two of them.
        """
        first = tables[0]
        for table in tables[1:]:
            if (table.classes, table.modalities, table.kind) != (first.classes, first.modalities, first.kind):
                raise TableError("tables of different classes, modalities or kinds cannot be joined.")
            if not np.array_equal(table.known_classes, first.known_classes):
                raise TableError("tables whose modalities know different classes cannot be joined.")
        return cls(
            ids=[name for table in tables for name in table.ids],
            groups=[name for table in tables for name in table.groups],
            splits=[name for table in tables for name in table.splits],
            labels=np.concatenate([table.labels for table in tables]),
            logits=np.concatenate([table.logits for table in tables]),
            classes=first.classes,
            modalities=first.modalities,
            features=_joined([table.features for table in tables]),
            references=_joined([table.references for table in tables]),
            kind=first.kind,
            clips=[name for table in tables for name in table.clip_names],
            draws=np.concatenate([table.draw_numbers for table in tables]),
            known=first.known,
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str], classes: Sequence[str] | None = None) -> DecisionTable:
        """Read a `.parquet`, `.npz` or `.csv` table (see `text_columns` for logits in a CSV file).

        Args:
            path: path of the file.
            classes: names of the C classes; only needed if the file has none (pandas drops them) and you want names.

        Raises:
            TableError: if the file is not a decision table, or its content cannot be used.
        """
        try:
            columns, meta = read_file(Path(path))
            return _assemble(columns, meta, classes)
        except TableError as error:
            raise TableError(f"{path}: {error}") from None
        except (TypeError, ValueError, OverflowError, IndexError, KeyError, AttributeError, MemoryError) as error:
            raise TableError(f"{path}: a column cannot be used ({type(error).__name__}: {error}).") from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the table; the suffix (`.parquet` or `.npz`) selects the format. Numbers are stored as float32."""
        columns: dict[str, np.ndarray] = {
            "id": np.array(self.ids, dtype=str),
            "group": np.array(self.groups, dtype=str),
            "split": np.array(self.splits, dtype=str),
            "label": self.labels,
        }
        if self.draw_numbers.any() or self.clip_names != self.ids:
            columns |= {"clip": np.array(self.clip_names, dtype=str), "draw": self.draw_numbers}
        for m, name in enumerate(self.modalities):
            columns[f"logits.{name}"] = self.logits[:, m].astype(np.float32)
        columns |= {f"features.{name}": value.astype(np.float32) for name, value in self.features.items()}
        columns |= {f"reference.{name}": value.astype(np.float32) for name, value in self.references.items()}
        meta: dict[str, Any] = {"classes": self.classes, "modalities": self.modalities, "kind": self.kind}
        if not self.known_classes.all():
            meta["known"] = self.known_classes
        write_file(path, columns, meta)


def _groups(groups: Sequence[Any], clips: list[str]) -> list[str]:
    """Return group names; a clip without a group is its own group, since a shared group "None" would be made up."""
    missing = [g is None or (isinstance(g, float) and np.isnan(g)) for g in groups]
    if len(groups) != len(clips) or not any(missing):
        return [str(g) for g in groups]
    warnings.warn(f"{sum(missing)} row(s) have no group: each such clip counts as its own group.", stacklevel=4)
    return [f"clip {clip}" if gone else str(g) for g, clip, gone in zip(groups, clips, missing, strict=True)]


def _check_shapes(table: DecisionTable) -> None:
    n = len(table.ids)
    if not n:
        raise TableError("the table has no rows.")
    columns: dict[str, Any] = {"group": table.groups, "split": table.splits, "label": table.labels,
                               "clip": table.clip_names, "draw": table.draw_numbers}  # fmt: skip
    for name, values in columns.items():
        if len(values) != n:
            raise TableError(f"column {name!r} has {len(values)} entries for {n} ids.")
    if table.draw_numbers.dtype.kind not in "iu" or table.draw_numbers.min() < 0:
        raise TableError("column 'draw' must hold integers from 0 (0 = the clean clip).")
    modalities, classes = len(table.modalities), len(table.classes)
    if table.logits.shape != (n, modalities, classes):
        raise TableError(
            f"logits have shape {table.logits.shape}; {n} clips, {modalities} modalities and {classes} classes need"
            f" {(n, modalities, classes)}."
        )
    if table.known_classes.shape != (modalities, classes):
        raise TableError(
            f"'known' has shape {table.known_classes.shape}; {modalities} modalities and {classes} classes need"
            f" {(modalities, classes)}."
        )
    if modalities < 2:
        raise TableError(
            f"only {modalities} modality ({', '.join(table.modalities)}); fusion needs at least two"
            " 'logits.<modality>' columns."
        )
    if classes < 2:
        raise TableError("only one class; there is nothing to decide.")
    for name, number in zip(table.modalities, table.known_classes.sum(axis=1), strict=True):
        if number < 2:
            raise TableError(f"modality {name!r} knows {number} of {classes} classes; it must know at least 2.")
    for kind, names in (("class", table.classes), ("modality", table.modalities)):
        if len(set(names)) < len(names):
            raise TableError(f"a {kind} name occurs twice: {names}.")
    taken = sorted(RESERVED & set(table.modalities))
    if taken:
        raise TableError(
            f"a modality is called {taken[0]!r}, like a row of the reports; rename 'logits.{taken[0]}', e.g. to"
            f" 'logits.{taken[0]}_tower'."
        )
    for name, value in table.features.items():
        if name not in table.modalities:
            raise TableError(f"'features.{name}' matches no modality; modalities are {', '.join(table.modalities)}.")
        if value.ndim != 2 or len(value) != n:
            raise TableError(f"'features.{name}' has shape {value.shape}; expected ({n}, D).")
    for name, value in table.references.items():
        if value.shape != (n, classes):
            raise TableError(f"'reference.{name}' has shape {value.shape}; expected ({n}, {classes}).")
    if table.kind not in KINDS:
        raise TableError(f"kind is {table.kind!r}; expected 'logits' or 'log_probs'.")


def _check_values(table: DecisionTable) -> None:
    seen: set[str] = set()
    for name in table.ids:
        if name in seen:
            raise TableError(f"id {name!r} occurs twice; every clip needs its own id.")
        seen.add(name)
    wrong = np.flatnonzero((table.labels < 0) | (table.labels >= len(table.classes)))
    if len(wrong):
        raise TableError(
            f"label {table.labels[wrong[0]]} of clip {table.ids[wrong[0]]!r} is outside"
            f" 0..{len(table.classes) - 1} ({len(wrong)} such clips)."
        )
    for m, name in enumerate(table.modalities):
        _check_rows(table, table.logits[:, m], f"logits.{name}")
    for name, value in table.references.items():
        _check_rows(table, value, f"reference.{name}")
    for name, value in table.features.items():
        partly = np.flatnonzero(~np.isfinite(value).all(axis=1) & ~np.isnan(value).all(axis=1))
        if len(partly):
            raise TableError(
                f"'features.{name}' of clip {table.ids[partly[0]]!r} holds NaN or inf ({len(partly)} such clips);"
                " store unknown features as a null (all-NaN) row."
            )
    owner: dict[str, tuple[str, int]] = {}
    for clip, group, label in zip(table.clip_names, table.groups, table.labels.tolist(), strict=True):
        if owner.setdefault(clip, (group, label)) != (group, label):
            raise TableError(f"draws of clip {clip!r} have different groups or labels.")
    nothing = np.flatnonzero(~table.mask.any(axis=1))
    if len(nothing):
        raise TableError(
            f"clip {table.ids[nothing[0]]!r} has no modality at all ({len(nothing)} such clips): remove"
            " such rows from the table."
        )


def _check_rows(table: DecisionTable, rows: np.ndarray, name: str) -> None:
    missing = np.isnan(rows).all(axis=1)
    bad = np.flatnonzero(~missing & ~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise TableError(
            f"{name!r} of clip {table.ids[bad[0]]!r} holds NaN or inf ({len(bad)} such clips); store a missing"
            " modality as a null (all-NaN) row, and clip log(0), e.g. by log(p + 1e-12)."
        )
    present = rows[~missing]
    if not len(present):
        return
    if table.kind == "log_probs":
        if present.max() > 1e-4:
            raise TableError(
                f"{name!r} holds positive values, but kind is 'log_probs'; store log(p) or kind 'logits'."
            )
    elif present.min() >= 0 and np.allclose(present.sum(axis=1), 1, atol=1e-3):
        raise TableError(
            f"{name!r} holds probabilities (rows are >= 0 and sum to 1), but kind is 'logits'; store"
            " log(p + 1e-12) with kind 'log_probs'."
        )


def _assemble(columns: dict[str, Any], meta: dict[str, Any], classes: Sequence[str] | None) -> DecisionTable:
    found = [name.removeprefix("logits.") for name in columns if name.startswith("logits.")]
    modalities = list(meta.get("modalities") or found)
    missing = [name for name in ("id", "label", *(f"logits.{m}" for m in modalities)) if name not in columns]
    if missing or not modalities:
        raise TableError(
            f"column(s) missing: {', '.join(missing) or 'logits.<modality>'}; a decision table has id,"
            f" group, split, label and logits.<modality>, but this file has {', '.join(columns)}."
        )
    extra = sorted(set(found) - set(modalities))
    if extra:
        raise TableError(
            f"column(s) logits.{', logits.'.join(extra)} are not among the declared modalities {modalities}."
        )
    _warn_of_assumptions(columns)
    n = len(columns["id"])
    blocks = [np.asarray(columns[f"logits.{m}"], dtype=np.float64) for m in modalities]
    widths = {block.shape[1] for block in blocks if block.ndim == 2 and block.shape[1]}
    if len(widths) != 1:
        raise TableError(f"the logits columns have different widths: {[b.shape for b in blocks]}.")
    width = widths.pop()
    blocks = [block if block.shape[1] else np.full((n, width), np.nan) for block in blocks]
    return DecisionTable(
        ids=list(columns["id"]),
        groups=list(columns.get("group", columns.get("clip", columns["id"]))),
        splits=list(columns.get("split", ["test"] * n)),
        labels=columns["label"],
        logits=np.stack(blocks, axis=1),
        classes=_class_names(classes, meta.get("classes"), width),
        modalities=modalities,
        features=_prefixed(columns, "features."),
        references=_prefixed(columns, "reference."),
        kind=str(meta.get("kind", "logits")),
        clips=list(columns["clip"]) if "clip" in columns else None,
        draws=np.asarray(columns["draw"]) if "draw" in columns else None,
        known=meta.get("known"),
    )


def _warn_of_assumptions(columns: dict[str, Any]) -> None:
    """Warn about what is assumed for columns that the file lacks."""
    if "group" not in columns:
        warnings.warn(
            "no 'group' column: every clip counts as its own group, so clips of one speaker or source can"
            " be on both sides of a fold.",
            stacklevel=4,
        )
    if "split" not in columns:
        warnings.warn("no 'split' column: all clips count as split 'test'.", stacklevel=4)
    if "clip" not in columns and np.any(np.asarray(columns.get("draw", 0)) != 0):
        warnings.warn(
            "no 'clip' column: every draw counts as a clip of its own, so draws of one clip can be on both sides of a"
            " fold.",
            stacklevel=4,
        )


def _class_names(given: Sequence[str] | None, stored: list[str] | None, width: int) -> list[str]:
    """Return the class names: those given, else those of the file, else numbers."""
    names = list(given if given is not None else stored or map(str, range(width)))
    if len(names) != width:
        raise TableError(f"{len(names)} class names for logits of {width} classes.")
    if stored and names != stored and set(names) == set(stored):
        raise TableError(
            f"the logits are of the classes {', '.join(stored[:10])}{', ...' * (width > 10)}, in this order; the names"
            " given (--classes) have a different order."
        )
    return names


def _indices(labels: Any, classes: list[str]) -> np.ndarray:
    """Return the class indices of labels that are indices or names.

    Raises:
        TableError: if labels are anything else.
    """
    values = np.asarray(labels)
    if values.dtype.kind in "iu" and values.ndim == 1:
        return values.astype(np.int64)
    if values.dtype.kind not in "UO" or values.ndim != 1:
        raise TableError(
            f"column 'label' is {values.dtype} of shape {values.shape}; store class indices as integers, or names of"
            " the classes, one per clip."
        )
    place = {name: index for index, name in enumerate(classes)}
    unknown = next((str(label) for label in values if str(label) not in place), None)
    if unknown is not None:
        raise TableError(
            f"label {unknown!r} is not one of the classes ({', '.join(classes[:10])}{', ...' * (len(classes) > 10)});"
            " store class indices as integers, or names of the classes (use --classes FILE if the file does not name"
            " them)."
        )
    return np.array([place[str(label)] for label in values], dtype=np.int64)


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if all(name in p for p in parts)}


def _prefixed(columns: dict[str, Any], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in columns.items() if name.startswith(prefix)}
