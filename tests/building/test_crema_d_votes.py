"""The reader of CREMA-D's human votes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf_mmbalance.building.recipes.crema_d_votes import crema_d_votes
from hf_mmbalance.data import DataError
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics.measures import accuracy


HEAD = '"","A","D","F","H","N","S","fileName","numResponses"\n'
ROWS = (
    '"100001",0,0,0,1,9,0,"1002_IEO_NEU_XX",10\n"200001",1,0,0,2,7,0,"1002_IEO_NEU_XX",10\n'
    '"300001",0,0,0,0,10,0,"1002_IEO_NEU_XX",10\n"100002",5,5,0,0,0,0,"1001_DFA_ANG_HI",10\n'
    '"200002",8,1,1,0,0,0,"1001_DFA_ANG_HI",10\n"300002",9,1,0,0,0,0,"1001_DFA_ANG_HI",10\n'
)


def test_votes_become_logits(tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_text(HEAD + ROWS)
    table = DecisionTable(**crema_d_votes(tmp_path / "votes.csv"))
    assert table.ids == ["1001_DFA_ANG_HI", "1002_IEO_NEU_XX"] and table.groups == ["1001", "1002"]
    assert [table.classes[label] for label in table.labels] == ["anger", "neutral"]
    np.testing.assert_allclose(table.logits[1, 0], np.log([0.5, 0.5, 0.5, 1.5, 9.5, 0.5]))
    np.testing.assert_allclose(table.logits[0, 1], np.log([8.5, 1.5, 1.5, 0.5, 0.5, 0.5]))
    np.testing.assert_allclose(table.references["audiovisual"][1], np.log([0.5, 0.5, 0.5, 0.5, 10.5, 0.5]))


def test_missing_files_and_ratings_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tabulatedVotes.csv: no such file.*CheyneyComputerScience"):
        crema_d_votes(tmp_path)
    (tmp_path / "votes.csv").write_text(HEAD + ROWS.rsplit('"300002"', 1)[0])
    with pytest.raises(DataError, match="1001_DFA_ANG_HI lacks some of its votes"):
        crema_d_votes(tmp_path / "votes.csv")


def test_the_real_votes_are_those_of_the_paper_trail(real_data: Path) -> None:
    table = DecisionTable(**crema_d_votes(real_data / "crema_d"))
    assert len(table) == 7442 and len(set(table.groups)) == 91
    assert np.bincount(table.labels).tolist() == [1271, 1271, 1271, 1271, 1087, 1271]
    assert accuracy(table.logits[:, 0], table.labels) == pytest.approx(0.455, abs=0.001)
    assert accuracy(table.logits[:, 1], table.labels) == pytest.approx(0.690, abs=0.001)
    assert accuracy(table.references["audiovisual"], table.labels) == pytest.approx(0.748, abs=0.001)
