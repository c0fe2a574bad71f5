"""What one process learns every process is told: an error too, or the others would wait for an answer."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from hf_mmbalance import processes
from hf_mmbalance.hub.errors import HubError


@pytest.mark.parametrize(
    "error", [ValueError("no"), HubError("no token"), PermissionError(13, "Permission denied", "/outputs")]
)
def test_an_error_of_the_main_process_is_every_process_s(monkeypatch, error):
    sent: list[bytes] = []

    def broadcast(answer: list) -> list:
        sent.append(pickle.dumps(answer))
        return answer if len(sent) == 1 else pickle.loads(sent[0])

    def fail() -> None:
        raise error

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    for main in (True, False):
        state = SimpleNamespace(is_main_process=main, num_processes=2)
        monkeypatch.setattr(processes, "PartialState", lambda state=state: state)
        with pytest.raises(type(error)) as caught:
            processes.answered_by_main(fail if main else lambda: pytest.fail("asked twice"))
        assert str(caught.value) == str(error)
    assert len(sent) == 2
