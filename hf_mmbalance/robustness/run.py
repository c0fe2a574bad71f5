"""The saved model of a run on its own test clips, clean and under every corruption, one file of answers per cell."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.data import load_clips, options_class
from hf_mmbalance.data.clips import ClipDataset, ClipSplits, DataError
from hf_mmbalance.data.corruptions import SEVERITIES, ClipsOfOneCorruption, check_severity, kinds_of
from hf_mmbalance.decision.fits import fit_prior
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.embedding.dataset_options import load_dataset
from hf_mmbalance.embedding.run import NO_SPLITS
from hf_mmbalance.hub.limits import check_head
from hf_mmbalance.training.batches import ClipCollator


CLEAN = "clean"
OUTPUTS = ("logits", "modality_logits", "modality_mask", "modality_trust")


@dataclass
class Cell:
    """What the model makes of all test clips under one corruption at one severity.

    Attributes:
        kind: name of the corruption, or `clean`.
        severity: 1 to 5; 0 for clean clips.
        logits: `(N, C)` fused.
        modality_logits: `(N, M, C)`.
        modality_mask: `(N, M)` bool, the modalities that are there.
        modality_trust: `(N, M)` probability that a tower is right, or None where the head gives none.
    """

    kind: str
    severity: int
    logits: np.ndarray
    modality_logits: np.ndarray
    modality_mask: np.ndarray
    modality_trust: np.ndarray | None

    def write(self, path: Path) -> None:
        """Write the arrays, whole or not at all."""
        arrays = {name: getattr(self, name) for name in OUTPUTS if getattr(self, name) is not None}
        draft = path.with_suffix(f".{os.getpid()}.part.npz")
        np.savez(draft, **arrays)
        os.replace(draft, path)

    @classmethod
    def read(cls, path: Path, kind: str, severity: int) -> Cell:
        """Read what `write` wrote.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with np.load(path) as file:
                arrays = {name: file[name] if name in file.files else None for name in OUTPUTS}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read ({error}): remove it, and it will be made again") from None
        return cls(kind, severity, *(arrays[name] for name in OUTPUTS))  # type: ignore[arg-type]


@dataclass
class Run:
    """A finished run of training or of `mmbalance fuse`: its model, its clips and its options.

    Attributes:
        folder: output folder of the run.
        results: its `results.json`.
        clips: the test clips that are judged.
        log_prior: `(C,)`, see `log_prior_of_run`.
    """

    folder: Path
    results: dict[str, Any]
    model: MMBalanceForAudioVisualClassification
    processor: MMBalanceProcessor
    clips: ClipDataset
    log_prior: np.ndarray

    @property
    def seen(self) -> list[str]:
        """Kinds of corruption that the towers, or a decision layer that was fitted, met before the test."""
        arguments = self.results["arguments"]
        options = ["train_corruptions", *(["calibration_corruptions"] if is_fitted(self.model) else [])]
        if is_fusion(self.results):
            options = ["corruptions"] if arguments["draws"] > 1 else []
        names = [name for option in options for name in arguments.get(option) or [] if name != "none"]
        return kinds_of(names) if names else []

    @property
    def known(self) -> np.ndarray:
        """`(M, C)` bool, the classes that each modality knows."""
        return np.array(self.model.config.known_classes, dtype=bool)

    @property
    def batch_size(self) -> int:
        """Clips per forward pass, as when the run was judged."""
        arguments = self.results["arguments"]
        return int(arguments["batch_size" if is_fusion(self.results) else "per_device_eval_batch_size"])


class FirstClips(ClipDataset):
    """Clips spread evenly over a data set, where a part of it is enough."""

    def __init__(self, dataset: ClipDataset, count: int):
        self.dataset = dataset
        self.places = np.unique(
            np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
        ).tolist()
        ids, groups, labels = (
            [values[i] for i in self.places] for values in (dataset.ids, dataset.groups, dataset.labels)
        )
        super().__init__(ids, groups, labels, dataset.classes, sampling_rate=dataset.sampling_rate)

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        example = self.dataset[self.places[place]]
        return example["audio"], example["frames"]


def load_run(folder: Path, max_clips: int | None = None, trust_remote_code: bool = False) -> Run:
    """Load the model and the clips of a finished run.

    Args:
        folder: output folder of a training run.
        max_clips: judge only so many test clips, spread evenly over the split.
        trust_remote_code: run the file of a fusion head that comes with the model.

    Raises:
        DataError: the folder does not hold a finished run, or its clips are not where they were.
    """
    file = folder / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        arguments = results["arguments"]
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; name the output folder of a finished training run") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file} is damaged or was not written by a training run of this version") from None
    if max_clips is not None and max_clips < 1:
        raise DataError(f"max_clips must be at least 1, got {max_clips}")
    check_head({"fusion": results["fusion"]}, str(folder), trust_remote_code)
    splits = clips_of_fusion(results) if is_fusion(results) else clips_of_run(arguments)
    if list(splits.classes) != list(results["classes"]):
        raise DataError(f"{arguments['dataset']} has other classes than the run in {folder}: it was changed since")
    test = splits.splits.get("test")
    if test is None or not len(test):
        remedy = (
            "; fuse again with --test_fraction 0.3, or name a split of the clips test" if is_fusion(results) else ""
        )
        raise DataError(f"{arguments['dataset']} has no test clips, and corruption is judged on those{remedy}")
    model = MMBalanceForAudioVisualClassification.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return Run(
        folder,
        results,
        model.eval(),
        MMBalanceProcessor.from_pretrained(folder),
        test if max_clips is None else FirstClips(test, max_clips),
        log_prior_of_run(folder, "calibration" if is_fitted(model) else "train"),
    )


def log_prior_of_run(folder: Path, split: str) -> np.ndarray:
    """Log class prior `(C,)` that the run's own row `prior_sum` counts once: that of the rows of its table."""
    table = DecisionTable.read(folder / "decisions.parquet")
    rows = table.select(split if split in table.splits else "train")
    return fit_prior(rows.labels, len(table.classes))


def is_fitted(model: MMBalanceForAudioVisualClassification) -> bool:
    """Whether the fusion head was fitted on calibration clips."""
    return bool(getattr(model.fusion, "fitted", True))


def is_fusion(results: dict[str, Any]) -> bool:
    """Whether these are the results of `mmbalance fuse`, not of training."""
    return "heads" in results


def clips_of_fusion(results: dict[str, Any]) -> ClipSplits:
    """The splits that two models were fused on, from the fusion's `results.json`."""
    fixed = {**NO_SPLITS, "unlabelled": "keep", "classes": results["classes"]}
    return load_dataset(argparse.Namespace(**results["arguments"]), **fixed)[0]


def clips_of_run(arguments: dict[str, Any]) -> ClipSplits:
    """The splits that a run was trained on, from the arguments in its `results.json`."""
    if arguments.get("embeddings"):
        raise DataError(f"the run was trained on the features in {arguments['embeddings']}, which cannot be corrupted")
    dataset = arguments["dataset"]
    known = {"clip_seed" if entry.name == "seed" else entry.name for entry in fields(options_class(dataset))}
    options = {name: value for name, value in arguments.items() if name in known}
    options["seed"] = options.pop("clip_seed")
    return load_clips(dataset, **options)


def predict(run: Run, clips: ClipDataset, batch_size: int, device: str | None = None) -> dict[str, np.ndarray]:
    """Outputs of the model for all clips, in their order, batched as in the evaluation of training.

    Returns:
        Those of `OUTPUTS` that the model gives, and the towers' features as `features.<modality>` `(N, D_m)`.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, collate = run.model.to(where), ClipCollator(run.processor)  # type: ignore[arg-type]
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(clips), batch_size):
        batch = collate([clips[i] for i in range(start, min(start + batch_size, len(clips)))])
        batch.pop("labels")
        with torch.no_grad():
            outputs = model(**{name: value.to(where) for name, value in batch.items()})
        given = {name: outputs[name] for name in OUTPUTS if outputs.get(name) is not None}
        for name, features in zip(model.config.modalities, model.fusion.features_read(outputs), strict=True):
            given[f"features.{name}"] = features
        for name, values in given.items():
            parts.setdefault(name, []).append(values.float().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def cells_of(kinds: Sequence[str], severities: Sequence[int]) -> list[tuple[str, int]]:
    """The cells that are judged, the clean one first; a modality that is missing has one severity only."""
    cells = [(CLEAN, 0)]
    for kind in kinds:
        missing = kind.startswith("missing_")
        cells += [
            (kind, severity) for severity in (sorted(set(severities))[:1] if missing else sorted(set(severities)))
        ]
    return cells


def judge_cells(
    run: Run,
    out: Path,
    kinds: Sequence[str] | str = "all",
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
    device: str | None = None,
) -> list[Cell]:
    """Run the model over every cell, and keep each one's answers in a file; cells with a file are read from it.

    Args:
        run: what `load_run` gives.
        out: folder for the files of cells.
        kinds: names of corruptions or of groups of them.
        severities: of 1 to 5.
        seed: of what the corruptions draw.
        device: cpu, cuda, ...; a GPU by default, if there is one.

    Raises:
        DataError: unknown kinds or severities; or `out` holds cells of another model, other clips or another seed.
    """
    names, severities = kinds_of(kinds), [check_severity(severity) for severity in severities]
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out / "settings.json", _settings(run, seed))
    cells = []
    for kind, severity in tqdm(cells_of(names, severities), desc="cells", unit="cell", disable=None):
        path = out / (f"{kind}-{severity}.npz" if severity else f"{kind}.npz")
        if not path.exists():
            clips = run.clips if kind == CLEAN else ClipsOfOneCorruption(run.clips, kind, severity, seed)
            outputs = predict(run, clips, run.batch_size, device)
            mask = outputs["modality_mask"] != 0
            trust = outputs.get("modality_trust")
            Cell(kind, severity, outputs["logits"], outputs["modality_logits"], mask, trust).write(path)
        cells.append(Cell.read(path, kind, severity))
    return cells


def _settings(run: Run, seed: int) -> dict[str, Any]:
    weights = hashlib.blake2b(digest_size=16)
    for file in sorted([*run.folder.glob("*.safetensors"), run.folder / "config.json"]):
        weights.update(file.read_bytes())
    clips = hashlib.blake2b("\n".join(run.clips.ids).encode(), digest_size=16)
    return {"model": weights.hexdigest(), "clips": clips.hexdigest(), "seed": seed}


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError:
            before = {}
        changed = [name for name, value in settings.items() if before.get(name) != value]
        if changed:
            raise DataError(
                f"{path.parent} holds results of another {', '.join(changed)}: remove it or choose another --out"
            )
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(settings, indent=1) + "\n")
    os.replace(draft, path)
