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
from functools import cache
from pathlib import Path

import numpy as np

from hf_mmbalance.building.workers import Answer, Worker, WorkerDied, ready

from . import media_cases, model_cases, row_cases, table_cases
from .outcome import outcome_of


# Of 1,000 cases.
SHARES = {"media": 600, "tables": 280, "rows": 60, "models": 60}
SECONDS = 10.0  # a case that takes longer hangs
MEMORY = 2 << 30  # bytes a case may use at most
ADDRESS_SPACE = 16 << 30  # bytes; a case that wants more than this gets a MemoryError, and the machine is spared
START_SECONDS = 400.0  # importing torch in a new worker on a busy machine


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
        _prepare(kind)
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            case = self.case(kind, folder, np.random.default_rng([seed, number]))
            described = next(case)
            before = _peak_memory()
            yield described
            outcome, description = outcome_of(case, described, str(folder))
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


@cache
def _prepare(kind: str) -> None:
    """Once per worker and kind: imports that would count as a case's time, no output, no network, bounded memory."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    if kind == "rows":
        import datasets

        import hf_mmbalance.data.sources.hub  # noqa: F401

        datasets.disable_progress_bars()
    if kind == "models":
        import torch
        from transformers.utils import logging

        import hf_mmbalance

        assert hf_mmbalance.AudioVisualClassificationPipeline
        torch.set_num_threads(1)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.RLIM_INFINITY))
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
    described = "before it began"
    for limit in (START_SECONDS, SECONDS):
        if not ready([worker], limit):
            return "failed", f"{described}: no answer within {limit:g} s"
        try:
            answered, content = worker.receive()
        except WorkerDied as death:
            return "failed", f"{described}: its process died ({death})"
        except Exception as error:
            return "failed", f"{described}: the case itself is wrong ({type(error).__name__}: {error})"
        described = content if not answered else described
    return content
