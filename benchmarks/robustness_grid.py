"""Decision layers under corruption on spoken digits of GRID: all 1,000 clips out of fold, and unseen corruptions.

    MMBALANCE_DATA=DATA python benchmarks/robustness_grid.py [--out FOLDER] [--quick] [--figure FILE.png]

There are five folds by clip. In each, `train.py` trains towers with `grid_digits.yaml` on the other folds without a
calibration part. The towers run over the train clips (as in training, for feature statistics), the calibration clips
(clean, and draws corrupted by the `seen` half of the kinds) and the held-out clips: clean, in babble at -3 dB, in
draws corrupted by the seen and by the unseen half, and under every kind at every severity. Decision layers are fitted
on the calibration draws of a fold and judged on its held-out clips; predictions of all folds are pooled.

The oracle knows the corruption: it has a temperature per modality, kind and severity, fitted on the test draws
themselves by the NLL of the fusion, on clips other than the judged ones (5 folds). `closed` is the share of the
accuracy gap between `sum` and the oracle that a method closes. Intervals are bootstraps over clips (one speaker).
`--figure` plots accuracy against severity, for all unseen kinds of a modality together.

Existing results are not computed again. Two folds run at a time, with one thread each.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold, train_test_split

from hf_mmbalance.data.clips import ClipDataset, ClipsOfEpoch
from hf_mmbalance.data.corruptions import CORRUPTIONS, SEVERITIES, ClipsOfOneCorruption, CorruptedClips, CorruptionPlan
from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.metrics import measures


FOLDS, CALIBRATION_CLIPS, VALIDATION_CLIPS, DRAWS = 5, 120, 40, 4
MODALITIES = ("audio", "vision")
RUNGS = ("temperature", "typicality", "global")
METHODS = (*MODALITIES, "sum", "prior_sum", "mean_prob", *RUNGS, "adaptive", "adaptive_known", "oracle")
SETS = ("clean", "m3", "seen", "unseen")
RIDGE = 1e-3  # on the oracle's log temperatures
Arrays = dict[str, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/robustness_grid"))
    parser.add_argument(
        "--quick", action="store_true", help="two folds, towers of two epochs, few cells, to check that it runs"
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of folds at a time")
    parser.add_argument("--fold", type=int, help=argparse.SUPPRESS)  # a child process: one fold
    parser.add_argument("--figure", type=Path, metavar="FILE", help="plot accuracy against severity")
    arguments = parser.parse_args()
    data = os.environ.get("MMBALANCE_DATA")
    if data is None:
        parser.error("set MMBALANCE_DATA to the folder that holds grid_s1")
    out = arguments.out / "quick" if arguments.quick else arguments.out
    if arguments.fold is not None:
        make_fold(arguments.fold, out / f"fold{arguments.fold}", Path(data) / "grid_s1", arguments.quick)
        return 0
    folds = range(2 if arguments.quick else FOLDS)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda fold: run_child(fold, arguments.quick, arguments.out), folds))
    report = judge([read_tables(out / f"fold{fold}" / "tables") for fold in folds])
    print(render(report))
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    if arguments.figure:
        draw(report, arguments.figure)
    return 0


def run_child(fold: int, quick: bool, out: Path) -> None:
    command = [sys.executable, __file__, "--out", str(out), "--fold", str(fold)] + ["--quick"] * quick
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


# ---- towers and tables of one fold


def make_fold(fold: int, folder: Path, grid: Path, quick: bool) -> None:
    """Train the towers of a fold and write their logits and features for its clips, one file per set of clips."""
    write_splits(fold, folder / "clips", grid)
    run = folder / "run"
    if not (run / "results.json").exists():
        from hf_mmbalance.training.run import main as train

        resume = ["--resume_from_checkpoint", "true"] if any(run.glob("checkpoint-*")) else []
        if not resume:
            shutil.rmtree(run, ignore_errors=True)
        short = ["--num_train_epochs", "2"] if quick else []
        options = ["--fusion", "sum", "--disable_tqdm", "true", "--output_dir", str(run), *resume, *short]
        train(["--config", "grid_digits", "--data_dir", str(folder / "clips"), *options])
    write_tables(run, folder / "tables", quick)


def write_splits(fold: int, folder: Path, grid: Path) -> None:
    """Write a GRID folder with the same clips (as links) and the splits of a fold in `labels.csv`."""
    with (grid / "labels.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["id"])
    digits = np.array([row["digit"] for row in rows])
    splits = np.full(len(rows), "train", dtype=object)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(digits, digits)
    rest, test = list(folds)[fold]
    splits[test] = "test"
    for name, count in (("calibration", CALIBRATION_CLIPS), ("validation", VALIDATION_CLIPS)):
        rest, taken = train_test_split(rest, test_size=count, stratify=digits[rest], random_state=fold)
        splits[taken] = name
    folder.mkdir(parents=True, exist_ok=True)
    for part in grid.iterdir():
        if part.is_dir() and not (folder / part.name).exists():
            (folder / part.name).symlink_to(part.resolve())
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "split"], *([row["id"], split] for row, split in zip(rows, splits, strict=True))])


def write_tables(run_folder: Path, folder: Path, quick: bool) -> None:
    """Write the towers' logits and features for every set of clips of a fold; sets that have a file are skipped."""
    from hf_mmbalance.robustness.cells import predict
    from hf_mmbalance.robustness.run import clips_of_run, load_run

    torch.set_num_threads(1)
    run = load_run(run_folder)
    arguments = json.loads((run_folder / "results.json").read_text())["arguments"]
    clean = clips_of_run({**arguments, "noise": "none"}).splits
    train = ClipsOfEpoch(clips_of_run(arguments).splits["train"], 0)
    sets: dict[str, ClipDataset] = {"train": train, "clean": clean["test"], "m3": run.clips}
    plans = {half: CorruptionPlan.of(half, draws=DRAWS) for half in ("seen", "unseen")}
    sets["calibration"] = CorruptedClips(clean["calibration"], plans["seen"])
    sets |= {half: CorruptedClips(clean["test"], plan) for half, plan in plans.items()}
    kinds = [kind for kind, corruption in CORRUPTIONS.items() if corruption.half]
    for kind in ("babble", "occlusion") if quick else kinds:
        for severity in (1, 5) if quick else SEVERITIES:
            sets[f"{kind}-{severity}"] = ClipsOfOneCorruption(clean["test"], kind, severity)
    folder.mkdir(exist_ok=True)
    for name, clips in sets.items():
        path = folder / f"{name}.npz"
        if path.exists():
            continue
        arrays = predict(run, clips, batch_size=50)
        arrays |= {"labels": np.array(clips.labels), "clips": np.array(getattr(clips, "clips", clips.ids))}
        arrays["draws"] = np.array(getattr(clips, "draws", [0] * len(clips)))
        if name in plans:  # input of the oracle
            rows = zip(arrays["clips"], arrays["draws"], strict=True)
            chosen = [dict.fromkeys(MODALITIES, "clean") | named(plans[name], clip, draw) for clip, draw in rows]
            arrays["corruption"] = np.array([[choice[m] for m in MODALITIES] for choice in chosen])
        np.savez(folder / f"{name}.part", **arrays)
        os.replace(folder / f"{name}.part.npz", path)


def read_tables(folder: Path) -> Arrays:
    """Read the arrays `SET/NAME` of a fold."""
    arrays: Arrays = {}
    for path in folder.glob("*.npz"):
        with np.load(path) as file:
            arrays |= {f"{path.stem}/{name}": file[name] for name in file.files}
    return arrays


def named(plan: CorruptionPlan, clip: str, draw: int) -> dict[str, str]:
    choices = plan.choices(str(clip), int(draw), MODALITIES)
    return {CORRUPTIONS[kind].modality: f"{kind}-{severity}" for kind, severity in choices}


# ---- decision layers


def judge(folds: list[Arrays]) -> dict[str, Any]:
    """Return the results of every method on all held-out clips, pooled over folds."""
    names = sorted({key.split("/")[0] for key in folds[0]} - {"train", "calibration"})
    pooled: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in names}
    chosen = []
    for arrays in folds:
        layers = fit_layers(arrays)
        chosen.append(f"{layers['adaptive'].chosen_} / {layers['adaptive_known'].chosen_}")
        for name in names:
            rows = arrays[f"{name}/draws"] > 0 if name in ("seen", "unseen") else slice(None)
            part = methods_of(arrays, name, layers)
            part |= {key: arrays[f"{name}/{key}"] for key in ("labels", "clips", "corruption", "modality_logits")
                     if f"{name}/{key}" in arrays}  # fmt: skip
            for key, values in part.items():
                pooled[name].setdefault(key, []).append(values[rows])
    tables = {name: {key: np.concatenate(part) for key, part in parts.items()} for name, parts in pooled.items()}
    for name, table in tables.items():
        if "corruption" not in table:
            table["corruption"] = np.full((len(table["labels"]), len(MODALITIES)), name)
        table["oracle"] = oracle(table)
    return {
        "n_clips": len(np.unique(tables["clean"]["clips"])),
        "chosen": chosen,
        "sets": {name: row_of(tables[name]) for name in SETS},
        "cells": {name: row_of(table, closed=False) for name, table in tables.items() if name not in SETS},
        "unseen": {modality: curve(tables, modality) for modality in MODALITIES},
    }


def curve(tables: dict[str, Arrays], modality: str) -> list[dict[str, Any]]:
    """Return results on clean clips, and at each severity on all unseen corruptions of one modality together."""
    kinds = [kind for kind, found in CORRUPTIONS.items() if (found.half, found.modality) == ("unseen", modality)]
    points = [["clean"], *([f"{kind}-{severity}" for kind in kinds] for severity in SEVERITIES)]
    rows = []
    for severity, names in enumerate(points):
        if parts := [tables[name] for name in names if name in tables]:
            keys = (*METHODS, "labels", "clips")
            table = {key: np.concatenate([part[key] for part in parts]) for key in keys}
            rows.append({"severity": severity, "kinds": len(parts)} | row_of(table, closed=False))
    return rows


def fit_layers(arrays: Arrays) -> dict[str, Allocation]:
    """Fit the decision layers on a fold's calibration draws."""

    def columns(name: str) -> dict[str, np.ndarray]:
        return {modality: arrays[f"{name}/features.{modality}"] for modality in MODALITIES}

    clips = arrays["calibration/clips"]
    layers = {name: Allocation(rung=name) for name in RUNGS}
    layers |= {"adaptive": Allocation(), "adaptive_known": Allocation(known_groups=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in layers.values():
            layer.fit(
                arrays["calibration/modality_logits"],
                arrays["calibration/labels"],
                groups=np.full(len(clips), "s1"),
                features=columns("calibration"),
                reference=(columns("train"), arrays["train/labels"]),
                clips=clips,
                draws=arrays["calibration/draws"],
            )
    return layers


def methods_of(arrays: Arrays, name: str, layers: dict[str, Allocation]) -> Arrays:
    """Return log-probabilities `(N, C)` of each method for one set of clips."""
    logits = arrays[f"{name}/modality_logits"].astype(np.float64)
    each = measures.log_softmax(logits)
    counts = np.bincount(arrays["calibration/labels"], minlength=each.shape[2]) + 0.5
    total = each.sum(1)
    out = {modality: each[:, m] for m, modality in enumerate(MODALITIES)}
    out |= {"sum": total, "prior_sum": total - np.log(counts / counts.sum())}
    out["mean_prob"] = np.log(np.exp(each).mean(1))
    features = {modality: arrays[f"{name}/features.{modality}"] for modality in MODALITIES}
    out |= {method: layer.decision_function(logits, features=features) for method, layer in layers.items()}
    return {method: measures.log_softmax(values) for method, values in out.items()}


def oracle(table: Arrays) -> np.ndarray:
    """Return log-probabilities `(N, C)` with a temperature per modality and corruption, fitted on the other clips."""
    each = torch.as_tensor(measures.log_softmax(table["modality_logits"]))
    labels = torch.as_tensor(table["labels"])
    cells, index = np.unique(table["corruption"], return_inverse=True)
    index = torch.as_tensor(index.reshape(table["corruption"].shape) + np.arange(len(MODALITIES)) * len(cells))
    clips = np.unique(table["clips"], return_inverse=True)[1]
    fold = np.random.default_rng(0).permutation(clips.max() + 1)[clips] % FOLDS
    out = np.zeros(each.shape[::2])
    for part in range(FOLDS):
        rest, held = (torch.as_tensor(np.flatnonzero(fold != part)), torch.as_tensor(np.flatnonzero(fold == part)))

        def fused(theta: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            scaled = each[rows] * torch.exp(theta[index[rows]])[:, :, None]
            return scaled.log_softmax(-1).sum(1).log_softmax(-1)

        def loss(values: np.ndarray, rest: torch.Tensor = rest, fused: Any = fused) -> tuple[float, np.ndarray]:
            theta = torch.as_tensor(values).requires_grad_()
            nll = -fused(theta, rest)[torch.arange(len(rest)), labels[rest]].mean() + RIDGE * theta.square().sum()
            nll.backward()
            assert theta.grad is not None
            return nll.item(), theta.grad.numpy()

        best = minimize(loss, np.zeros(len(cells) * len(MODALITIES)), jac=True, method="L-BFGS-B").x
        out[held] = fused(torch.as_tensor(best), held).numpy()
    return out


# ---- numbers


def row_of(table: Arrays, closed: bool = True) -> dict[str, Any]:
    labels, clips = table["labels"], table["clips"]
    right = {method: measures.correct(table[method], labels) for method in METHODS}
    row: dict[str, Any] = {
        method: {
            "accuracy": float(right[method].mean()),
            "ci": list(interval(right[method], clips)),
            "nll": measures.nll(table[method], labels),
            "over_sum": float((right[method] - right["sum"]).mean()),
            "over_sum_ci": list(interval(right[method] - right["sum"], clips)),
        }
        for method in METHODS
    }
    if closed:
        for method in METHODS[len(MODALITIES) :]:
            row[method]["closed"] = closed_share(right, method, clips)
    return row


def interval(values: np.ndarray, clips: np.ndarray) -> tuple[float, float]:
    return measures.bootstrap_ci(values, clips)


def closed_share(right: Arrays, method: str, clips: np.ndarray, draws: int = 2000) -> list[float] | None:
    """Return the share of the gap between `sum` and `oracle` that a method closes, with its 95 % interval over clips.

    None if the oracle is not above `sum` in every bootstrap draw: then there is hardly any gap to close.
    """
    unit = np.unique(clips, return_inverse=True)[1]
    gain, gap = (np.bincount(unit, right[name] - right["sum"]) for name in (method, "oracle"))
    drawn = np.random.default_rng(0).multinomial(len(gain), np.full(len(gain), 1 / len(gain)), size=draws)
    if (drawn @ gap).min() <= 0:
        return None
    low, high = np.quantile((drawn @ gain) / (drawn @ gap), [0.025, 0.975])
    return [float(gain.sum() / gap.sum()), float(low), float(high)]


def render(report: dict[str, Any]) -> str:
    """Return the tables of the sets of clips, and of every kind and severity, by method."""
    lines = [f"{report['n_clips']} clips out of fold; chosen by fold (plain / known groups): {report['chosen']}"]
    for name in SETS:
        lines += ["", f"{name:<16} accuracy         95 % CI     NLL   over sum           closed (95 % CI)"]
        for method in METHODS:
            found = report["sets"][name][method]
            low, high = (100 * end for end in found["ci"])
            closed = ""
            if found.get("closed"):
                closed = "{:9.0f} % [{:.0f}, {:.0f}]".format(*(100 * value for value in found["closed"]))
            lines.append(
                f"  {method:<14} {100 * found['accuracy']:8.1f}  [{low:5.1f},{high:5.1f}] {found['nll']:7.3f}"
                f" {100 * found['over_sum']:+9.1f}{closed}"
            )
    shown = [method for method in METHODS if method != "adaptive_known"]
    lines += ["", f"{'accuracy / NLL':<20}" + "".join(f"{method:>14}" for method in shown)]
    for cell, row in report["cells"].items():
        values = [f"{100 * row[method]['accuracy']:.1f} / {row[method]['nll']:.2f}" for method in shown]
        half = CORRUPTIONS[cell.rsplit("-", 1)[0]].half
        lines.append(f"{cell + (' *' if half == 'seen' else ''):<20}" + "".join(f"{value:>14}" for value in values))
    return "\n".join([*lines, "* seen in calibration"])


LINES = {  # method: name, colour (Okabe & Ito), marker
    "audio": ("audio model", "#0072b2", "o"),
    "vision": ("vision model", "#d55e00", "s"),
    "sum": ("plain sum", "#767676", "^"),
    "mean_prob": ("mean of probabilities", "#e69f00", "v"),
    "adaptive": ("fitted decision layer", "#000000", "D"),
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Plot accuracy against severity, one panel per corrupted modality, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, (modality, rows) in zip(panels, report["unseen"].items(), strict=True):
        at = [row["severity"] for row in rows]
        for method, (name, colour, marker) in LINES.items():
            values = np.array([[row[method]["accuracy"], *row[method]["ci"]] for row in rows]).T * 100
            look = {"linewidth": 2.4} if method == "adaptive" else {"linewidth": 1.4}
            if method == "sum":  # stays visible where it covers another line
                look |= {"linestyle": "--", "zorder": 3}
            panel.plot(at, values[0], color=colour, marker=marker, markersize=5, label=name, **look)
            panel.fill_between(at, values[1], values[2], color=colour, alpha=0.12, linewidth=0)
        word = {"audio": "sound", "vision": "picture"}[modality]
        panel.set_title(f"corrupted {word} ({rows[-1]['kinds']} kinds, none met before)", fontsize=11)
        panel.set_xlabel("severity (0: clean)")
        panel.grid(alpha=0.3, linewidth=0.6)
    panels[0].set_ylabel("accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LINES), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    sys.exit(main())
