"""Plan of a CREMA-D build from its official repository: actors, sentences, human votes, actor-disjoint folds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from hf_mmbalance.building.csv_files import parsed, read_csv, read_text
from hf_mmbalance.building.encode import class_label, file_size, list_of, value
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip, check_ids
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.data.seeding import rng_for
from hf_mmbalance.data.splits import choose_part


# Cao et al., CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE Trans. Affective Computing 5(4), 2014.
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
CLASSES = list(EMOTIONS.values())
VOTE_LETTERS = "ADFHNS"  # in the order of CLASSES
VOTE_KINDS = ("votes_voice", "votes_face", "votes_audiovisual")
VOTES, DEMOGRAPHICS = "processedResults/tabulatedVotes.csv", "VideoDemographics.csv"
CLONE = "take it from a clone of https://github.com/CheyneyComputerScience/CREMA-D"
INTENSITIES = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified"}
SENTENCES = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}
CLIPS, FOLDS = 7442, 10
ALIASES = {"1040_ITH_SAD_X": "1040_ITH_SAD_XX"}  # upstream issue 6: a file name without its last letter
# Upstream issue 8: FLV and MP3 last over a minute, but the sentence takes about four seconds; the WAV is right.
KNOWN_BAD = ("1064_IEO_DIS_MD", "1064_TIE_SAD_XX", "1076_MTI_NEU_XX", "1076_MTI_SAD_XX")
BAD_WINDOW = 4.0  # seconds, used if there is no WAV to give the length
OGM_SHA256 = {
    "train": "68d0d3fd253830328fc92c68f3cf2e215db8c5b86757ad9c5112d2c76ba68bde",
    "test": "14866c99301fd56fb4a16f8a7048a8a6372a47069aee9f216443bc718be45f1f",
}
OGM_VALIDATION = 0.1
MIRRORS = (
    "run `git lfs pull` in the repository, or take the files from the GitLab mirror (cs-cooper-lab/crema-d-mirror)"
)

FEATURES: dict[str, dict[str, Any]] = {
    "actor": value("string"),
    "sex": class_label(["female", "male"]),
    "age": value("int32"),
    "race": value("string"),
    "ethnicity": value("string"),
    "sentence": class_label(list(SENTENCES)),
    "sentence_text": value("string"),
    "intensity": class_label(list(INTENSITIES.values())),
    **{kind: list_of(value("int32")) for kind in VOTE_KINDS},
    "fold": value("int32"),
}


def plan_crema_d(
    source: Path,
    encode: EncodeOptions,
    *,
    checksums: Path | None = None,
    ogm_split: Path | None = None,
    clips_per_shard: int = 128,
    max_lost: float = 1.0,
) -> BuildPlan:
    """Plan the build of all 7,442 clips.

    Args:
        source: clone of the official repository (with AudioWAV, VideoFlash and the CSV files).
        encode: how clips are stored.
        checksums: list `path,sha256,bytes` of the official media; by default `media_sha256.csv` in the source, if
            present.
        ogm_split: folder with `train.csv` and `test.csv` of the OGM-GE split; by default `splits/ogm` in the source,
            if present. Without it, there is no configuration `ogm`.
        clips_per_shard: clips per shard.
        max_lost: largest fraction of clips that can be lost.

    Returns:
        The plan; it includes clips without media, with the reason.

    Raises:
        DataError: the source has no tables or no media at all, or a split names unknown clips.
    """
    names = stimuli(source)
    actors, votes = demographics(source), human_votes(source / VOTES)
    _check_complete(source / DEMOGRAPHICS, {name.split("_")[0] for name in names}, actors)
    _check_complete(source / VOTES, set(names), votes)
    folds = actor_folds({actor: row["sex"] for actor, row in actors.items()}, names)
    notes: list[str] = []
    ogm = ogm_splits(source, ogm_split, names, notes)
    media = _Media(source, _checksums(source, checksums))
    clips = []
    for name in names:
        actor, _, emotion, _ = name.split("_")
        columns = _columns(name, actors[actor]) | votes[name] | {"fold": folds[actor]}
        cell = f"part{folds[actor]}" + (f"-ogm_{ogm[name]}" if ogm else "")
        clips.append(media.clip(name, cell, list(EMOTIONS).index(emotion), columns))
    return BuildPlan(
        name="crema_d",
        clips=clips,
        classes=CLASSES,
        label_column="emotion",
        group_column="actor",
        features=FEATURES,
        configs=_configs(bool(ogm)),
        encode=encode,
        clips_per_shard=clips_per_shard,
        shared_groups_allowed=("ogm",),
        max_lost=max_lost,
        notes=notes + media.notes(clips),
    )


def _columns(name: str, actor: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a clip that follows from its name and its actor."""
    number, sentence, _, level = name.split("_")
    return {
        "actor": number,
        **actor,
        "sex": FEATURES["sex"]["names"].index(actor["sex"]),
        "sentence": list(SENTENCES).index(sentence),
        "sentence_text": SENTENCES[sentence],
        "intensity": list(INTENSITIES).index(level),
    }


def _check_complete(path: Path, wanted: set[str], found: Collection[str]) -> None:
    absent = sorted(wanted.difference(found))
    if absent:
        raise DataError(f"{path}: {len(absent)} of {len(wanted)} are not in it, e.g. {absent[0]}; {CLONE}")


def stimuli(source: Path) -> list[str]:
    """Read the official clip names, in order, from `SentenceFilenames.csv`.

    Raises:
        DataError: the table is missing or names clips that are not in CREMA-D.
    """
    rows = read_csv(source / "SentenceFilenames.csv", ("Filename",), CLONE)
    names = sorted(ALIASES.get(row["Filename"], row["Filename"]) for row in rows)
    for name in names:
        parts = name.split("_")
        if len(parts) != 4 or parts[1] not in SENTENCES or parts[2] not in EMOTIONS or parts[3] not in INTENSITIES:
            raise DataError(f"{source / 'SentenceFilenames.csv'}: {name!r} is not a CREMA-D clip")
    if len(names) != CLIPS or len(set(names)) != CLIPS:
        raise DataError(f"{source / 'SentenceFilenames.csv'}: {len(set(names))} names where CREMA-D has {CLIPS} clips")
    return names


def demographics(source: Path) -> dict[str, dict[str, Any]]:
    """Read sex, age (years), race and ethnicity of every actor.

    Raises:
        DataError: the table is missing, or a row of it cannot be read.
    """
    path = source / DEMOGRAPHICS

    def actor(row: dict[str, str]) -> tuple[str, dict[str, Any]]:
        sex = row["Sex"].lower()
        if sex not in FEATURES["sex"]["names"]:
            raise DataError(f"the sex {row['Sex']!r} is not among {', '.join(FEATURES['sex']['names'])}")
        entry = {"sex": sex, "age": int(row["Age"]), "race": row["Race"], "ethnicity": row["Ethnicity"]}
        return row["ActorID"], entry

    return dict(parsed(path, read_csv(path, ("ActorID", "Age", "Sex", "Race", "Ethnicity"), CLONE), actor))


def human_votes(path: Path) -> dict[str, dict[str, list[int]]]:
    """Read the vote counts of every clip, by voice, face and both, in the order of `CLASSES`.

    Args:
        path: `tabulatedVotes.csv`.

    Raises:
        DataError: the table is missing, names a clip that is not in CREMA-D, or has no votes of one kind for a clip.
    """
    kinds = dict(zip("123", VOTE_KINDS, strict=True))  # row ids are 1xxxxx for voice, 2xxxxx for face, 3xxxxx for both
    out: dict[str, dict[str, list[int]]] = {}

    def votes(row: dict[str, str]) -> tuple[str, str, list[int]]:
        name = ALIASES.get(row["fileName"], row["fileName"])
        if name.split("_")[2] not in EMOTIONS:
            raise DataError(f"{name!r} is not a CREMA-D clip")
        return name, kinds[row[""][0]], [int(row[letter]) for letter in VOTE_LETTERS]

    for name, kind, counts in parsed(path, read_csv(path, ("", "fileName", *VOTE_LETTERS), CLONE), votes):
        out.setdefault(name, {})[kind] = counts
    short = [name for name, found in out.items() if len(found) != len(VOTE_KINDS)]
    if short:
        raise DataError(f"{path}: {short[0]} lacks some of its votes; download the file again")
    return out


def actor_folds(sexes: dict[str, str], names: list[str]) -> dict[str, int]:
    """Assign actors to ten parts, balanced by sex and emotion; the result is the same on every machine.

    Actors are assigned one sex after the other, in the order of a seeded hash of the actor's number. Each goes to the
    part that has the fewest actors of that sex, then the fewest actors, then the most even counts of emotions (least
    sum of squares), then the lowest number. Fold k tests on part k, validates on part k + 1 (modulo ten) and trains on
    the rest.

    Args:
        sexes: sex of every actor.
        names: clip names.

    Returns:
        Part of every actor.
    """
    counts = {actor: np.zeros(len(EMOTIONS), dtype=np.int64) for actor in sexes}
    for name in names:
        actor, _, emotion, _ = name.split("_")
        counts[actor][list(EMOTIONS).index(emotion)] += 1
    have = np.zeros((FOLDS, len(EMOTIONS)), dtype=np.int64)
    of_sex: Counter[tuple[str, int]] = Counter()
    size: Counter[int] = Counter()
    folds = {}
    for sex in sorted(set(sexes.values()), reverse=True):
        actors = sorted(actor for actor in sexes if sexes[actor] == sex)
        for actor in sorted(actors, key=lambda name: rng_for("crema_d folds", name).random()):
            part = min(
                range(FOLDS),
                key=lambda k: (of_sex[sex, k], size[k], int(((have[k] + counts[actor]) ** 2).sum()), k),
            )
            folds[actor] = part
            of_sex[sex, part] += 1
            size[part] += 1
            have[part] += counts[actor]
    return folds


def ogm_splits(source: Path, folder: Path | None, names: list[str], notes: list[str]) -> dict[str, str]:
    """Return the split of every clip in the usual OGM-GE lists, with validation taken from train; {} without lists.

    Raises:
        DataError: the files are missing, name unknown clips, or do not cover CREMA-D.
    """
    folder = folder or source / "splits" / "ogm"
    paths = {split: folder / f"{split}.csv" for split in OGM_SHA256}
    if not all(path.exists() for path in paths.values()):
        if folder != source / "splits" / "ogm":
            raise DataError(f"{folder}: train.csv and test.csv of the OGM-GE split are expected there")
        notes.append("no OGM-GE split given (--ogm_split): the configuration ogm is left out")
        return {}
    out: dict[str, str] = {}
    for split, path in paths.items():
        text = read_text(path, "it is a list of the OGM-GE split, clip,emotion per line").replace("\r\n", "\n")
        if hashlib.sha256(text.replace("\n", "\r\n").encode()).hexdigest() != OGM_SHA256[split]:
            notes.append(f"{path.name} is not the published OGM-GE split (different sha256)")
        listed = [line.split(",")[0] for line in text.splitlines() if line.strip()]
        listed = [ALIASES.get(name, name) for name in listed]
        check_ids("CREMA-D", listed, set(names), str(path))
        check_ids("CREMA-D", [*out, *listed], set(names), str(folder))
        out |= dict.fromkeys(listed, split)
    if len(out) != len(names):
        raise DataError(f"{folder}: {len(names) - len(out)} clips are in neither train.csv nor test.csv")
    train = [name for name, split in out.items() if split == "train"]
    labels = [list(EMOTIONS).index(name.split("_")[2]) for name in train]
    # by clip, because all actors are on both sides of this split anyway, as its card says
    mask, _ = choose_part(train, labels, train, OGM_VALIDATION, seed=0, name="validation", by_group=False)
    return out | {name: "validation" for name, taken in zip(train, mask, strict=True) if taken}


def _configs(ogm: bool) -> dict[str, dict[str, list[str]]]:
    kinds = [f"-ogm_{split}" for split in ("train", "validation", "test")] if ogm else [""]

    def cells(parts: list[int]) -> list[str]:
        return [f"part{k}{kind}" for k in parts for kind in kinds]

    configs = {}
    for fold in range(FOLDS):
        after = (fold + 1) % FOLDS
        rest = [k for k in range(FOLDS) if k not in (fold, after)]
        configs[f"fold{fold}"] = {"train": cells(rest), "validation": cells([after]), "test": cells([fold])}
    if ogm:
        splits = ("train", "validation", "test")
        configs["ogm"] = {split: [f"part{k}-ogm_{split}" for k in range(FOLDS)] for split in splits}
    return configs


def _checksums(source: Path, path: Path | None) -> dict[str, str]:
    place = path or source / "media_sha256.csv"
    if path is None and not place.exists():
        return {}
    rows = read_csv(place, ("path", "sha256"), "it is the list of checksums, path,sha256,bytes")
    return {row["path"]: row["sha256"] for row in rows}


class _Media:
    """Media files of the source, found under a clip's name or alias."""

    def __init__(self, source: Path, sums: dict[str, str]):
        self.source, self.sums = source, sums
        self.other_names = {right: wrong for wrong, right in ALIASES.items()}

    def file(self, folder: str, name: str, suffix: str) -> Path | None:
        for stem in (name, self.other_names.get(name)):
            path = self.source / folder / f"{stem}{suffix}"
            if stem and path.exists():
                return path
        return None

    def clip(self, name: str, cell: str, label: int, columns: dict[str, Any]) -> PlannedClip:
        video, sound = self.file("VideoFlash", name, ".flv"), self.file("AudioWAV", name, ".wav")
        if video is None:
            text = f"VideoFlash/{name}.flv is not in the source"
            return PlannedClip(name, None, cell, label, columns, problem=("missing", text))
        notes, window = [], None
        if sound is None:
            notes.append("sound_from_flv: there is no AudioWAV file")
        if name in KNOWN_BAD:
            seconds = _wav_seconds(sound) if sound else BAD_WINDOW
            window = (0.0, seconds)
            notes.append(f"known_bad: the official FLV runs over a minute; its first {seconds:.2f} s are used")
        return PlannedClip(
            id=name,
            source=str(video),
            cell=cell,
            label=label,
            columns=columns,
            size=file_size(video),
            sound=str(sound) if sound else None,
            sound_size=file_size(sound) if sound else 0,
            window=window,
            sha256=self.sums.get(f"VideoFlash/{name}.flv"),
            sound_sha256=self.sums.get(f"AudioWAV/{name}.wav"),
            notes=tuple(notes),
        )

    def notes(self, clips: list[PlannedClip]) -> list[str]:
        """Return notes on files that are absent or that no checksum covers.

        Raises:
            DataError: there is no file at all, or the list of checksums names none of the files.
        """
        there = [clip for clip in clips if clip.problem is None]
        if not there:
            raise DataError(f"{self.source}: no media of CREMA-D in VideoFlash/*.flv; {MIRRORS}")
        notes = []
        if len(there) < len(clips):
            notes.append(
                f"the source has {len(there)} of {len(clips)} clips; the rest are listed in manifest.csv; {MIRRORS}"
            )
        files = [(clip.source, clip.sha256) for clip in there]
        files += [(clip.sound, clip.sound_sha256) for clip in there if clip.sound is not None]
        unlisted = [path for path, digest in files if digest is None]
        if self.sums and len(unlisted) == len(files):
            raise DataError(
                f"the list of checksums names no file of {self.source}: its paths must be like"
                f" VideoFlash/1001_DFA_ANG_XX.flv, not {next(iter(self.sums))}"
            )
        if self.sums and unlisted:
            notes.append(f"{len(unlisted)} files are not checked (not in the list of checksums), e.g. {unlisted[0]}")
        return notes


def _wav_seconds(path: Path) -> float:
    try:
        return float(soundfile.info(str(path)).duration)
    except soundfile.SoundFileError:  # e.g. a git-lfs pointer, which is reported when the clip is built
        return BAD_WINDOW
