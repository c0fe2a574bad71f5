"""Stored embeddings, as arrays and as clips that training accepts instead of media."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.data.clips import Clip, ClipDataset, ClipSplits
from hf_mmbalance.data.corruptions import CorruptionPlan, kinds_of
from hf_mmbalance.embedding.embed import read_plan, tower_folder
from hf_mmbalance.embedding.parts import EmbeddingError, matrix, part_name, read_part
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.model.reading_mmbalance import ReadingSpec


_COLUMNS = ("id", "clip", "group", "split", "label", "draw", "seconds")


@dataclass
class Embeddings:
    """Features of N rows (clips and their draws) from M towers; load them with `Embeddings.read`.

    Attributes:
        plan: content of `embeddings.json`.
        folder: folder that was read.
        ids, clips, groups, splits: N names.
        labels, draws: `(N,)` int64.
        seconds: `(N,)`, lengths of the clips.
        features, tokens: modality -> `(N, D_m)` float32, NaN rows where the modality is missing: the pooled features
            that heads use, and the means of the tower's tokens that typicality uses.
        log_probs: modality -> `(N, K)` float32 log-probabilities of the classifier's own labels, mean over frames,
            for modalities that store them.
    """

    plan: dict[str, Any]
    folder: Path
    ids: list[str]
    clips: list[str]
    groups: list[str]
    splits: list[str]
    labels: np.ndarray
    draws: np.ndarray
    seconds: np.ndarray
    features: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    log_probs: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Embeddings:
        """Read a folder that `mmbalance embed` wrote.

        Raises:
            EmbeddingError: the folder holds something else, or is incomplete or damaged.
        """
        folder = Path(folder)
        plan = read_plan(folder)
        if not plan["complete"]:
            raise EmbeddingError(f"{folder} is not complete: run `mmbalance embed` again to resume")
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        features, tokens, log_probs = {}, {}, {}
        for place, modality in enumerate(plan["modalities"]):
            vectors: list[Any] = []
            means: list[Any] = []
            rows: list[Any] = []
            for index in range(plan["parts"]):
                table = read_part(tower_folder(folder, plan, modality) / part_name(index, plan["parts"]))
                vectors += matrix(table["feature"])
                means += matrix(table["token"])
                rows += matrix(table["log_probs"])
                if place == 0:
                    for name, values in columns.items():
                        values += table[name].to_pylist()
            features[modality] = _stacked(vectors, plan["towers"][modality]["width"])
            tokens[modality] = _stacked(means, plan["towers"][modality]["width"])
            width = next((len(row) for row in rows if row is not None), 0)
            if width:
                log_probs[modality] = _stacked(rows, width)
        return cls(
            plan,
            folder,
            ids=columns["id"],
            clips=columns["clip"],
            groups=columns["group"],
            splits=columns["split"],
            labels=np.array(columns["label"], dtype=np.int64),
            draws=np.array(columns["draw"], dtype=np.int64),
            seconds=np.array(columns["seconds"], dtype=np.float64),
            features=features,
            tokens=tokens,
            log_probs=log_probs,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> list[str]:
        """Names of the labels, in order."""
        return list(self.plan["classes"])

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return list(self.plan["modalities"])

    @cached_property
    def processor(self) -> MMBalanceProcessor:
        """The processor that read the clips."""
        return MMBalanceProcessor.from_pretrained(str(self.folder / "processor"))

    def check_towers(self, model: MMBalanceForAudioVisualClassification, processor: MMBalanceProcessor) -> None:
        """Check that the features come from the towers of this model and are all that it needs.

        Raises:
            EmbeddingError: they are not; the message names the modality or the pooling over frames.
        """
        from hf_mmbalance.embedding.addresses import tower_fingerprint
        from hf_mmbalance.embedding.embed import DTYPES

        pooling = model.config.frame_pooling
        if pooling != "mean":
            raise EmbeddingError(
                f"frame_pooling={pooling!r} learns from single frames, and {self.folder} holds means over them: use"
                " 'mean', or the clips themselves"
            )
        dtype = DTYPES[self.plan["options"]["dtype"]]
        for modality in self.modalities:
            if tower_fingerprint(model, processor, modality, dtype) != self.plan["towers"][modality]["fingerprint"]:
                raise EmbeddingError(
                    f"{self.folder}: its {modality} features come from a different tower or different tower settings"
                    f" ({self.plan['towers'][modality]['name']}) than the model has: embed again"
                )

    def clip_splits(self) -> ClipSplits:
        """Return the clean clips by split in the form that training accepts, with features instead of media."""
        rows = {split: [] for split in self.plan["clips"]}  # type: ignore[var-annotated]
        for row, split in enumerate(self.splits):
            if self.draws[row] == 0 and split in rows:  # clips without a label belong to no split
                rows[split].append(row)
        splits: dict[str, ClipDataset] = {split: EmbeddedClips(self, part) for split, part in rows.items()}
        return ClipSplits(
            self.plan["dataset"],
            self.classes,
            splits,
            self.plan["sampling_rate"],
            list(self.plan["notes"]),
            reading=ReadingSpec.from_dict(self.plan["reading"]),
            commit=self.plan["commit"],
        )


class EmbeddedClips(ClipDataset):
    """Clips with stored features: an example has `features` and `tokens` by modality (NaN where missing), no media.

    If a clip has several draws, epoch e uses draw e modulo their number; without an epoch, the row itself is used.

    Args:
        embeddings: embeddings that hold the clips.
        rows: row numbers of the clips, all of one split.
    """

    def __init__(self, embeddings: Embeddings, rows: list[int]):
        self.embeddings, self.rows = embeddings, rows
        self.clips = [embeddings.clips[row] for row in rows]
        self.draws = [int(embeddings.draws[row]) for row in rows]
        super().__init__(
            [embeddings.ids[row] for row in rows],
            [embeddings.groups[row] for row in rows],
            [int(embeddings.labels[row]) for row in rows],
            embeddings.classes,
            sampling_rate=embeddings.plan["sampling_rate"],
        )
        self._versions: dict[str, list[int]] = {}
        wanted, splits = set(self.clips), {embeddings.splits[row] for row in rows}
        for row, (name, split) in enumerate(zip(embeddings.clips, embeddings.splits, strict=True)):
            if name in wanted and split in splits:  # a different split can have a clip of the same name
                self._versions.setdefault(name, []).append(row)

    def with_draws(self, plan: CorruptionPlan) -> EmbeddedClips:
        """Return the same clips, each with the corrupted draws of a plan.

        Raises:
            EmbeddingError: fewer draws, or draws of a different plan, were embedded.
        """
        have = min(len(versions) for versions in self._versions.values())
        made = self.embeddings.plan["draws"]
        same = set(kinds_of(made["corruptions"])) == set(plan.kinds) and made["seed"] == plan.seed
        if have < plan.draws or (plan.draws > 1 and not same):
            raise EmbeddingError(
                f"{self.embeddings.folder} has {have} draw(s) of each calibration clip (corruptions"
                f" {' '.join(made['corruptions'])}, seed {made['seed']}), but training needs {plan.draws} with"
                f" seed {plan.seed}: embed with `--draws {plan.draws} --seed {plan.seed}`, or train with"
                f" --calibration_draws {have}"
            )
        rows = [row for name in self.clips for row in self._versions[name][: plan.draws]]
        return EmbeddedClips(self.embeddings, rows)

    def __getitem__(self, index: int | tuple[int, int]) -> Clip:
        place, epoch = index if isinstance(index, tuple) else (index, None)
        row = self.rows[place]
        if epoch is not None:
            versions = self._versions[self.clips[place]]
            row = versions[epoch % len(versions)]
        stored = self.embeddings
        return {
            "id": self.ids[place],
            "group": self.groups[place],
            "label": self.labels[place],
            "features": {name: values[row] for name, values in stored.features.items()},
            "tokens": {name: values[row] for name, values in stored.tokens.items()},
            "seconds": float(stored.seconds[row]),
        }

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        raise EmbeddingError(f"clip {self.ids[place]!r}: only its features are stored, not its audio and frames")


def _stacked(rows: list[np.ndarray | None], width: int) -> np.ndarray:
    empty = np.full(width, np.nan, dtype=np.float32)
    return np.stack([empty if row is None else row for row in rows]) if rows else np.zeros((0, width), np.float32)
