"""Runs seeded cases in worker processes that may die, hang or use too much memory, and counts what became of them."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_mmbalance.building.workers import Answer, Worker, WorkerDied, ready

from . import media_cases, model_cases, row_cases, table_cases
from .outcome import outcome_of


# Of 1,000 cases.
SHARES = {"media": 500, "tables": 250, "rows": 100, "models": 150}
SECONDS = 10.0  # a case that takes longer hangs
MEMORY = 2 << 30  # bytes a case may use at most
START_SECONDS = 120.0  # importing torch in a new worker on a busy machine


@dataclass
class Counts:
    """Outcomes by kind of case, and descriptions of what failed."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: str, description: str) -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1
        if outcome == "failed":
            self.failures.append(f"{kind} {description}")

    def __str__(self) -> str:
        lines = [f"{'kind':<8} {'answered':>9} {'refused':>8} {'failed':>7}"]
        total: Counter[str] = Counter()
        for kind, found in self.outcomes.items():
            lines.append(f"{kind:<8} {found['answered']:>9} {found['refused']:>8} {found['failed']:>7}")
            total += found
        return "\n".join([*lines, f"{'all':<8} {total['answered']:>9} {total['refused']:>8} {total['failed']:>7}"])


@dataclass(frozen=True)
class FuzzJob:
    """Runs single cases, in a worker."""

    bases: Path

    def __call__(self, request: tuple[str, int, int]) -> Answer:
        """`request`: kind, seed and number of a case; answers its outcome, description and use of memory."""
        kind, seed, number = request
        _prepare()
        yield "started"
        before = _peak_memory()
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            rng = np.random.default_rng([seed, number])
            outcome, description = outcome_of(self.case(kind, folder, rng), str(folder))
            used = _peak_memory() - before
            if used > MEMORY:
                return "failed", f"{description}: {used / 2**30:.1f} GiB"
            return outcome, description
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def case(self, kind: str, folder: Path, rng: np.random.Generator) -> Iterator[str]:
        if kind == "media":
            return media_cases.run_case(self.bases / "media", folder, rng)
        if kind == "tables":
            return table_cases.run_case(folder, rng)
        if kind == "rows":
            return row_cases.run_case(folder, rng)
        return model_cases.run_case(self.bases / "model", folder, rng)


def _prepare() -> None:
    """Once per worker: imports that would count as a case's time, no output, no network, no more than 12 GiB."""
    if os.environ.get("HF_HUB_OFFLINE") == "1" and "FUZZ_READY" in os.environ:
        return
    os.environ |= {"FUZZ_READY": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    import datasets
    import torch
    from transformers.utils import logging

    import hf_mmbalance.hub.predict  # noqa: F401
    from hf_mmbalance import AudioVisualClassificationPipeline  # noqa: F401

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, resource.RLIM_INFINITY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print on their own


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(seed: int, cases: int, kinds: tuple[str, ...] = tuple(SHARES)) -> Counts:
    """Run `cases` cases of one seed; the same seed gives the same cases."""
    counts, worker = Counts(), None
    with tempfile.TemporaryDirectory(prefix="fuzz-bases-") as made:
        bases = Path(made)
        media_cases.write_bases(bases / "media")
        model_cases.write_base(bases / "model")
        for request in _plan(seed, cases, kinds):
            worker = worker or Worker(FuzzJob(bases))
            outcome, description = _ask(worker, request)
            counts.add(request[0], outcome, f"seed {seed} case {request[2]}: {description}")
            if outcome == "failed":  # it may be dead, hang, or hold much memory
                worker.stop()
                worker = None
    if worker is not None:
        worker.stop()
    return counts


def _plan(seed: int, cases: int, kinds: tuple[str, ...]) -> list[tuple[str, int, int]]:
    total = sum(SHARES[kind] for kind in kinds)
    plan = [(kind, seed, number) for kind in kinds for number in range(round(cases * SHARES[kind] / total))]
    return plan


def _ask(worker: Worker, request: tuple[str, int, int]) -> tuple[str, str]:
    """The outcome of a case; the death of its process and an answer that does not come are failures."""
    worker.send(request)
    for limit in (START_SECONDS, SECONDS):
        if not ready([worker], limit):
            return "failed", f"hangs: no answer within {limit:g} s"
        try:
            answered, content = worker.receive()
        except WorkerDied as death:
            return "failed", f"its process died ({death})"
    return content if answered else ("failed", "no answer")
