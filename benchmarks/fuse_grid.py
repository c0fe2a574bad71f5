"""Fusing two models with few labels, on GRID: accuracy by number of labels against the better model and their sum.

    python benchmarks/fuse_grid.py EMBEDDINGS [EMBEDDINGS ...] [--labels 20 50 100 200] [--draws 20]
    MMBALANCE_DATA=DATA python benchmarks/fuse_grid.py --probes CACHE

EMBEDDINGS is a folder written by `mmbalance embed`; --probes uses log-mel means and mouth pixels of GRID words instead
(digits in babble at -3 dB, letters clean, decoded once into CACHE). For each number of labels and each draw, that many
clips are drawn by class in turn and labelled; heads and the decision layer are fitted on them, as in `mmbalance fuse`,
and judged on all other clips. `best` is the modality that is better on the judged clips, which nobody knows
beforehand; `sum` adds the log-probabilities of the two fitted models. `estimate` is the held-out accuracy that `fuse`
reports for the labelled clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hf_mmbalance.console import say, table
from hf_mmbalance.decision.results import plain_sum
from hf_mmbalance.embedding.fuse import FuseError, FuseOptions, Rows, fit, held_out_decisions
from hf_mmbalance.embedding.stored import Embeddings
from hf_mmbalance.json_files import write_json
from hf_mmbalance.metrics import measures


def all_rows(folder: Path) -> Rows:
    """Return all clean clips of a folder, in any split."""
    stored = Embeddings.read(folder)
    index = np.flatnonzero(stored.draws == 0)
    names = np.asarray(stored.ids)[index]
    features, tokens = (
        {name: values[index].astype(np.float64) for name, values in parts.items()}
        for parts in (stored.features, stored.tokens)
    )
    known = np.ones((len(features), len(stored.classes)), dtype=bool)
    # Clips of one speaker: each clip is its own group, as for a user who has no group information.
    return Rows(
        names, names, names, stored.labels[index], stored.draws[index], features, tokens, {}, stored.classes, known
    )


def probe_rows(cache: Path) -> dict[str, Rows]:
    """Return features of GRID words that need no tower, by task."""
    from grid_probes import audio_features, load, vision_features

    grid = load(cache)
    every, names = np.arange(len(grid.ids)), np.array(grid.ids)
    found = {}
    for label, kind in (("digit", "babble"), ("letter", "clean")):
        features = {
            "audio": audio_features(grid, label, every, kind, (-3.0, -3.0), seed=0),
            "vision": vision_features(grid, label, every, "clean", (1, 1), seed=0),
        }
        classes = [str(c) for c in range(grid.words[label].max() + 1)]
        known = np.ones((2, len(classes)), dtype=bool)
        draws = np.zeros(len(names), dtype=np.int64)
        found[f"probes-{label}"] = Rows(
            names, names, names, grid.words[label], draws, features, features, {}, classes, known
        )
    return found


def drawn(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the indices of `count` clips, by class in turn."""
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return np.lexsort((rng.random(len(labels)), rank))[:count]


def judge(rows: Rows, learn: np.ndarray, seed: int) -> dict[str, float | str]:
    """Return the accuracy of every method on the clips outside `learn`, and what `fuse` itself would report."""
    options = FuseOptions(seed=seed)
    labelled = rows.take(learn)
    fitted = fit(labelled, options)
    rest = rows.take(np.setdiff1d(np.arange(len(rows.ids)), learn))
    unimodal = fitted.unimodal(rest)
    found: dict[str, float | str] = {
        name: measures.accuracy(unimodal[:, m], rest.labels) for m, name in enumerate(rows.features)
    }
    found["best"] = max(float(found[name]) for name in rows.features)
    total, fused = plain_sum(rest.table(unimodal, "test")), fitted.fused(rest)
    found |= {"sum": measures.accuracy(total, rest.labels), "fused": measures.accuracy(fused, rest.labels)}
    found |= {"nll_sum": measures.nll(total, rest.labels), "nll_fused": measures.nll(fused, rest.labels)}
    best = int(np.argmax([found[name] for name in rows.features]))
    right = measures.correct(fused, rest.labels) - measures.correct(unimodal[:, best], rest.labels)
    found["standard_error"] = float(right.std(ddof=1) / np.sqrt(len(right)))
    found["estimate"] = measures.accuracy(held_out_decisions(labelled, fitted, options), labelled.labels)
    found["rung"] = fitted.allocation.chosen_
    return found


def main() -> None:
    """Print a table per task and write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--probes", type=Path, metavar="CACHE")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for all numbers as JSON")
    parser.add_argument("--labels", nargs="+", type=int, default=[20, 50, 100, 200])
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()
    tasks = {} if arguments.probes is None else probe_rows(arguments.probes)
    tasks |= {folder.name: all_rows(folder) for folder in arguments.folders}
    for name, rows in tasks.items():
        say(f"\n{name}: {len(rows.ids)} clips, {len(rows.classes)} classes, {arguments.draws} draws")
        report, lines = [], []
        for count in arguments.labels:
            found = []
            for draw in range(arguments.draws):
                try:
                    learn = drawn(rows.labels, count, np.random.default_rng([draw, count]))
                    found.append(judge(rows, learn, draw))
                except FuseError as error:
                    say(f"{count} labels, draw {draw}: {error}")
            report.append({"labels": count, "draws": found})
            if found:
                lines.append(line(count, list(rows.features), found))
        say(table(head(list(rows.features)), lines))
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out / f"fuse-{name}.json", report)


def head(modalities: list[str]) -> list[str]:
    """Return the names of the columns that `line` fills."""
    return ["labels", *modalities, "sum", "fused", "fused - best", "fused - sum", "below best", "NLL sum", "NLL fused",
            "estimate off by", "rungs"]  # fmt: skip


def _with_interval(values: np.ndarray) -> str:
    """Return mean and 95 % interval over draws, in points."""
    low, high = measures.bootstrap_ci(values)
    return f"{100 * values.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def line(count: int, modalities: list[str], found: list[dict[str, float | str]]) -> list[str]:
    """Return a row of the table: means over draws, with accuracies in percent and differences in points.

    `below best` counts the draws that are more than two standard errors below `best`.
    """

    def mean(name: str) -> float:
        return float(np.mean([entry[name] for entry in found]))

    gain = np.array([float(entry["fused"]) - float(entry["best"]) for entry in found])
    noise = np.array([float(entry["standard_error"]) for entry in found])
    rungs = [str(entry["rung"]) for entry in found]
    counts = ", ".join(f"{name} {rungs.count(name)}" for name in sorted(set(rungs), key=rungs.count, reverse=True))
    return [
        str(count),
        *(f"{100 * mean(name):.1f}" for name in (*modalities, "sum", "fused")),
        _with_interval(gain),
        _with_interval(np.array([float(entry["fused"]) - float(entry["sum"]) for entry in found])),
        f"{int((gain < -2 * noise).sum())} of {len(found)}",
        f"{mean('nll_sum'):.3f}",
        f"{mean('nll_fused'):.3f}",
        f"{100 * (mean('estimate') - mean('fused')):+.1f}",
        counts,
    ]


if __name__ == "__main__":
    main()
