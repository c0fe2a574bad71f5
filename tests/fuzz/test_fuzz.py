"""No damaged or impossible input crashes, hangs, fills the memory, is refused unclearly or gives wrong numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

from hf_mmbalance.building.workers import Answer, Worker
from hf_mmbalance.model.media_mmbalance import MediaError

from . import runner
from .outcome import WrongAnswer, outcome_of


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", list(runner.SHARES))
def test_a_thousand_cases(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("FUZZ_SEED", "0"))
    counts = runner.run(seed, runner.SHARES[kind], (kind,))
    with capsys.disabled():
        print(f"\nseed {seed}\n{counts}")  # noqa: T201
    assert counts.failures == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MediaError("empty", "/case/a.mp4: the file is empty"), "refused"),
        (ValueError("/case/a.mp4 is odd"), "refused"),
        (ValueError("not enough values to unpack"), "failed"),
        (IndexError("/case/a.mp4"), "failed"),
        (MemoryError(), "failed"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "/case/a.mp4"), "failed"),
        (WrongAnswer("NaN"), "failed"),
        (None, "answered"),
    ],
)
def test_what_counts_as_a_clear_refusal(error: Exception | None, outcome: str) -> None:
    def case() -> Iterator[str]:
        if error is not None:
            raise error
        yield from ()

    assert outcome_of(case(), "a.mp4", "/case/")[0] == outcome


def _dies(request: str) -> Answer:
    yield "started"
    if request == "die":
        os.abort()
    if request == "hang":
        time.sleep(60)
    return "answered", request


@pytest.mark.parametrize(
    ("request_", "words"), [("die", "SIGABRT"), ("hang", "no answer within 0.5 s"), ("go on", "go")]
)
def test_deaths_and_hangs_are_failures(request_: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SECONDS", 0.5)
    worker = Worker(_dies)
    try:
        outcome, description = runner._ask(worker, request_)  # type: ignore[arg-type]
    finally:
        worker.stop()
    assert words in description and outcome == ("answered" if request_ == "go on" else "failed")


def test_a_seed_gives_the_same_cases() -> None:
    draws = [np.random.default_rng([3, 7]).integers(1 << 30) for _ in range(2)]
    assert draws[0] == draws[1]
    assert runner._plan(0, 1000, tuple(runner.SHARES))[:2] == [("media", 0, 0), ("media", 0, 1)]
    assert len(runner._plan(0, 1000, tuple(runner.SHARES))) == 1000
