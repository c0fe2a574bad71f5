"""Balancing methods with equal tuning, each followed by the same decision layers, on three tasks of GRID.

    MMBALANCE_DATA=DATA python benchmarks/balancing_grid.py [--out FOLDER] [--quick] [--jobs 2]

Tasks: digits in babble at -3 dB, letters in clean audio, colours from the complete clip. There are five folds by clip;
of each fold's other clips, 100 are for validation, 120 for calibration, and the rest for training. Every method has
the same budget of 8 trials (learning rate, weight decay, and its own strength if it has one; random search by optuna).
Trials are judged by the method's own decision on the first fold's validation clips; the method is then trained on
every fold. Test clips of all folds are pooled: 1,000 clips, all predicted by models that were not trained on them.
(The first fold's validation clips are test clips of other folds; this holds equally for every method.)

Each method is followed by three decision layers: its own fusion, the `sum` of its towers' log-probabilities, and
`fitted`, which `hf_mmbalance.decision` fits on the calibration clips. The reference is `joint_unimodal` with a
temperature per modality. Differences are paired by clip, with 95 % bootstrap intervals; `equal` means that the 90 %
interval lies within +-1.5 points (two one-sided tests), `better` and `worse` that the 95 % interval excludes 0. There
is one speaker, so the unit is the clip.

Towers are small (two layers, width 32) and read spectrograms and mouth pixels that are computed once. Cells that have
a file in FOLDER are not run again. Times are CPU seconds per step relative to `joint`, which runs with the others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from sklearn.model_selection import StratifiedKFold, train_test_split
from transformers import AutoConfig, PreTrainedConfig, get_cosine_schedule_with_warmup
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parent))
from grid_probes import FRAME_RATE, MEL, RATE, Grid, load, with_sound  # noqa: E402

from hf_mmbalance import MMBalanceForAudioVisualClassification  # noqa: E402
from hf_mmbalance.balancing import build_method  # noqa: E402
from hf_mmbalance.decision import DecisionTable, fit_decision_layer  # noqa: E402
from hf_mmbalance.metrics import measures  # noqa: E402


FOLDS = 5
CALIBRATION, VALIDATION = 0.15, 0.125  # of the clips outside a fold: 120 and 100 of 800
TRIALS, EPOCHS, BATCH, DRAWS = 8, 30, 64, 3
MARGIN = 1.5  # percentage points, for the equivalence test
LAYERS = ("own", "sum", "fitted")
REFERENCE = "joint_unimodal + temperature"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A recognition task and its inputs.

    Args:
        label: `digit`, `letter` or `colour`.
        snr: signal-to-noise ratio of the babble in dB, None for clean audio.
        seconds: length of the window around the word, None for the complete clip.
        hop: seconds between spectrogram frames.
        spectra, frames: number of spectrogram frames and of mouth frames.
    """

    label: str
    snr: float | None
    seconds: float | None
    hop: float
    spectra: int
    frames: int


TASKS = {
    "digits": Task("digit", -3.0, 0.64, 0.010, 64, 16),
    "letters": Task("letter", None, 0.64, 0.010, 64, 16),
    "colours": Task("colour", None, None, 0.025, 120, 40),
}
# Fusion head, and the range of the method's strength (drawn log-uniformly).
METHODS: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "joint": ("sum", {}),
    "joint_unimodal": ("sum", {}),
    "unimodal": ("mean_prob", {}),
    "frozen": ("concat", {}),
    "modality_dropout": ("sum", {"rates": (0.1, 0.6)}),
    "ogm": ("sum", {"alpha": (0.1, 1.0)}),
    "ogm_ge": ("sum", {"alpha": (0.1, 1.0)}),
    "opm": ("sum", {"base": (0.1, 0.8)}),
    "remix": ("sum", {"gamma": (0.3, 3.0)}),
    "agm": ("sum", {"alpha": (0.1, 2.0)}),
    "mlb": ("sum", {"alpha": (0.1, 2.0)}),
    "inforeg": ("sum", {"beta": (0.05, 2.0)}),
    "dgl": ("sum", {"alpha": (0.5, 8.0)}),
    "mmpareto": ("sum", {"gamma": (1.0, 2.0)}),
    "olm": ("sum", {"learning_rate": (1e-4, 1e-2)}),
    "mcr": ("sum", {"information": (0.01, 1.0)}),
    "reconboost": ("sum", {"agreement": (0.05, 5.0)}),
    "mla": ("mla", {}),
    "qmf": ("qmf", {"weight": (0.1, 2.0)}),
    "pdf": ("pdf", {}),
}


@dataclass(frozen=True)
class Cell:
    """One training run: a trial of the search (judged on validation) or a fold with the chosen values."""

    task: str
    method: str
    fold: int
    trial: int | None
    settings: tuple[tuple[str, float], ...]
    epochs: int
    out: Path

    @property
    def file(self) -> Path:
        kind = f"fold{self.fold}" if self.trial is None else f"trial{self.trial}"
        return self.out / self.task / self.method / f"{kind}.npz"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/balancing_grid"))
    parser.add_argument(
        "--quick", action="store_true", help="digits, 200 clips, 2 trials of 5 epochs, 2 folds: checks that it runs"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all; with --quick digits")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs, one thread each")
    arguments = parser.parse_args()
    if "MMBALANCE_DATA" not in os.environ:
        parser.error("set MMBALANCE_DATA to the folder that holds grid_s1")
    quick = arguments.quick
    trials, folds, epochs = (2, 2, 5) if quick else (TRIALS, FOLDS, EPOCHS)
    tasks = arguments.tasks or (["digits"] if quick else list(TASKS))
    methods = list(dict.fromkeys(["joint", "joint_unimodal", *arguments.methods]))
    out = arguments.out / "quick" if quick else arguments.out
    grid = load(out, clips=200 if quick else None)
    for task in tasks:
        prepare(task, grid, out)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        arguments.jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        search = [
            Cell(task, method, 0, trial, settings, epochs, out)
            for task in tasks
            for method in methods
            for trial, settings in enumerate(drawn(method, trials))
        ]
        scores = dict(zip(search, pool.map(run, search), strict=True))
        chosen = {
            (task, method): max(
                (cell for cell in search if (cell.task, cell.method) == (task, method)), key=scores.__getitem__
            ).settings
            for task in tasks
            for method in methods
        }
        final = [
            Cell(task, method, fold, None, settings, epochs, out)
            for fold in range(folds)
            for (task, method), settings in chosen.items()
        ]
        list(pool.map(run, final))
    report = {task: judge(task, methods, folds, out) | {"chosen": {m: dict(chosen[task, m]) for m in methods}}
              for task in tasks}  # fmt: skip
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for task, part in report.items():
        print(render(task, part))
    return 0


def drawn(method: str, trials: int) -> list[tuple[tuple[str, float], ...]]:
    """Draw the settings of a method's trials; they do not depend on results, so that a search can be resumed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(trials):
        trial = study.ask()
        values = {"lr": trial.suggest_float("lr", 1e-3, 8e-3, log=True)}
        values["weight_decay"] = trial.suggest_float("weight_decay", 1e-3, 0.3, log=True)
        for name, (low, high) in METHODS[method][1].items():
            values[name] = trial.suggest_float(name, low, high, log=True)
        found.append(tuple(values.items()))
    return found


# ---- inputs of the towers


def inputs_file(task: str, out: Path) -> Path:
    return out / f"inputs_{task}.npz"


def prepare(name: str, grid: Grid, out: Path) -> None:
    """Write the spectrograms (as judged, and in draws for training) and mouth frames of every clip into a file."""
    path, task = inputs_file(name, out), TASKS[name]
    if path.is_file():
        return
    rows = range(len(grid.ids))
    windows = [window_of(task, grid, row) for row in rows]
    judged = np.stack([spectrogram(sound_of(task, grid, row, None), windows[row], task) for row in rows])
    draws = 1 if task.snr is None else DRAWS
    learned = judged[:, None] if task.snr is None else np.stack(
        [[spectrogram(sound_of(task, grid, row, draw), windows[row], task) for draw in range(draws)] for row in rows]
    )  # fmt: skip
    frames = np.stack([mouth(grid.mouths[row], windows[row], task) for row in rows])
    np.savez(
        path.with_suffix(".part.npz"), judged=judged, learned=learned, frames=frames, labels=grid.words[task.label]
    )
    os.replace(path.with_suffix(".part.npz"), path)


def window_of(task: Task, grid: Grid, row: int) -> tuple[float, float]:
    if task.seconds is None:
        return 0.0, 3.0
    middle = float(np.mean(grid.windows[task.label][row]))
    start = min(max(0.0, middle - task.seconds / 2), 3.0 - task.seconds)
    return start, start + task.seconds


def sound_of(task: Task, grid: Grid, row: int, draw: int | None) -> np.ndarray:
    """Return the audio as judged (no draw), or with babble between -6 and 6 dB."""
    if task.snr is None:
        return grid.sound[row]
    rng = np.random.default_rng([row, 0 if draw is None else 1 + draw])
    return with_sound(grid, row, "babble", task.snr if draw is None else rng.uniform(-6, 6), rng)


def spectrogram(sound: np.ndarray, window: tuple[float, float], task: Task) -> np.ndarray:
    """Return the log-mel energies `(spectra, bands)` of a window."""
    size, hop = 400, int(task.hop * RATE)
    first = int(window[0] * RATE)
    piece = sound[first : first + size + hop * (task.spectra - 1)]
    piece = np.pad(piece, (0, size + hop * (task.spectra - 1) - len(piece)))
    frames = np.lib.stride_tricks.sliding_window_view(piece, size)[::hop] * np.hanning(size)
    return np.log(np.abs(np.fft.rfft(frames)) ** 2 @ MEL.T + 1e-4).astype(np.float32)


def mouth(pixels: np.ndarray, window: tuple[float, float], task: Task) -> np.ndarray:
    """Return mouth pixels over time as one image `(3, frames, 49)`: each row holds the 7 x 7 luma blocks of a moment.

    Its colours are the luma and its differences to the frames before and after. A ViT with patches of two complete
    rows reads it as AST reads a spectrogram; with hundreds of clips it learns this much faster than patches of single
    frames.
    """
    at = np.round(np.linspace(window[0], window[1], task.frames) * FRAME_RATE).astype(int)
    luma = pixels.reshape(75, 7, 2, 7, 3).mean(axis=(2, 4)).reshape(75, 49).astype(np.float32) / 255
    now, before, after = (luma[np.clip(at + shift, 0, 74)] for shift in (0, -1, 1))
    return np.stack([now, now - before, after - now])


def parts_of(labels: np.ndarray, fold: int) -> dict[str, np.ndarray]:
    """Return the indices of the clips of each part of a fold."""
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    rest, test = list(splitter.split(labels, labels))[fold]
    parts, others = {"test": test}, len(rest)
    for name, share in (("calibration", CALIBRATION), ("validation", VALIDATION)):
        count = round(share * others)
        rest, parts[name] = train_test_split(rest, test_size=count, stratify=labels[rest], random_state=fold)
    return parts | {"train": rest}


# ---- one run


def small_towers(task: Task, **more: Any) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """Return the configs of a two-layer AST and a two-layer ViT for a task's inputs."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "layer_norm_eps": 1e-5, "hidden_dropout_prob": 0.1, "initializer_range": 0.1, **more}  # fmt: skip
    audio = AutoConfig.for_model(
        "audio-spectrogram-transformer", **small, num_mel_bins=len(MEL), max_length=task.spectra, patch_size=8,
        frequency_stride=8, time_stride=8,
    )  # fmt: skip
    return audio, AutoConfig.for_model("vit", **small, image_size=(task.frames, 49), patch_size=(2, 49))


def small_model(task: Task, fusion: str, classes: int) -> MMBalanceForAudioVisualClassification:
    return MMBalanceForAudioVisualClassification.from_backbones(
        *small_towers(task), id2label={c: str(c) for c in range(classes)}, fusion=fusion,
        classifier_dropout=0.1, initializer_range=0.08,
    )  # fmt: skip


def run(cell: Cell) -> float:
    """Train a cell unless its file is there; returns its score on validation: accuracy, ties broken by NLL."""
    if not cell.file.is_file():
        arrays = train(cell)
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        part = cell.file.with_suffix(".part.npz")
        np.savez(part, **arrays)
        os.replace(part, cell.file)
    with np.load(cell.file) as found:
        labels, fused = found["validation/labels"], found["validation/fused"]
    return measures.accuracy(fused, labels) - 1e-3 * min(measures.nll(fused, labels), 100.0)


def train(cell: Cell) -> Arrays:
    """Train a model on a cell's train clips and run it over the others."""
    logging.set_verbosity_error()
    task, (fusion, strengths), settings = TASKS[cell.task], METHODS[cell.method], dict(cell.settings)
    with np.load(inputs_file(cell.task, cell.out)) as found:
        arrays = dict(found)
    parts = parts_of(arrays["labels"], cell.fold)
    data = standardised(arrays, parts["train"])
    torch.manual_seed(1000 * cell.fold + (cell.trial or 0))
    model = small_model(task, fusion, int(arrays["labels"].max()) + 1)
    method = build_method(cell.method, {name: settings[name] for name in strengths})
    method.num_clips = len(parts["train"])
    method.attach(model)
    steps_per_epoch = len(parts["train"]) // BATCH
    total = steps_per_epoch * cell.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    scheduler = get_cosine_schedule_with_warmup(optimizer, total // 10, total)
    rng = np.random.default_rng(cell.fold)
    rows, start = torch.as_tensor(parts["train"]), time.process_time()
    model.train()
    for step in range(total):
        if step % steps_per_epoch == 0:
            order = torch.as_tensor(rng.permutation(len(rows)))
        place = order[step % steps_per_epoch * BATCH :][:BATCH]
        draws = torch.as_tensor(rng.integers(0, data["learned"].shape[1], len(place)))
        chosen = rows[place]
        method.progress, method.epoch, method.clip_index = step / total, step // steps_per_epoch, place
        inputs = {"input_values": data["learned"][chosen, draws], "pixel_values": data["frames"][chosen]}
        optimizer.zero_grad()
        model(**inputs, labels=data["labels"][chosen]).loss.backward()
        method.before_step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
    result = {"seconds_per_step": np.array((time.process_time() - start) / total)}
    for name in ("validation",) if cell.trial is not None else ("calibration", "validation", "test"):
        result |= {f"{name}/{key}": value for key, value in predicted(model, data, parts[name]).items()}
    return result


def standardised(arrays: Arrays, train_rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Return tensors in which every band and every pixel of the train clips has mean 0 and standard deviation 1."""
    sound, frames = arrays["learned"][train_rows], arrays["frames"][train_rows]
    mean, deviation = sound.mean((0, 1, 2)), sound.std((0, 1, 2))
    scaled = {key: (arrays[key] - mean) / deviation for key in ("judged", "learned")}
    pixels = (0, 2)  # over clips and moments
    scaled["frames"] = (arrays["frames"] - frames.mean(pixels, keepdims=True)) / frames.std(pixels, keepdims=True)
    return {key: torch.as_tensor(value) for key, value in (scaled | {"labels": arrays["labels"]}).items()}


def predicted(model: Any, data: dict[str, torch.Tensor], rows: np.ndarray) -> Arrays:
    found: dict[str, list[torch.Tensor]] = {"fused": [], "modality_logits": []}
    model.eval()
    with torch.no_grad():
        for part in torch.as_tensor(rows).split(200):
            out = model(input_values=data["judged"][part], pixel_values=data["frames"][part])
            found["fused"].append(out.logits)
            found["modality_logits"].append(out.modality_logits)
    arrays = {key: torch.cat(values).double().numpy() for key, values in found.items()}
    return arrays | {"labels": data["labels"][rows].numpy(), "rows": rows}


# ---- results


def judge(task: str, methods: list[str], folds: int, out: Path) -> dict[str, Any]:
    """Return the rows of a task's table."""
    pooled = {method: pool_folds(task, method, folds, out) for method in methods}
    reference = pooled["joint_unimodal"]["temperature"]
    seconds = {method: float(np.median(pooled[method]["seconds"])) for method in methods}
    rows = []
    for method, arrays in pooled.items():
        row = {"method": method, "relative_time": seconds[method] / seconds["joint"]}
        for m, name in enumerate(("audio", "vision")):
            row[name] = 100 * measures.accuracy(arrays["modality_logits"][:, m], arrays["labels"])
        for layer in LAYERS:
            row[layer] = compared(arrays[layer], reference, arrays["labels"])
            row[layer]["balance_index"] = balance_index(arrays, layer)
        rows.append(row)
    labels = pooled["joint_unimodal"]["labels"]
    return {"n": len(labels), "reference": 100 * measures.accuracy(reference, labels), "rows": rows}


def pool_folds(task: str, method: str, folds: int, out: Path) -> Arrays:
    """Return the logits of all test clips, ordered by clip, under every decision layer."""
    parts: dict[str, list[np.ndarray]] = {}
    for fold in range(folds):
        with np.load(out / task / method / f"fold{fold}.npz") as found:
            arrays = {key: found[key] for key in found.files}
        test = as_table(arrays, "test")
        fused = {
            "own": arrays["test/fused"],
            "sum": measures.log_softmax(arrays["test/modality_logits"]).sum(1),
            "temperature": layer(arrays, "temperature").decision_function(test.logits),
            "fitted": layer(arrays, "auto").decision_function(test.logits),
            "modality_logits": arrays["test/modality_logits"],
            "labels": arrays["test/labels"],
            "rows": arrays["test/rows"],
            "seconds": arrays["seconds_per_step"][None],
        }
        for key, values in fused.items():
            parts.setdefault(key, []).append(values)
    joined = {key: np.concatenate(values) for key, values in parts.items()}
    order = np.argsort(joined["rows"])
    return {key: values if key == "seconds" else values[order] for key, values in joined.items()}


def as_table(arrays: Arrays, split: str) -> DecisionTable:
    logits, labels = arrays[f"{split}/modality_logits"], arrays[f"{split}/labels"]
    names = [f"{split}-{row}" for row in arrays[f"{split}/rows"]]
    classes = [str(c) for c in range(logits.shape[2])]
    return DecisionTable(
        names, ["s1"] * len(names), [split] * len(names), labels, logits, classes, ["audio", "vision"]
    )


def layer(arrays: Arrays, rung: str) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that one speaker is only one group
        return fit_decision_layer(as_table(arrays, "calibration"), rung=rung)


def compared(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy, NLL, and the difference to the reference in points with its verdict."""
    difference = 100 * (measures.correct(logits, labels).astype(float) - measures.correct(reference, labels))
    wide, narrow = (measures.bootstrap_ci(difference, level=level) for level in (0.95, 0.90))
    verdict = "open"
    if -MARGIN < narrow[0] and narrow[1] < MARGIN:
        verdict = "equal"
    elif wide[0] > 0 or wide[1] < 0:
        verdict = "better" if wide[0] > 0 else "worse"
    return {
        "accuracy": 100 * measures.accuracy(logits, labels),
        "nll": measures.nll(logits, labels),
        "difference": float(difference.mean()),
        "interval": wide,
        "verdict": verdict,
    }


def balance_index(arrays: Arrays, layer: str) -> float:
    """Return the category-level relative balance index; a modality alone decides by its own logits."""
    labels, logits = arrays["labels"], arrays["modality_logits"]
    own = [measures.correct(logits[:, m], labels).astype(float) for m in range(2)]
    nothing = np.full(len(labels), 1 / logits.shape[2])
    values = np.stack([nothing, *own, measures.correct(arrays[layer], labels).astype(float)])
    classes = logits.shape[2]
    contribution = measures.class_means(measures.shapley(values), labels, classes)
    capability = measures.class_means(np.stack(own), labels, classes) - 1 / classes
    return float(measures.relative_balance_index(measures.shares(contribution)[0], measures.shares(capability)[0]))


def render(task: str, report: dict[str, Any]) -> str:
    lines = [f"\n{task}: n = {report['n']}; reference {REFERENCE} {report['reference']:.1f}", "",
             "| method | time | audio | vision | " + " | ".join(LAYERS) + " | fitted - reference |",
             "|" + "---|" * (5 + len(LAYERS))]  # fmt: skip
    for row in report["rows"]:
        cells = [
            f"{row[name]['accuracy']:.1f} / {row[name]['nll']:.2f} / {row[name]['balance_index']:.2f}"
            for name in LAYERS
        ]
        fitted = row["fitted"]
        low, high = fitted["interval"]
        against = f"{fitted['difference']:+.1f} [{low:+.1f}, {high:+.1f}] {fitted['verdict']}"
        lines.append(
            f"| `{row['method']}` | {row['relative_time']:.2f} | {row['audio']:.1f} | {row['vision']:.1f} | "
            + " | ".join(cells)
            + f" | {against} |"
        )
    return "\n".join([*lines, "", "Cells: accuracy in percent / NLL / relative balance index."])


if __name__ == "__main__":
    sys.exit(main())
