"""Predictions of a run's model on its test clips, clean and under every corruption, one file per cell."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_mmbalance.data.clips import ClipDataset, DataError
from hf_mmbalance.data.corruptions import SEVERITIES, ClipsOfOneCorruption, check_severity, kinds_of
from hf_mmbalance.progress import bar
from hf_mmbalance.robustness.run import Run
from hf_mmbalance.training.batches import ClipCollator


CLEAN = "clean"
OUTPUTS = ("logits", "modality_logits", "modality_mask", "modality_trust")


@dataclass
class Cell:
    """The model's outputs for all test clips under one corruption at one severity.

    Attributes:
        kind: name of the corruption, or `clean`.
        severity: 1 to 5; 0 for clean clips.
        logits: `(N, C)` fused.
        modality_logits: `(N, M, C)`.
        modality_mask: `(N, M)` bool, True where the modality is present.
        modality_trust: `(N, M)` probability that a tower is right, or None if the head does not return it.
    """

    kind: str
    severity: int
    logits: np.ndarray
    modality_logits: np.ndarray
    modality_mask: np.ndarray
    modality_trust: np.ndarray | None

    def write(self, path: Path) -> None:
        """Write the arrays atomically."""
        arrays = {name: getattr(self, name) for name in OUTPUTS if getattr(self, name) is not None}
        draft = path.with_suffix(f".{os.getpid()}.part.npz")
        np.savez(draft, **arrays)
        os.replace(draft, path)

    @classmethod
    def read(cls, path: Path, kind: str, severity: int) -> Cell:
        """Read a file that `write` wrote.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in OUTPUTS if name != "modality_trust" or name in file.files}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read ({error}): remove it and run the command again") from None
        return cls(kind, severity, **{"modality_trust": None, **arrays})


def predict(run: Run, clips: ClipDataset, batch_size: int, device: str | None = None) -> dict[str, np.ndarray]:
    """Run the model on all clips, in order, with the same batches as the evaluation in training.

    Returns:
        The `OUTPUTS` that the model returns, and the towers' features as `features.<modality>` `(N, D_m)`.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, collate = run.model.to(where), ClipCollator(run.processor)  # type: ignore[arg-type]
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(clips), batch_size):
        batch = collate([clips[i] for i in range(start, min(start + batch_size, len(clips)))])
        for name in ("labels", "clip_seconds"):
            batch.pop(name)
        with torch.no_grad():
            outputs = model(**{name: value.to(where) for name, value in batch.items()})
        given = {name: outputs[name] for name in OUTPUTS if outputs.get(name) is not None}
        for name, features in zip(model.config.modalities, model.fusion.features_read(outputs), strict=True):
            given[f"features.{name}"] = features
        for name, values in given.items():
            parts.setdefault(name, []).append(values.float().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def cells_of(kinds: Sequence[str], severities: Sequence[int]) -> list[tuple[str, int]]:
    """List the cells to evaluate, the clean one first; a missing modality has only one severity."""
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
    """Run the model on every cell and store the outputs in one file per cell; cells that have a file are read from it.

    Args:
        run: run loaded by `load_run`.
        out: folder for the files of the cells.
        kinds: names of corruptions or of groups of them.
        severities: severities to evaluate, 1 to 5.
        seed: seed of the random corruptions.
        device: cpu, cuda, ...; a GPU by default, if there is one.

    Raises:
        DataError: a kind or severity is unknown, or `out` holds cells of a different model, clips or seed.
    """
    names, severities = kinds_of(kinds), [check_severity(severity) for severity in severities]
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out / "settings.json", _settings(run, seed))
    cells = []
    for kind, severity in bar(cells_of(names, severities), desc="cells", unit="cell"):
        path = out / (f"{kind}-{severity}.npz" if severity else f"{kind}.npz")
        if not path.exists():
            clips = run.clips if kind == CLEAN else ClipsOfOneCorruption(run.clips, kind, severity, seed)
            outputs = predict(run, clips, run.options.batch_size, device)
            mask = outputs["modality_mask"] != 0
            trust = outputs.get("modality_trust")
            Cell(kind, severity, outputs["logits"], outputs["modality_logits"], mask, trust).write(path)
        cells.append(Cell.read(path, kind, severity))
    return cells


def _settings(run: Run, seed: int) -> dict[str, Any]:
    model = hashlib.blake2b(digest_size=16)
    for pattern in ("*.safetensors", "*.py", "*config.json"):  # weights, a head's own code, all configs
        for file in sorted(run.folder.glob(pattern)):
            model.update(file.read_bytes())
    clips = hashlib.blake2b("\n".join(run.clips.ids).encode(), digest_size=16)
    return {"model": model.hexdigest(), "clips": clips.hexdigest(), "seed": seed}


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError:
            before = {}
        changed = [name for name, value in settings.items() if before.get(name) != value]
        if changed:
            raise DataError(
                f"{path.parent} holds results of different settings ({', '.join(changed)}): remove it or choose a"
                " different --out"
            )
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(settings, indent=1) + "\n")
    os.replace(draft, path)
