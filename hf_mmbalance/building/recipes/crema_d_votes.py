"""CREMA-D's human votes as a decision table: votes on the voice, on the face, and on both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.building.recipes.crema_d import CLASSES, EMOTIONS, VOTE_KINDS, VOTES, human_votes


SMOOTHING = 0.5


def crema_d_votes(folder: str | os.PathLike[str], smoothing: float = SMOOTHING) -> dict[str, Any]:
    """Read `processedResults/tabulatedVotes.csv` of CREMA-D.

    Logits are log(votes + smoothing), with classes in the order anger, disgust, fear, happy, neutral, sad. The group
    is the actor. The votes on voice and face together are the reference `audiovisual`.

    Args:
        folder: CREMA-D's folder (or the CSV file itself).
        smoothing: number added to every count.

    Returns:
        The fields of a `DecisionTable`, with clips in order of their names, all in split "test".

    Raises:
        DataError: the CSV does not exist, a row of it cannot be read, or a clip has only some of the three ratings.
    """
    path = Path(folder)
    votes = human_votes(path if path.suffix == ".csv" else path / VOTES)
    ids = sorted(votes)
    logits = np.log(np.array([[votes[name][kind] for kind in VOTE_KINDS] for name in ids]) + smoothing)
    return {
        "ids": ids,
        "groups": [name.split("_")[0] for name in ids],
        "splits": ["test"] * len(ids),
        "labels": np.array([list(EMOTIONS).index(name.split("_")[2]) for name in ids]),
        "logits": logits[:, :2],
        "classes": list(CLASSES),
        "modalities": ["voice", "face"],
        "references": {"audiovisual": logits[:, 2]},
        "kind": "logits",
    }
