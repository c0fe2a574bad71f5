"""CREMA-D's human votes as a decision table: of the voice, of the face, and of both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.building.csv_files import parsed, read_csv


LETTERS = "ADFHNS"
CLASSES = ["anger", "disgust", "fear", "happy", "neutral", "sad"]
MODALITIES = ["voice", "face"]
SMOOTHING = 0.5


def crema_d_votes(folder: str | os.PathLike[str], smoothing: float = SMOOTHING) -> dict[str, Any]:
    """Read `processedResults/tabulatedVotes.csv` of CREMA-D.

    Logits are log(votes + smoothing), classes in the order anger, disgust, fear, happy, neutral, sad; the group is the
    actor. The votes on voice and face together are the reference `audio_visual`.

    Args:
        folder: CREMA-D's folder (or the CSV file itself).
        smoothing: added to every count.

    Returns:
        The fields of a `DecisionTable`, clips in order of their names, all in split "test".

    Raises:
        FileNotFoundError: if the CSV is not there; the message says where to get it.
        DataError: if a row cannot be read.
        ValueError: if a clip lacks one of the three ratings.
    """
    path = Path(folder)
    path = path if path.suffix == ".csv" else path / "processedResults" / "tabulatedVotes.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; it is part of https://github.com/CheyneyComputerScience/CREMA-D.")
    votes: dict[str, dict[str, list[float]]] = {}

    def counts(row: dict[str, str]) -> tuple[str, str, list[float]]:
        emotion = row["fileName"].split("_")[2][0]
        if emotion not in LETTERS:
            raise ValueError(f"{row['fileName']!r} is not a CREMA-D clip")
        # Row ids are 1xxxxx for voice, 2xxxxx for face, 3xxxxx for both.
        return row["fileName"], row[""][0], [float(row[letter]) for letter in LETTERS]

    rows = read_csv(path, ("", "fileName", *LETTERS), "it is part of the CREMA-D repository")
    for name, part, row in parsed(path, rows, counts):
        votes.setdefault(name, {})[part] = row
    incomplete = [name for name, rated in votes.items() if sorted(rated) != ["1", "2", "3"]]
    if incomplete:
        raise ValueError(
            f"{path}: {len(incomplete)} clip(s) lack a rating, e.g. {incomplete[0]}; the file is incomplete."
        )
    ids = sorted(votes)
    logits = np.log(np.array([[votes[name][part] for part in "123"] for name in ids]) + smoothing)
    return {
        "ids": ids,
        "groups": [name.split("_")[0] for name in ids],
        "splits": ["test"] * len(ids),
        "labels": np.array([LETTERS.index(name.split("_")[2][0]) for name in ids]),
        "logits": logits[:, :2],
        "classes": list(CLASSES),
        "modalities": list(MODALITIES),
        "references": {"audio_visual": logits[:, 2]},
        "kind": "logits",
    }
