"""What does each part of the decision layer gain? Shapley values split every gain over the plain sum exactly.

    MMBALANCE_DATA=... python benchmarks/decision_attribution.py [--cache outputs/probes] [--tasks votes digit ...]

The players are the parts of the equation: own calibration (temperature, and a Dirichlet map on votes), prior counted
once, kappa (one weight per modality), class weights with bias, typicality (GRID only). All 2^P subsets are fitted on
the calibration clips and judged on test. The value of a subset is its accuracy (and minus its NLL), so the parts sum
to the total gain. Intervals: bootstraps of per-clip Shapley values over actors (votes: out of fold) or clips (GRID).

Registered beforehand: class weights gain nothing on letters (the towers' errors are within honest posteriors). An
interval that does not contain 0 would refute this.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grid_probes import LABELS, Grid, Probe, as_table, audio_features, load, vision_features

from hf_mmbalance.building.recipes.crema_d_votes import crema_d_votes
from hf_mmbalance.decision.fits import FitData, fit_maps, fit_prior, fit_temperatures, fit_weights
from hf_mmbalance.decision.folds import group_folds
from hf_mmbalance.decision.optimise import one_thread
from hf_mmbalance.decision.state import SLOPE, HeadState
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.decision.typicality import fit_typicality
from hf_mmbalance.metrics.measures import bootstrap_ci, clip_nll, correct, shapley


PARTS = ("calibration", "prior", "kappa", "class weights", "typicality")
STRENGTH = {"kappa": 1.0, "class weights": 30.0, "map": 30.0}
UNSEEN = (("white", "dark"), ("lowpass", "occlusion"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("outputs/probes"))
    parser.add_argument("--tasks", nargs="+", default=["votes", *LABELS], choices=["votes", *LABELS])
    arguments = parser.parse_args()
    with one_thread():
        for task in arguments.tasks:
            if task == "votes":
                hits, losses, units = votes()
                report(task, hits, losses, units, PARTS[:4])
            else:
                hits, losses, units = grid_task(load(arguments.cache), task)
                report(task, hits, losses, units, PARTS)
    return 0


def fitted(data: FitData, parts: set[str], *, own_map: bool, clips: Sequence[str] | None = None) -> HeadState:
    """Fit the head with some parts of the equation, each in the order of the equation.

    `clips` are the names of the clips that the rows are draws of; None means that every row is a clip.
    """
    state = HeadState.plain_sum(*data.logits.shape[1:])
    if "prior" in parts:
        state = state.replace(log_prior=fit_prior(data.labels, state.shape[1], clips))
    if parts & {"calibration", "typicality"}:
        state = fit_temperatures(data, state, temperature="calibration" in parts, slope="typicality" in parts)
    if "calibration" in parts and own_map:
        state = fit_maps(data, state, STRENGTH["map"], "dirichlet")
    if "kappa" in parts:
        state = fit_weights(data, state, STRENGTH["kappa"], tied=True, with_bias=False)
    if "class weights" in parts:
        state = fit_weights(data, state, STRENGTH["class weights"], tied=False, with_bias=True)
    return state


def values(fit: FitData, test: FitData, names: tuple[str, ...], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return correctness and NLL `(2^P, N)` of every subset of parts on the test clips."""
    hits, losses = [], []
    for subset in range(2 ** len(names)):
        parts = {name for i, name in enumerate(names) if subset >> i & 1}
        logits = fitted(fit, parts, **options).fuse(test.logits, test.typicality).logits
        hits.append(correct(logits, test.labels))
        losses.append(clip_nll(logits, test.labels))
    return np.stack(hits), np.stack(losses)


def votes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values of all subsets on CREMA-D's votes, out of fold."""
    table = DecisionTable(**crema_d_votes(Path(os.environ["MMBALANCE_DATA"]) / "crema_d"))
    fold = group_folds(table.groups, 5, 0)
    hits, losses = np.empty((16, len(table))), np.empty((16, len(table)))
    for k in range(5):
        fit, test = (FitData(table.logits[rows], table.labels[rows]) for rows in (fold != k, fold == k))
        hits[:, fold == k], losses[:, fold == k] = values(fit, test, PARTS[:4], own_map=True)
    return hits, losses, np.asarray(table.groups)


def corrupted_table(grid: Grid, label: str) -> DecisionTable:
    """Return a table of probes trained in mild babble, with clean and corrupted draws.

    Calibration clips are clean and under seen kinds; test clips clean, seen (draws 1, 2) and unseen (draws 3, 4). The
    audio probe is hardly regularised and over-confident, the vision probe is not: relative miscalibration.
    """
    words, train = grid.words[label], grid.rows("train")
    audio_x = audio_features(grid, label, train, "babble", (6, 30), 0)
    vision_x = vision_features(grid, label, train, "clean", (1, 1), 0)
    towers = (Probe.fit(audio_x, words[train], 10.0), Probe.fit(vision_x, words[train], 0.01))
    parts = []

    def add(split: str, draw: int, audio: np.ndarray, vision: np.ndarray, rows: np.ndarray) -> None:
        part = {"rows": rows, "split": np.repeat(split, len(rows)), "draw": np.repeat(draw, len(rows))}
        for name, tower, x in zip(("audio", "vision"), towers, (audio, vision), strict=True):
            part[name], part[f"{name}_features"] = tower(x)
        parts.append(part)

    add("train", 0, audio_x, vision_x, train)
    kinds = {0: ("clean", "clean"), 1: ("babble", "noise"), 2: ("pink", "blur"), 3: UNSEEN[0], 4: UNSEEN[1]}
    for split in ("calibration", "test"):
        rows = grid.rows(split)
        clean = (
            audio_features(grid, label, rows, "babble", (6, 30), 1),
            vision_features(grid, label, rows, "clean", (1, 1), 1),
        )
        add(split, 0, *clean, rows)
        for draw in (1, 2) if split == "calibration" else (1, 2, 3, 4):
            sound, picture = kinds[draw]
            audio = audio_features(grid, label, rows, sound, (-15, 3), 10 + draw)
            vision = vision_features(grid, label, rows, picture, (1, 5), 10 + draw)
            # Half of the clips get corrupted audio, the other half corrupted frames.
            half = np.random.default_rng(draw).random(len(rows)) < 0.5
            add(split, draw, np.where(half[:, None], audio, clean[0]), np.where(half[:, None], clean[1], vision), rows)
    return as_table(grid, label, parts, int(words.max()) + 1)


def grid_task(grid: Grid, label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values of all subsets on GRID probes under corruptions, for all draws of the test clips."""
    table = corrupted_table(grid, label)
    train, fit, test = (table.select(split) for split in ("train", "calibration", "test"))
    names = table.modalities
    arrays, typicality, _ = fit_typicality(
        [fit.features[m] for m in names], fit.labels, fit.mask, len(table.classes),
        reference=([train.features[m] for m in names], train.labels), groups=np.asarray(fit.groups),
        clips=np.asarray(fit.clip_names), draws=fit.draw_numbers,
    )  # fmt: skip
    state = HeadState.plain_sum(2, len(table.classes)).replace(**arrays, **{SLOPE: np.zeros(2)})
    judged = state.typicality([test.features[m] for m in names], test.mask)
    hits, losses = values(
        FitData(fit.logits, fit.labels, typicality),
        FitData(test.logits, test.labels, judged),
        PARTS,
        own_map=False,
        clips=fit.clip_names,
    )
    return hits, losses, np.asarray(test.clip_names)


def report(task: str, hits: np.ndarray, losses: np.ndarray, units: np.ndarray, names: tuple[str, ...]) -> None:
    """Print the share of every part in the gain of accuracy and NLL."""
    ends = [f"{100 * hits[k].mean():.2f} / {losses[k].mean():.4f}" for k in (0, -1)]
    print(f"{task}: {hits.shape[1]} rows, {len(np.unique(units))} units; sum {ends[0]} -> all parts {ends[1]}")
    shares = shapley(hits), shapley(-losses)
    assert np.allclose(shares[0].sum(axis=0), hits[-1] - hits[0])
    for i, name in enumerate(names):
        low, high = bootstrap_ci(100 * shares[0][i], units)
        nll_low, nll_high = bootstrap_ci(shares[1][i], units)
        print(f"  {name:14s} {100 * shares[0][i].mean():+6.2f} points [{low:+.2f}, {high:+.2f}]"
              f"   NLL {-shares[1][i].mean():+.4f} [{-nll_high:+.4f}, {-nll_low:+.4f}]")  # fmt: skip
    if task == "letter":
        low, high = bootstrap_ci(100 * shares[0][names.index("class weights")], units)
        print(f"  registered null (class weights on letters) {'stands' if low <= 0 <= high else 'is refuted'}")


if __name__ == "__main__":
    sys.exit(main())
