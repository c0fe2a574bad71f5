"""GRID audio-visual sentence corpus in its official layout, with word times from the alignment files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hf_mmbalance.data.clips import ClipSplits, DataError, split_name
from hf_mmbalance.data.files import walk_files
from hf_mmbalance.data.options import MediaOptions, option
from hf_mmbalance.data.sources.rows import Row, clips_from_rows
from hf_mmbalance.data.sources.table import read_table
from hf_mmbalance.data.splits import MIN_GROUPS, fill_splits


WORDS = ("command", "colour", "preposition", "letter", "digit", "adverb")
# Cooke et al., An audio-visual corpus for speech perception and automatic speech recognition, JASA 120(5), 2006,
# table I: a sentence has one word of each kind, and the file name encodes it with one letter per word.
VOCABULARY: dict[str, dict[str, str]] = {
    "command": {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    "colour": {"b": "blue", "g": "green", "r": "red", "w": "white"},
    "preposition": {"a": "at", "b": "by", "i": "in", "w": "with"},
    "letter": {c: c for c in "abcdefghijklmnopqrstuvxyz"},  # no w: it has three syllables
    "digit": dict(zip("z123456789", "zero one two three four five six seven eight nine".split(), strict=True)),
    "adverb": {"a": "again", "n": "now", "p": "please", "s": "soon"},
}
TICKS = 25_000  # units per second in .align files
MEDIA_SUFFIXES = (".mpg", ".mp4", ".mpeg", ".avi", ".mov")


@dataclass
class GridOptions(MediaOptions):
    """Options of the `grid` data."""

    data_dir: str | None = option(None, "Folder with s1/*.mpg or .mp4 and the alignments.")
    label: str = option("digit", "Word to recognise: digit, letter, colour, command, preposition or adverb.")
    window: str = option("clip", "clip: the complete sentence; word: the labelled word's time with its margin.")
    margin: float = option(0.1, "Seconds kept before and after the word.")
    speakers: list[str] | None = option(None, "Speakers to use, e.g. s1 s2; all by default.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label not in WORDS:
            raise DataError(f"label must be one of {', '.join(WORDS)}, got {self.label!r}")
        if self.window not in ("clip", "word"):
            raise DataError(f"window must be clip or word, got {self.window!r}")


@dataclass(frozen=True)
class GridClip:
    """One sentence: its six words, and when each is said (in seconds; None without an alignment file)."""

    id: str
    speaker: str
    path: Path
    words: dict[str, str]
    times: dict[str, tuple[float, float]] | None
    split: str | None = None


def parse_name(stem: str) -> dict[str, str]:
    """Return the six words that a file name encodes: `bbaf2n` is bin blue at f two now.

    Raises:
        DataError: the name does not follow GRID's scheme.
    """
    if len(stem) != len(WORDS):
        raise DataError(f"{stem!r} is not a GRID file name (six characters, e.g. bbaf2n)")
    try:
        return {word: VOCABULARY[word][code] for word, code in zip(WORDS, stem.lower(), strict=True)}
    except KeyError as error:
        raise DataError(f"{stem!r} is not a GRID file name: {error} is not in the grammar") from None


def read_alignment(path: Path) -> dict[str, tuple[float, float]]:
    """Read the start and end of each of the six words in seconds.

    Raises:
        DataError: the file does not hold six words with times.
    """
    rows = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    spoken = [row for row in rows if len(row) == 3 and row[2] not in ("sil", "sp")]
    if len(spoken) != len(WORDS):
        raise DataError(f"{path}: {len(spoken)} words where a GRID sentence has {len(WORDS)}")
    try:
        return {word: (int(row[0]) / TICKS, int(row[1]) / TICKS) for word, row in zip(WORDS, spoken, strict=True)}
    except ValueError:
        raise DataError(f"{path}: a line must be `start end word`, with times as whole numbers") from None


def scan_grid(root: Path, speakers: list[str] | None = None) -> list[GridClip]:
    """Find all sentences under a folder in the official layout, in a fixed order.

    Alignments are looked for in `<speaker>/align/`, `align/<speaker>/` and, for sentences that only one speaker says,
    `align/`. A `labels.csv` (`id`, `split`) gives the splits.

    Raises:
        DataError: the folder is missing, empty or not in GRID's layout.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data_dir= to the GRID folder (the one with s1/)")
    found: dict[tuple[str, str], Path] = {}
    for path in walk_files(root):
        if path.suffix.lower() not in MEDIA_SUFFIXES:
            continue
        speaker = path.relative_to(root).parts[0] if path.parent != root else root.name
        other = found.setdefault((speaker, path.stem), path)
        if other != path and (speakers is None or speaker in speakers):
            raise DataError(f"clip {path.stem} of {speaker} occurs twice: {other} and {path}; remove one")
    everyone = {speaker for speaker, _ in found}
    chosen = everyone if speakers is None else everyone & set(speakers)
    missing = sorted(set(speakers or ()) - everyone)
    if missing or not chosen:
        what = f"no clips of {', '.join(missing)}" if missing else f"no {'/'.join(MEDIA_SUFFIXES)} files"
        raise DataError(f"{root}: {what}; the GRID layout is s1/*.mpg with align/*.align")
    splits, several = _read_splits(root), len(everyone) > 1
    speakers_of = Counter(stem for _, stem in found)
    clips = []
    for (speaker, stem), path in found.items():
        if speaker not in chosen:
            continue
        align = _alignment_of(root, speaker, stem, shared=speakers_of[stem] > 1)
        times = read_alignment(align) if align else None
        name = f"{speaker}_{stem}" if several else stem
        split = splits.get(name, splits.get(stem) if not several else None)
        clips.append(GridClip(name, speaker, path, parse_name(stem), times, split))
    if splits:
        _check_split_ids(root, splits, {clip.id for clip in clips}, partial=speakers is not None)
    return sorted(clips, key=lambda clip: clip.id)  # the same order as in a Parquet build of these clips


def _alignment_of(root: Path, speaker: str, stem: str, shared: bool) -> Path | None:
    places = [root / speaker / "align", root / "align" / speaker]
    places += [] if shared else [root / "align"]  # not if several speakers say it: the times could be anyone's
    return next((place / f"{stem}.align" for place in places if (place / f"{stem}.align").exists()), None)


def _read_splits(root: Path) -> dict[str, str]:
    path = root / "labels.csv"
    if not path.exists():
        return {}
    rows = read_table(path, ("id", "split"))
    if not {"id", "split"} <= set(rows[0]):
        raise DataError(f"{path}: needs the columns id and split (it has {', '.join(rows[0])}); correct or remove it")
    repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {len(repeated)} clips have several rows, e.g. {repeated[0]}; keep one of each")
    try:
        return {row["id"]: split_name(row["split"]) for row in rows}
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _check_split_ids(root: Path, splits: dict[str, str], found: set[str], partial: bool) -> None:
    missing, extra = sorted(set(splits) - found), sorted(found - set(splits))
    if missing and not partial:
        text = f"{len(missing)} clips of {root / 'labels.csv'} have no media file, e.g. {', '.join(missing[:3])}"
        raise DataError(f"{text}; add the files, or remove their rows from labels.csv")
    if extra:
        text = f"{len(extra)} media files are not in {root / 'labels.csv'}, e.g. {', '.join(extra[:3])}"
        raise DataError(f"{text}; add them, or remove labels.csv to create the splits automatically")


def assign_splits(clips: list[GridClip], options: GridOptions) -> tuple[list[str], list[str]]:
    """Return a split for every clip: from `labels.csv`, else by whole speakers if there are at least five."""
    label = sorted({clip.words[options.label] for clip in clips})
    fractions = {
        "test": options.test_fraction,
        "validation": options.validation_fraction,
        "calibration": options.calibration_fraction,
    }
    return fill_splits(
        [clip.id for clip in clips],
        [label.index(clip.words[options.label]) for clip in clips],
        [clip.speaker for clip in clips],
        [clip.split for clip in clips],
        fractions=fractions,
        seed=options.seed,
    )


def grid_clips(options: GridOptions) -> ClipSplits:
    """Load GRID for recognising one word of each sentence.

    Raises:
        DataError: the folder is missing or empty, clips do not decode, or a word window has no alignment.
    """
    if options.data_dir is None:
        raise DataError("grid needs data_dir: the folder with s1/ and its alignments")
    clips = scan_grid(Path(options.data_dir), options.speakers)
    names, notes = assign_splits(clips, options)
    rows = [
        Row(clip.id, clip.words[options.label], str(clip.path), clip.speaker, split, _window(clip, options))
        for clip, split in zip(clips, names, strict=True)
    ]
    speakers = {clip.speaker for clip in clips}
    if len(speakers) < MIN_GROUPS:
        notes.append(f"{len(speakers)} speaker(s): splits are by clip, so new speakers are not tested")
    return clips_from_rows("grid", rows, list(VOCABULARY[options.label].values()), options, notes)


def _window(clip: GridClip, options: GridOptions) -> tuple[float, float] | None:
    """Return start and end of the labelled word without margin, or None for the complete sentence."""
    if options.window == "clip":
        return None
    if clip.times is None:
        raise DataError(f"{clip.path}: no {clip.path.stem}.align found; window=word needs the alignments")
    return clip.times[options.label]
