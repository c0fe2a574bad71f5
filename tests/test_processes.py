"""What one process learns every process is told: an error too, or the others would wait for an answer."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from hf_mmbalance import processes
from hf_mmbalance.hub.errors import HubError


def errors_of_both(monkeypatch, error: Exception) -> list[Exception]:
    """What the main process and another one raise where the main one meets an error."""
    sent: list[bytes] = []
    raised: list[Exception] = []

    def broadcast(answer: list) -> list:
        sent.append(pickle.dumps(answer))
        return answer if len(sent) == 1 else pickle.loads(sent[0])

    def fail() -> None:
        raise error

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    for main in (True, False):
        state = SimpleNamespace(is_main_process=main, num_processes=2)
        monkeypatch.setattr(processes, "PartialState", lambda state=state: state)
        with pytest.raises(Exception) as caught:  # noqa: PT011  # of any kind
            processes.call_in_main_process(fail if main else lambda: pytest.fail("asked twice"))
        raised.append(caught.value)
    assert len(sent) == 2
    return raised


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        HubError("no token"),
        PermissionError(13, "Permission denied", "/outputs"),
        ImportError("soundfile"),
        ZeroDivisionError("a fault of ours"),
    ],
)
def test_an_error_of_the_main_process_is_every_process_s(monkeypatch, error):
    first, second = errors_of_both(monkeypatch, error)
    assert first is error and type(second) is type(error) and str(second) == str(error)


class Unsendable(Exception):
    """Pickled it is, but not read again: that takes two values, and one is kept."""

    def __init__(self, first: str, second: str):
        super().__init__(f"{first} {second}")


def test_an_error_that_cannot_be_sent_is_told_in_words(monkeypatch):
    first, second = errors_of_both(monkeypatch, Unsendable("disk", "full"))
    assert type(first) is Unsendable
    assert type(second) is RuntimeError and str(second) == "Unsendable: disk full"


@pytest.mark.parametrize("first", [True, False])
def test_where_the_first_process_fails_the_others_do_not_wait_for_it(monkeypatch, first):
    waited = []
    state = SimpleNamespace(is_local_main_process=first, wait_for_everyone=lambda: waited.append(first))
    monkeypatch.setattr(processes, "PartialState", lambda: state)
    with pytest.raises(ValueError, match="no such clips"), processes.local_main_process_first():
        raise ValueError("no such clips")
    assert waited == [first]
