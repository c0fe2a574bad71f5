"""Comparison of runs and tables on the same clips, with the seeds of one configuration taken together."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.decision.evaluation import baselines, decide_table
from hf_mmbalance.decision.results import PLACES, RESULTS
from hf_mmbalance.decision.table import DecisionTable, TableError
from hf_mmbalance.decision.table_files import table_name, table_path
from hf_mmbalance.metrics.measures import bootstrap_ci, ci_unit, clip_nll, correct, resampled_counts
from hf_mmbalance.metrics.paired import holm, sign_flip_p
from hf_mmbalance.metrics.sums import MEASURES, UnitSums


#: Arguments that can differ between seeds of one configuration.
OF_ONE_RUN = PLACES | {"seed", "data_seed"}
#: Smaller differences between the values of a clip are rounding errors.
EQUAL = 1e-6
FITTED_HERE = "fitted here"
#: Head of a run -> how its decision layer was made.
KINDS = {"adaptive": "fitted", "sum": "no parameters", "mean_prob": "no parameters"}


@dataclass
class Source:
    """One run or table, read from its files.

    Args:
        name: name of the run's folder or of the file.
        table: clips to evaluate on.
        configuration: arguments of the run except seeds and places; runs that share them are seeds of one
            configuration. None for a table.
        seed: seeds of the run and of its data; None for a table.
        fusion: fusion head of the run; None for a table.
        refitted: `(N, C)` fused logits of a decision layer fitted here, on clips other than those it decides.
        notes: notes on the table and on that fit.
    """

    name: str
    table: DecisionTable
    configuration: str | None = None
    seed: tuple[Any, Any] | None = None
    fusion: str | None = None
    refitted: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Entry:
    """One line of a comparison: a method of a configuration, on the same clips for every seed.

    Args:
        configuration: name of the configuration.
        method: a modality, `sum`, or the decision layer.
        kind: how the decision layer was made; "modality" for a single modality.
        logits: one `(N, C)` array per seed, with NaN rows where the method does not answer.
        decides: True for a decision layer to compare, False for a baseline.
    """

    configuration: str
    method: str
    kind: str
    logits: list[np.ndarray]
    decides: bool = False

    @property
    def name(self) -> str:
        """Name of the configuration for its own head, else `configuration: method`."""
        own = self.decides and self.kind != FITTED_HERE
        return self.configuration if own else f"{self.configuration}: {self.method}"


def read_source(
    path: Path, *, name: str | None = None, split: str = "test", refit: bool = False, **options: Any
) -> Source:
    """Read a run folder or a decision table; fit a decision layer if it has none of its own.

    Args:
        path: folder of a run, or decision table.
        name: name to show; by default that of the folder or file.
        split: split to evaluate on. A table without it is evaluated out of fold, as `mmbalance decide` does, unless
            you ask for a split other than test.
        refit: also fit a decision layer to the logits of a run that has its own.
        **options: arguments of `decide_table`.

    Raises:
        TableError: if the table cannot be used or lacks the split, or the results of a run are damaged.
    """
    file = table_path(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = DecisionTable.read(file)
    name = name or table_name(path)
    source = Source(name, table, notes=[f"{name}: {entry.message}" for entry in caught])
    if (path / RESULTS).is_file():
        _read_results(source, path / RESULTS)
    own = "fused" in table.references
    try:
        if own:
            source.table = table.select(split)
        if refit or not own:
            # Use the same split of a run again, so that both of its decision layers answer the same clips.
            named = own or split != "test"
            judged = decide_table(table, eval_split=split if named else None, **options)
            source.table, source.refitted = judged.table, judged.fusions["adaptive"]
            source.notes += [f"{name}: {note}" for note in judged.notes]
    except TableError as error:
        raise TableError(f"{name}: {error}") from None
    return source


def _read_results(source: Source, file: Path) -> None:
    """Set head, configuration and seed of a run from its `results.json`."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        source.fusion = results.get("fusion")
        if "arguments" in results:
            source.configuration = _configuration(results["arguments"])
            source.seed = results["arguments"].get("seed"), results["arguments"].get("data_seed")
    except (ValueError, AttributeError) as error:
        raise TableError(f"{file}: damaged, or not the results of a run ({error}).") from error


def _configuration(arguments: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in arguments.items() if k not in OF_ONE_RUN}, sort_keys=True, default=str)


def align(sources: Sequence[Source]) -> DecisionTable:
    """Put the rows and classes of every source into the order of the first.

    Returns:
        The first source's table.

    Raises:
        TableError: if clips, labels, groups or classes differ; the message names the source and what differs.
    """
    first = sources[0]
    for source in sources[1:]:
        table, base = source.table, first.table
        if set(table.classes) != set(base.classes):
            raise TableError(_difference(source, first, "classes", table.classes, base.classes))
        if set(table.ids) != set(base.ids):
            raise TableError(_difference(source, first, "clips", table.ids, base.ids))
        place = {clip: i for i, clip in enumerate(table.ids)}
        rows = np.array([place[clip] for clip in base.ids])
        columns = [table.classes.index(name) for name in base.classes]
        taken = table.take(rows)
        source.table = replace(
            taken,
            labels=np.argsort(columns)[taken.labels],
            logits=taken.logits[..., columns],
            classes=base.classes,
            references={name: value[:, columns] for name, value in taken.references.items()},
            known=taken.known_classes[:, columns],
        )
        source.refitted = None if source.refitted is None else source.refitted[rows][:, columns]
        for what in ("labels", "groups"):
            ours, theirs = getattr(source.table, what), getattr(base, what)
            wrong = next((i for i in range(len(base)) if ours[i] != theirs[i]), None)
            if wrong is not None:
                raise TableError(
                    f"{source.name} and {first.name} disagree on the {what[:-1]} of clip {base.ids[wrong]!r}: they"
                    " hold different data under the same names"
                )
    return first.table


def _difference(source: Source, first: Source, what: str, ours: list[str], theirs: list[str]) -> str:
    only, missing = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    parts = [f"{len(only)} only in {source.name}, e.g. {only[0]!r}"] if only else []
    parts += [f"{len(missing)} only in {first.name}, e.g. {missing[0]!r}"] if missing else []
    return f"{source.name} and {first.name} have different {what} ({'; '.join(parts)}): compare runs on the same data"


def entries_of(sources: Sequence[Source]) -> list[Entry]:
    """Return the lines of the comparison: per configuration its decision layers, then its baselines and modalities."""
    grouped: dict[tuple[str, int], list[Source]] = {}
    same: Counter[tuple[str, tuple[Any, Any] | None]] = Counter()
    for index, source in enumerate(sources):
        configuration = source.configuration or f"table {index}"
        # A second run with the same seed is not another seed: it starts a configuration of its own.
        grouped.setdefault((configuration, same[configuration, source.seed]), []).append(source)
        same[configuration, source.seed] += 1
    found: list[Entry] = []
    for name, members in zip(_names(list(grouped.values())), grouped.values(), strict=True):
        if all("fused" in member.table.references for member in members):
            fusion = members[0].fusion
            kind = "in the table" if fusion is None else KINDS.get(fusion, "trained")
            fused = [member.table.references["fused"] for member in members]
            found.append(Entry(name, fusion or "own head", kind, fused, decides=True))
        if all(member.refitted is not None for member in members):
            refitted = [member.refitted for member in members if member.refitted is not None]
            found.append(Entry(name, "decision layer", FITTED_HERE, refitted, decides=True))
        each = [baselines(member.table) for member in members]
        own = {entry.method for entry in found if entry.configuration == name}
        for method in ("sum", "mean_prob", *members[0].table.modalities):
            if method not in own and all(method in one for one in each):
                kind = "modality" if method in members[0].table.modalities else "no parameters"
                found.append(Entry(name, method, kind, [one[method] for one in each]))
    return found


def _names(groups: list[list[Source]]) -> list[str]:
    """Return a name per configuration: its runs' name without the seed, its first run's name, or a numbered one."""
    short = [_without_seed(members[0]) for members in groups]
    names = [name if short.count(name) == 1 else members[0].name for name, members in zip(short, groups, strict=True)]
    numbered = [f"{name} ({names[: place + 1].count(name)})" for place, name in enumerate(names)]
    return [name if names.count(name) == 1 else other for name, other in zip(names, numbered, strict=True)]


def _without_seed(run: Source) -> str:
    """Return the name of a run without the seed at its end (`-s0`, `_seed1`); a table keeps its name."""
    if run.configuration is None:
        return run.name
    return re.sub(r"([-_.]s|[-_.]?seed)[-_]?\d+$", "", run.name) or run.name


def compare_sources(
    sources: Sequence[Source], *, baseline: str | None = None, draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Evaluate every decision layer and every modality of runs or tables on the same clips.

    Args:
        sources: runs and tables from `read_source`.
        baseline: configuration to compare all others with; None compares every pair.
        draws: number of bootstrap draws; the sign flips use five times as many.
        seed: random seed of both.

    Returns:
        A dict with the number of evaluated rows `n` and of the clips they are draws of, `n_clips`; `rows`, one per
        method of a configuration, with the mean over seeds of accuracy, macro-F1, NLL and ECE, its 95 % interval over
        clips (over groups if there are at least 5) and the standard deviation over seeds; and paired `differences`,
        with p values by sign flips of whole groups before and after Holm's correction.

    Raises:
        TableError: if the sources have different clips or classes, or the baseline is unknown.
    """
    table = align(sources)
    entries = entries_of(sources)
    unit, counts = resampled_counts(table.units, len(table), draws=draws, seed=seed)
    rows = [_row(entry, table, unit, counts) for entry in entries]
    pairs = _pairs(entries, baseline)
    differences = [_paired(a, b, table, draws, seed) for a, b in pairs]
    for name in ("accuracy", "nll"):
        for difference, corrected in zip(differences, holm([d[f"{name}_p"] for d in differences]), strict=True):
            difference[f"{name}_p_holm"] = corrected
    return {
        "n": len(table),
        "n_clips": table.clip_count,
        "groups": len(set(table.groups)),
        "classes": table.classes,
        "ci_unit": ci_unit(table.groups),
        "rows": rows,
        "differences": differences,
        "notes": list(dict.fromkeys(note for source in sources for note in source.notes)),
    }


def _row(entry: Entry, table: DecisionTable, unit: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    there = ~np.isnan(entry.logits).any(axis=(0, 2))  # answered in every seed
    row: dict[str, Any] = {"configuration": entry.configuration, "method": entry.method, "kind": entry.kind,
                           "seeds": len(entry.logits), "n": int(there.sum())}  # fmt: skip
    if not there.any():
        empty = {name: None for measure in MEASURES for name in (measure, f"{measure}_ci", f"{measure}_sd")}
        return row | empty
    size = counts.shape[1]
    sums = [UnitSums.of(logits[there], table.labels[there], unit[there], size) for logits in entry.logits]
    points = [one.measure(np.ones((1, size))) for one in sums]
    drawn = [one.measure(counts) for one in sums]
    for measure in MEASURES:
        values = np.array([point[measure][0] for point in points])
        means = np.mean([draw[measure] for draw in drawn], axis=0)
        row[measure] = float(values.mean())
        row[f"{measure}_ci"] = np.nanquantile(means, [0.025, 0.975]).tolist()
        row[f"{measure}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
    return row


def _pairs(entries: list[Entry], baseline: str | None) -> list[tuple[Entry, Entry]]:
    """Pair decision layers with each other and, within a configuration, with the sum of the same towers."""
    heads = [entry for entry in entries if entry.decides]
    if baseline is not None:
        chosen = [entry for entry in heads if baseline in (entry.configuration, entry.name)]
        if not chosen:
            names = ", ".join(dict.fromkeys(entry.name for entry in heads))
            raise TableError(f"--baseline {baseline!r} is not one of {names}.")
        return [(entry, chosen[0]) for entry in heads if entry is not chosen[0]]
    sums = {entry.configuration: entry for entry in entries if entry.method == "sum"}
    within = [(entry, sums[entry.configuration]) for entry in heads if entry is not sums.get(entry.configuration)]
    return [*combinations(heads, 2), *within]


def _paired(first: Entry, second: Entry, table: DecisionTable, draws: int, seed: int) -> dict[str, Any]:
    units = np.asarray(table.units)
    found: dict[str, Any] = {"first": first.name, "second": second.name}
    for name, of_clips in (("accuracy", correct), ("nll", clip_nll)):
        ours, theirs = (_mean_over_seeds(entry, table, of_clips) for entry in (first, second))
        delta = ours - theirs
        delta[np.abs(delta) < EQUAL] = 0.0
        there = ~np.isnan(delta)
        found["n"] = int(there.sum())
        if not there.any():
            found |= {name: None, f"{name}_ci": None, f"{name}_p": 1.0}
            continue
        found[name] = float(delta[there].mean())
        found[f"{name}_ci"] = list(bootstrap_ci(delta[there], units[there], draws=draws, seed=seed))
        found[f"{name}_p"] = sign_flip_p(delta[there], units[there], draws=draws * 5, seed=seed)
    return found


def _mean_over_seeds(entry: Entry, table: DecisionTable, of_clips: Any) -> np.ndarray:
    """Return the mean over seeds of a value per clip; NaN where the method does not answer."""
    values = np.full((len(entry.logits), len(table)), np.nan)
    for seed, logits in enumerate(entry.logits):
        there = ~np.isnan(logits).any(axis=1)
        values[seed, there] = of_clips(logits[there], table.labels[there])
    return values.mean(axis=0)
