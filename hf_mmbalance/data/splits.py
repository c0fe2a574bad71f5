"""Split a dataset by whole groups if there are enough, else by clip; the result is the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_mmbalance.data.clips import ClipSplits, DataError
from hf_mmbalance.data.seeding import rng_for


MIN_GROUPS = 5  # with fewer, holding one out would change the task
FEW_PER_CLASS = 3  # calibration clips; with fewer, values fitted by class are mostly noise


def choose_part(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[str],
    fraction: float,
    *,
    seed: int,
    name: str,
    by_group: bool | None = None,
    at_least: int = 1,
) -> tuple[np.ndarray, str]:
    """Choose a part of the clips, balanced by class, in whole groups if there are at least five.

    Whole groups are added one by one: at each step, the group that brings the part's class counts nearest (L1) to
    `fraction` of all. Ties are resolved by a seeded order. With fewer groups, each class gives its own share of clips.

    Args:
        ids, labels, groups: one entry per clip.
        fraction: fraction of the clips to choose, in (0, 1).
        seed: seed of the order.
        name: name of the part, e.g. `calibration`; the order also depends on it.
        by_group: whether to choose whole groups; None decides by the number of groups.
        at_least: smallest number of groups, if groups are chosen.

    Returns:
        Boolean mask of the chosen clips, and a text that says how they were chosen.

    Raises:
        DataError: an invalid fraction, or too few clips for two parts.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the {name} fraction must be between 0 and 1, got {fraction}")
    if len(ids) < 2:
        raise DataError(f"{len(ids)} clips cannot be divided to make a {name} split; give the splits yourself")
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    whole = len(names) >= MIN_GROUPS if by_group is None else by_group
    if whole and 1 < len(names) < len(ids):
        return _by_group(names, group_of, np.asarray(labels), fraction, seed, name, at_least)
    mask = _by_clip(ids, np.asarray(labels), fraction, seed, name)
    few = "" if len(names) == len(ids) else f" (only {len(names)} group{'s' if len(names) > 1 else ''})"
    return mask, "by clip, balanced by class" + few


def _by_clip(ids: Sequence[str], labels: np.ndarray, fraction: float, seed: int, name: str) -> np.ndarray:
    draws = np.array([rng_for(seed, name, clip).random() for clip in ids])
    mask = np.zeros(len(ids), dtype=bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(places)), 1), len(places) - 1)
        mask[places[np.argsort(draws[places], kind="stable")[:count]]] = True
    return mask


def _by_group(
    names: np.ndarray, group_of: np.ndarray, labels: np.ndarray, fraction: float, seed: int, name: str, at_least: int
) -> tuple[np.ndarray, str]:
    order = np.argsort([rng_for(seed, name, "group", group).random() for group in names], kind="stable")
    place = np.argsort(order)[group_of]  # groups numbered in the seeded order; of equal groups the first is taken
    (group, label), count = np.unique(np.stack([place, labels]), axis=1, return_counts=True)
    target, have = fraction * np.bincount(labels), np.zeros(labels.max() + 1)
    free = np.ones(len(names), dtype=bool)
    while free.sum() > 1:
        nearer = np.abs(have[label] - target[label]) - np.abs(have[label] + count - target[label])
        # Rounded, so that ties are ties on every machine.
        gain = np.where(free, np.bincount(group, nearer).round(6), -np.inf)
        best = int(gain.argmax())
        if (~free).sum() >= at_least and gain[best] <= 0:
            break
        have[label[group == best]] += count[group == best]
        free[best] = False
    return ~free[place], f"whole groups ({(~free).sum()} of {len(names)})"


def fill_splits(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[str],
    splits: Sequence[str | None],
    *,
    fractions: dict[str, float],
    seed: int,
) -> tuple[list[str], list[str]]:
    """Assign every clip to a split; take absent splits from train.

    Args:
        ids, labels, groups: one entry per clip.
        splits: for every clip train, calibration, validation, test, or None (which counts as train).
        fractions: fractions of the train clips for `test`, `validation` and `calibration`; 0 leaves an absent split
            out.
        seed: seed of the splits.

    Returns:
        A split for every clip, and notes that say what was done.
    """
    out = np.array([split or "train" for split in splits], dtype=object)
    notes = []
    absent = [name for name in ("test", "validation", "calibration") if fractions.get(name) and name not in out]
    known = len({group for group, split in zip(groups, out, strict=True) if split == "train"})
    at_least = min(3, max(known // (2 * len(absent) + 2), 1))  # three groups allow cross-validation by group
    for name in absent:
        train = np.flatnonzero(out == "train").tolist()
        if len(train) == 0:
            raise DataError(
                f"there is no train split to take {name} from (only {', '.join(sorted(set(out)))}): name one train; an"
                " adapter does this for a dataset on the Hub (docs/data.md)"
            )
        mask, how = choose_part(
            [ids[i] for i in train],
            [labels[i] for i in train],
            [groups[i] for i in train],
            fractions[name],
            seed=seed,
            name=name,
            by_group=known >= MIN_GROUPS,
            at_least=at_least,
        )
        out[np.array(train)[mask]] = name
        if mask.any():
            notes.append(f"the source has no {name} split: {mask.sum()} of {len(train)} train clips were taken, {how}")
        else:
            notes.append(f"the source has no {name} split, and none can be taken from train: every class has one clip")
    return list(out), notes


def coverage_notes(clips: ClipSplits) -> list[str]:
    """Return notes on classes that are absent from a split, and on a very small calibration split."""
    notes = []
    for split, part in clips.splits.items():
        missing = [name for name, count in part.class_counts().items() if not count]
        if missing:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            what = {"train": "cannot be learned", "test": "are not tested"}.get(
                split, "are ignored where that split is used"
            )
            notes.append(f"{len(missing)} of {len(clips.classes)} classes have no {split} clip and {what}: {named}")
    calibration = clips.splits.get("calibration")
    per_class = 0.0 if calibration is None else len(calibration) / len(clips.classes)
    if 0 < per_class < FEW_PER_CLASS:
        notes.append(
            f"about {per_class:.1f} calibration clip(s) per class: too few to fit the decision layer by class; give"
            " more clips, or a larger calibration_fraction"
        )
    return notes
