"""Two ordinary classifiers fused with few labels, on GRID, compared with the better one and with their plain sum.

    MMBALANCE_DATA=DATA python benchmarks/fuse_classifiers.py [--out FOLDER] [--labels 20 50 100 200]

`ASTForAudioClassification` and `ViTForImageClassification` of transformers (two layers, width 32) are trained on 500
clips and saved; `from_backbones` loads them with their own heads. Some of the other 500 clips are labelled, by class
in turn, and the decision layer is fitted on them as in `mmbalance fuse`; all others are judged. There are four pairs
of classifiers, each trained on a different half of the clips, and five draws of labelled clips for each.

Tasks: digits in babble at -3 dB, with classifiers trained in babble (`digits`) or on clean audio (`digits, new
noise`); letters in clean audio. `fuse_grid.py` explains the columns; here `sum` adds the classifiers'
log-probabilities unchanged.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from balancing_grid import (
    BATCH,
    EPOCHS,
    TASKS,
    Task,
    inputs_file,
    prepare,
    small_towers,
    spectrogram,
    standardised,
    window_of,
)
from fuse_grid import drawn, head, judge, line
from grid_probes import Grid, load
from sklearn.model_selection import StratifiedShuffleSplit
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    PreTrainedModel,
    get_cosine_schedule_with_warmup,
)
from transformers.utils import logging

from hf_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.console import say, table
from hf_mmbalance.embedding.fuse import Rows
from hf_mmbalance.json_files import write_json


PAIRS, DRAWS, LEARNING_RATE = 4, 5, 3e-3
VARIANTS = {"digits": ("digits", False), "digits, new noise": ("digits", True), "letters": ("letters", False)}


def main() -> int:
    """Print a table per task and write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/fuse_classifiers"))
    parser.add_argument("--labels", nargs="+", type=int, default=[20, 50, 100, 200])
    arguments = parser.parse_args()
    if "MMBALANCE_DATA" not in os.environ:
        parser.error("set MMBALANCE_DATA to the folder that holds grid_s1")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    grid = load(arguments.out)
    for name, (task, clean) in VARIANTS.items():
        prepare(task, grid, arguments.out)
        pairs = [pair_rows(grid, arguments.out, task, clean, seed) for seed in range(PAIRS)]
        say(f"\n{name}: {len(pairs[0].ids)} clips that the classifiers did not learn from, {len(pairs[0].classes)}"
            f" classes, {PAIRS} pairs of classifiers, {DRAWS} draws each")  # fmt: skip
        report = {
            count: [
                judge(rows, drawn(rows.labels, count, np.random.default_rng([pair, draw, count])), draw)
                for pair, rows in enumerate(pairs)
                for draw in range(DRAWS)
            ]
            for count in arguments.labels
        }
        modalities = list(pairs[0].features)
        lines = [line(count, modalities, found) for count, found in report.items()]
        say(table(head(modalities), lines))
        write_json(arguments.out / f"{name}.json", report)
    return 0


def pair_rows(grid: Grid, out: Path, task: str, clean: bool, seed: int) -> Rows:
    """Train and save two classifiers, load them as one model, and run it over the clips they were not trained on."""
    with np.load(inputs_file(task, out)) as found:
        arrays = dict(found)
    if clean:  # train on clean audio; the judged audio stays in noise
        kind = TASKS[task]
        sounds = [spectrogram(sound, window_of(kind, grid, row), kind) for row, sound in enumerate(grid.sound)]
        arrays["learned"] = np.stack(sounds)[:, None]
    labels = arrays["labels"]
    train, rest = next(StratifiedShuffleSplit(1, test_size=0.5, random_state=seed).split(labels, labels))
    data = standardised(arrays, train)
    classes = [str(c) for c in range(labels.max() + 1)]
    folders = {modality: out / f"{task}{'-clean' * clean}-{seed}" / modality for modality in ("audio", "vision")}
    for modality, folder in folders.items():
        if not (folder / "model.safetensors").is_file():
            train_classifier(modality, TASKS[task], data, train, classes, seed).save_pretrained(folder)
    model = MMBalanceForAudioVisualClassification.from_backbones(
        *(str(folder) for folder in folders.values()),
        id2label=dict(enumerate(classes)),
        label_maps=dict.fromkeys(folders, {name: [name] for name in classes}),
    ).eval()
    with torch.no_grad():
        embedded = model.embed(data["judged"][rest], data["frames"][rest])
        own = [head(feature) for head, feature in zip(model.unimodal_heads, embedded.features, strict=True)]
    features, tokens, logits = (
        {name: part.double().numpy() for name, part in zip(folders, parts, strict=True)}
        for parts in (embedded.features, embedded.tokens, own)
    )
    names, known = np.array(grid.ids)[rest], np.ones((2, len(classes)), dtype=bool)
    draws = np.zeros(len(rest), dtype=np.int64)
    return Rows(names, names, names, labels[rest], draws, features, tokens, logits, classes, known)


def train_classifier(
    modality: str, task: Task, data: dict[str, torch.Tensor], rows: np.ndarray, classes: list[str], seed: int
) -> PreTrainedModel:
    """Train a small classifier of one modality on some clips."""
    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: c for c, name in enumerate(classes)}}
    sound, frames = data["learned"], data["frames"]  # (N, draws, spectra, bands), (N, 3, rows, columns)
    audio, vision = small_towers(task, **names)
    if modality == "audio":
        model = AutoModelForAudioClassification.from_config(audio)
    else:
        model = AutoModelForImageClassification.from_config(vision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps_per_epoch = len(rows) // BATCH
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps_per_epoch * EPOCHS // 10, steps_per_epoch * EPOCHS)
    rng = np.random.default_rng(seed)
    model.train()
    for _ in range(EPOCHS):
        for batch in np.array_split(rng.permutation(rows), steps_per_epoch):
            inputs = (
                sound[batch, rng.integers(0, sound.shape[1], len(batch))] if modality == "audio" else frames[batch]
            )
            optimizer.zero_grad()
            model(inputs, labels=data["labels"][batch]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            scheduler.step()
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
