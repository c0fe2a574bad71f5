"""When does calibration pay off? The gain of one temperature per modality over the plain sum, by |log T_a / T_v|.

    MMBALANCE_DATA=... python benchmarks/decision_law.py [--cache outputs/probes] [--figure docs/decision_law.png]

Configurations: for each of three GRID labels, every pair of 8 audio towers (4 regularisations, trained on 1 or 4
draws of babble) and 8 vision towers (4 regularisations, trained on 1 or 4 draws of pixel noise), judged under two
levels of noise; 384 in total, and 36 subsets of CREMA-D's votes at several sharpnesses. Temperatures are fitted on
calibration; the gain is in accuracy on test. Prints bins and Spearman correlations. Common over-confidence is
|log T_a + log T_v| / 2. The choice of towers does not make relative and common over-confidence independent: the
partial Spearman correlation of the gain with the common one, given the relative one, shows the effect of the common
one by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product
from pathlib import Path

import numpy as np
from grid_probes import LABELS, Grid, Probe, audio_features, load, vision_features
from scipy.stats import spearmanr

from hf_mmbalance.building.recipes.crema_d_votes import crema_d_votes
from hf_mmbalance.decision.fits import FitData, fit_temperatures
from hf_mmbalance.decision.optimise import one_thread
from hf_mmbalance.decision.state import HeadState
from hf_mmbalance.metrics.measures import accuracy


REGULARISATIONS = (0.001, 0.01, 0.1, 10.0)
DRAWS = (1, 4)
#: SNR of the audio in dB and severity of the pixel noise, at test and calibration.
LEVELS = ((-3.0, 2), (3.0, 4))
BINS = (0.0, 0.2, 0.5, 1.0, 1.6, np.inf)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("outputs/probes"))
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    grid = load(arguments.cache)
    with one_thread():
        rows = [row for label in LABELS for row in grid_configurations(grid, label)]
        number = len(rows)
        rows += vote_configurations()
    found = np.array(rows)
    print(f"{len(found)} configurations ({number} of GRID, {len(found) - number} of votes)")
    ratio = np.abs(found[:, 0] - found[:, 1])
    common, gain = np.abs(found[:, 0] + found[:, 1]) / 2, 100 * (found[:, 3] - found[:, 2])
    print(f"{'|log Ta/Tv|':>12s} {'n':>4s} {'gain, points':>13s}  sum below best single, calibrated below it")
    for low, high in zip(BINS[:-1], BINS[1:], strict=True):
        inside = (ratio >= low) & (ratio < high)
        if inside.any():
            below = [100 * (found[inside, k] < found[inside, 4]).mean() for k in (2, 3)]
            line = f"{low:5.1f}-{high:<6.1f} {inside.sum():4d} {gain[inside].mean():13.2f}"
            print(f"{line}  {below[0]:4.0f} %, {below[1]:.0f} %")
    of_ratio, of_common = spearmanr(ratio, gain).statistic, spearmanr(common, gain).statistic
    print(f"Spearman of the gain with |log Ta/Tv|: {of_ratio:.3f}; with common over-confidence: {of_common:.3f}")
    print(f"  GRID only: {spearmanr(ratio[:number], gain[:number]).statistic:.3f},"
          f" {spearmanr(common[:number], gain[:number]).statistic:.3f}")  # fmt: skip
    partial = partial_spearman(common, gain, ratio)
    print(f"Both kinds of over-confidence with each other: {spearmanr(ratio, common).statistic:.3f};"
          f" partial Spearman of the gain with the common one at equal relative one: {partial:.3f}")  # fmt: skip
    if arguments.figure:
        draw(ratio, common, gain, arguments.figure)
    checks = {"at least 300 configurations": len(found) >= 300, "Spearman >= .7": of_ratio >= 0.7,
              "common |rho| < .1": abs(of_common) < 0.1, "partial common |rho| < .1": abs(partial) < 0.1}  # fmt: skip
    for name, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}  {name}")
    return 0 if all(checks.values()) else 1


def partial_spearman(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Return the Spearman correlation of x and y without what their ranks share with those of `given`."""
    xy, xz, yz = (spearmanr(a, b).statistic for a, b in ((x, y), (x, given), (y, given)))
    return float((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))


def judge(
    calibration: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> tuple[float, float, float, float, float]:
    """Return log T of both modalities, and the accuracy of the sum, `temperature` and the best single modality."""
    plain = HeadState.plain_sum(*calibration.shape[1:])
    state = fit_temperatures(FitData(calibration, labels), plain)
    single = max(accuracy(test[:, m], test_labels) for m in range(2))
    fused = [accuracy(s.fuse(test).logits, test_labels) for s in (plain, state)]
    return *state["log_temperature"], fused[0], fused[1], single


def grid_configurations(grid: Grid, label: str) -> list[tuple[float, ...]]:
    """Return one row of `judge` per pair of towers and level."""
    words = grid.words[label]
    train, calibration, test = (grid.rows(split) for split in ("train", "calibration", "test"))
    held = np.concatenate([calibration, test])
    of_level: dict[int, list[list[np.ndarray]]] = {0: [], 1: []}
    for level, (snr, severity) in enumerate(LEVELS):
        audio = audio_features(grid, label, held, "babble", (snr, snr), 100 + level)
        vision = vision_features(grid, label, held, "noise", (severity, severity), 100 + level)
        of_level[level] = [[audio], [vision]]
    logits: dict[tuple[int, int], list[np.ndarray]] = {(level, m): [] for level in (0, 1) for m in (0, 1)}
    draws = range(max(DRAWS))
    audio_train = [audio_features(grid, label, train, "babble", (-6, 6), seed) for seed in draws]
    vision_train = [vision_features(grid, label, train, "noise", (1, 5), seed) for seed in draws]
    for m, features in enumerate((audio_train, vision_train)):
        for strength, number in product(REGULARISATIONS, DRAWS):
            probe = Probe.fit(np.concatenate(features[:number]), np.tile(words[train], number), strength)
            for level in (0, 1):
                logits[level, m].append(probe(of_level[level][m][0])[0])
    rows = []
    for level in (0, 1):
        for audio, vision in product(logits[level, 0], logits[level, 1]):
            z = np.stack([audio, vision], axis=1)
            cut = len(calibration)
            rows.append(judge(z[:cut], words[calibration], z[cut:], words[test]))
    return rows


def vote_configurations() -> list[tuple[float, ...]]:
    """Return rows of `judge` for four halves of the actors x three sharpnesses of the voice and face votes each."""
    votes = crema_d_votes(Path(os.environ["MMBALANCE_DATA"]) / "crema_d")
    logits, labels = np.asarray(votes["logits"], dtype=np.float64), np.asarray(votes["labels"])
    actors, index = np.unique(votes["groups"], return_inverse=True)
    rows = []
    for seed in range(4):
        fit = np.isin(index, np.random.default_rng(seed).permutation(len(actors))[: len(actors) // 2])
        for voice, face in product((0.5, 1.0, 3.0), repeat=2):
            z = logits * np.array([voice, face])[:, None]
            rows.append(judge(z[fit], labels[fit], z[~fit], labels[~fit]))
    return rows


def draw(ratio: np.ndarray, common: np.ndarray, gain: np.ndarray, path: Path) -> None:
    """Plot the gain against both kinds of over-confidence."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    named = (("relative: |log T_a / T_v|", ratio), ("common: |log T_a + log T_v| / 2", common))
    for ax, (name, values) in zip(axes, named, strict=True):
        ax.scatter(values, gain, s=7, color="#0072b2", alpha=0.6, linewidths=0)
        ax.axhline(0, color="#888888", linewidth=0.6)
        ax.set(xlabel=name, title=f"Spearman {spearmanr(values, gain).statistic:.2f}")
    axes[0].set_ylabel("gain of temperatures, points")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")


if __name__ == "__main__":
    sys.exit(main())
