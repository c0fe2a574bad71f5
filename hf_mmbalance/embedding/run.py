"""All steps of `mmbalance fuse`, from arguments to saved model and report."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers.utils import logging

from hf_mmbalance.data.clips import ClipSplits, NoLabels
from hf_mmbalance.data.sources.rows import UNLABELLED
from hf_mmbalance.decision.results import chance_notes, write_outputs
from hf_mmbalance.embedding.build import TowerName, build_towers
from hf_mmbalance.embedding.dataset_options import load_dataset
from hf_mmbalance.embedding.draws import Draws
from hf_mmbalance.embedding.embed import EmbedOptions, embed
from hf_mmbalance.embedding.fuse import (
    TEST,
    FuseError,
    FuseOptions,
    Rows,
    choose_pooling,
    fit,
    rows_of_split,
    write_heads,
)
from hf_mmbalance.embedding.labels import map_labels, read_label_map
from hf_mmbalance.embedding.outcome import Results, judge, plain_results, write_answers
from hf_mmbalance.embedding.stored import Embeddings
from hf_mmbalance.hub.errors import explain_hub_errors
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.model.source_heads_mmbalance import SourceHead
from hf_mmbalance.provenance import base_model, command, provenance, versions


logger = logging.get_logger(__name__)

#: Dataset options for a fusion: no splits are made from the labelled clips, and clips without a label are kept.
FUSED_DATA = {"test_fraction": 0.0, "validation_fraction": 0.0, "calibration_fraction": 0.0, "unlabelled": "keep"}


def embed_clips(
    arguments: argparse.Namespace,
    towers: dict[str, TowerName],
    clips: ClipSplits,
    model: MMBalanceForAudioVisualClassification,
    processor: MMBalanceProcessor,
    out: Path,
    splits: tuple[str, ...] = ("train", "calibration", "validation"),
    augmented: int = 1,
) -> dict[str, int]:
    """Call `embed` with the arguments of `mmbalance embed` or `mmbalance fuse`.

    Args:
        arguments: arguments of the command line.
        towers: tower of each modality; names and revisions are recorded.
        clips: clips to embed.
        model, processor: model with the towers, and its processor.
        out: folder for the features.
        splits: splits that get corrupted draws.
        augmented: draws of each train clip.

    Returns:
        Counts, as returned by `embed`.
    """
    dtype = arguments.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    return embed(
        clips,
        model,
        processor,
        out,
        draws=Draws(arguments.draws, tuple(arguments.corruptions), splits, augmented, arguments.seed),
        options=EmbedOptions(batch_size=arguments.batch_size, dtype=dtype),
        towers=towers,
        shard=getattr(arguments, "shard", (0, 1)),
    )


def fuse_models(arguments: argparse.Namespace, towers: dict[str, TowerName]) -> Results:
    """Fuse two models with the arguments of `mmbalance fuse`, and write the model and its report.

    Args:
        arguments: arguments of the command line.
        towers: tower of each modality.

    Returns:
        The content of `results.json`.

    Raises:
        FuseError: the models cannot be fused on these clips.
        DataError, ValueError, HubError: the clips or models cannot be used.
    """
    options = FuseOptions(arguments.rung, arguments.known_groups, seed=arguments.seed)  # raises before towers run
    with explain_hub_errors("reading the models' labels"):
        labels = {name: tower.labels(arguments.trust_remote_code) for name, tower in towers.items()}
    given = {} if arguments.label_map is None else read_label_map(arguments.label_map, list(towers))
    clips, source = _load(arguments, labels, given)
    maps = {
        name: map_labels(own, list(clips.classes), given.get(name)) for name, own in labels.items() if own is not None
    }
    mapped = [f"{name}: {line}" for name, found in maps.items() for line in found.describe().splitlines()]
    notes = [*clips.notes, *mapped]
    for note in notes:
        logger.warning("%s", note)
    pooling = "log_probs" if "vision" in maps else "mean"
    with explain_hub_errors("building the model"):
        model, processor = build_towers(
            towers,
            clips,
            {name: found.classes for name, found in maps.items()},
            trust_remote_code=arguments.trust_remote_code,
            fusion="adaptive",
            frame_pooling=pooling,
        )
    folder = arguments.embeddings or arguments.out / "embeddings"
    embed_clips(arguments, towers, clips, model, processor, folder)
    model.cpu()  # type: ignore[call-arg]  # stored features are on the CPU
    stored = Embeddings.read(folder)
    results, table = _fit(model, stored, options, notes)
    results |= _description(arguments, clips, source, towers, labels, stored, notes)
    if PartialState().is_main_process:
        processor.reading["longest_seconds"] = math.ceil(1000 * float(stored.seconds.max(initial=0.0))) / 1000
        model.save_pretrained(arguments.out)
        processor.save_pretrained(str(arguments.out))
        write_outputs(arguments.out, {**results, "versions": versions()}, table)
        _answer(model, stored, arguments.out)
    return results


def _load(
    arguments: argparse.Namespace, labels: dict[str, list[str] | None], given: dict[str, dict[str, Any]]
) -> tuple[ClipSplits, Any]:
    with explain_hub_errors("reading clips"):
        try:
            return load_dataset(arguments, **FUSED_DATA)
        except NoLabels:
            if labels["audio"] is None or labels["vision"] is None:
                raise
            # The classes are the labels of the audio model that the vision model knows too.
            try:
                shared = map_labels(labels["vision"], labels["audio"], given.get("vision")).classes
            except ValueError as error:
                raise ValueError(f"{error}; or name the classes with --classes, as no clip has a label") from None
            return load_dataset(arguments, **FUSED_DATA, classes=[name for name, own in shared.items() if own])


def _fit(
    model: MMBalanceForAudioVisualClassification, stored: Embeddings, options: FuseOptions, notes: list[str]
) -> tuple[Results, Any]:
    """Fit heads and decision layer on the labelled clips and copy them into the model."""
    labelled = set(stored.splits) - {TEST, UNLABELLED}
    if not labelled:
        without = [
            name
            for name, head in zip(stored.modalities, model.unimodal_heads, strict=True)
            if not isinstance(head, SourceHead)
        ]
        if without:
            raise FuseError(
                f"no clip has a label, and the {without[0]} model is a backbone without a head: label some clips, or"
                " give a classifier"
            )
        logger.warning("no clip has a label: the two classifiers are added unchanged; label some clips to fit more")
        return plain_results(stored.modalities, stored.classes), None
    if model.config.frame_pooling == "log_probs":
        pooling, losses = choose_pooling(stored, model, labelled)
        model.config.frame_pooling = model.frame_pooling.pooling = pooling
        told = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()) or "no clip of a class it knows"
        notes.append(f"frames are pooled by {pooling} (NLL: {told})")
    rows = rows_of_split(stored, model, labelled)
    fitted = fit(rows, options)
    test = rows_of_split(stored, model, {TEST}) if TEST in stored.splits else None
    results, table = judge(rows, test, fitted, options)
    reported = results["rows"][-1]["split"]
    judged = table.select(reported)
    notes += chance_notes(
        [row for row in results["rows"] if row["split"] == reported],
        judged.take(np.flatnonzero(judged.draw_numbers == 0)),
    )
    write_heads(model, fitted.heads)
    fitted.allocation.write_to(model)
    return results, table


def _description(
    arguments: argparse.Namespace,
    clips: ClipSplits,
    source: Any,
    towers: dict[str, TowerName],
    labels: dict[str, list[str] | None],
    stored: Embeddings,
    notes: list[str],
) -> Results:
    """Return what the report and the model card say besides the numbers."""
    bases = [base_model(modality, tower.name, tower.revision) for modality, tower in towers.items()]
    words = ["mmbalance", "fuse", *sys.argv[2:]] if sys.argv[1:2] == ["fuse"] else ["mmbalance", "fuse"]
    counts = _counts(stored)
    return {
        "dataset": clips.name,
        "classes": list(clips.classes),
        "modalities": stored.modalities,
        "fusion": "adaptive",
        "held_out": True,
        "bayes_accuracy": None,
        "selected_by": None,
        "n": counts.get(TEST, counts.get("calibration", 0)),
        "n_per_split": counts,
        "heads": {name: "own" if own is not None else "fitted" for name, own in labels.items()},
        "notes": notes,
        "arguments": {name: value for name, value in vars(arguments).items() if name != "func"},
        "provenance": provenance(clips, source, bases, command(words), PartialState().num_processes),
    }


def _counts(stored: Embeddings) -> dict[str, int]:
    counts: dict[str, int] = {}
    for split, draw in zip(stored.splits, stored.draws, strict=True):
        if draw == 0 and split != UNLABELLED:
            name = TEST if split == TEST else "calibration"
            counts[name] = counts.get(name, 0) + 1
    return counts


def _answer(model: MMBalanceForAudioVisualClassification, stored: Embeddings, out: Path) -> None:
    """Write predictions for the clips without a label, made by the saved model."""
    rows: Rows = rows_of_split(stored, model, {UNLABELLED})
    if not len(rows.ids):
        return
    present = {name: ~torch.isnan(torch.from_numpy(values[:, 0])) for name, values in rows.features.items()}
    frames = stored.log_probs.get("vision")
    with torch.no_grad():
        output = model.eval()(
            modality_features=_tensors(rows.features),
            modality_tokens=_tensors(rows.tokens),
            modality_mask=torch.stack(list(present.values()), dim=1),
            frame_log_probs=None
            if frames is None or model.config.frame_pooling != "log_probs"
            else torch.from_numpy(frames[[split == UNLABELLED for split in stored.splits]]).nan_to_num(),
        )
    unimodal = torch.where(output.modality_mask.bool()[..., None], output.modality_logits, float("nan")).numpy()
    path = out / "answers.csv"
    write_answers(path, list(rows.ids), output.logits.numpy(), unimodal, stored.classes, stored.modalities)
    logger.warning("predictions for the clips without a label (%d): %s", len(rows.ids), path)


def _tensors(values: dict[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(part).float().nan_to_num() for part in values.values())
