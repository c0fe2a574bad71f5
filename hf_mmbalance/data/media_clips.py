"""Clips in media files: decoded once, kept in memory or on disk, presented with noise and augmentation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_mmbalance.data.augmentation import add_noise, babble, cut, jitter_frames
from hf_mmbalance.data.clips import ClipDataset, DataError
from hf_mmbalance.data.options import MediaOptions
from hf_mmbalance.data.seeding import rng_for
from hf_mmbalance.data.sound import from_sixteen_bits, to_sixteen_bits
from hf_mmbalance.model.media_mmbalance import MediaError, read_media


VOICES = 6  # other clips in a babble
SHORT_WINDOW = 3.0  # seconds up to which every frame is kept where the window may move


@dataclass(frozen=True)
class ClipRecord:
    """One clip before it is decoded; `window` in seconds, None for the whole clip."""

    id: str
    group: str
    label: int
    source: str
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class DecodeSpec:
    """What to keep of a clip; part of the name of a file in the cache."""

    sampling_rate: int
    frames: int
    frame_size: tuple[int, int] | None
    crop: tuple[float, float, float, float] | None
    shift: float
    whole_sound: bool
    max_seconds: float

    @classmethod
    def of(cls, options: MediaOptions, shift: float) -> DecodeSpec:
        size = None if options.frame_size is None else (options.frame_size[0], options.frame_size[1])
        crop = None if options.crop is None else tuple(options.crop)
        # Babble: other clips need the sound outside the window too.
        whole = options.noise == "babble" or options.short_clips
        return cls(options.sampling_rate, options.frames, size, crop, shift, whole, options.max_seconds)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DecodedClip:
    """The kept part of a clip; times in seconds on the clip's clock. `exact`: its frames are those of its window."""

    audio: np.ndarray | None
    audio_start: float
    frames: np.ndarray | None
    frame_times: np.ndarray | None
    window: tuple[float, float]
    notes: tuple[str, ...] = ()
    exact: bool = False

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.audio, self.frames) if part is not None)


Decoder = Callable[[ClipRecord, DecodeSpec], DecodedClip]
Voices = Callable[[np.random.Generator], list[np.ndarray]]


def decode_file(record: ClipRecord, spec: DecodeSpec) -> DecodedClip:
    """Decode a clip's file; its sound is rounded to 16 bits, as a built data set stores it: both train alike.

    Raises:
        MediaError: as `read_media`.
    """
    common: dict[str, Any] = {"sampling_rate": spec.sampling_rate, "crop": spec.crop, "size": spec.frame_size}
    common["max_seconds"] = spec.max_seconds
    many: int | None = 4 * spec.frames if spec.shift else spec.frames
    if record.window is None:
        clip = read_media(record.source, num_frames=many, **common)
        audio, whole = _rounded(clip.audio), (0.0, clip.duration)
        return DecodedClip(audio, 0.0, clip.frames, clip.frame_times, whole, clip.notes, not spec.shift)
    start, end = max(record.window[0] - spec.shift, 0.0), record.window[1] + spec.shift
    if spec.shift and end - start <= SHORT_WINDOW:
        many = None
    clip = read_media(
        record.source,
        num_frames=many,
        start=start,
        end=end,
        want_audio=not spec.whole_sound,
        **common,
    )
    audio, audio_start = clip.audio, start
    if spec.whole_sound:
        audio, audio_start = _whole_sound(record, spec), 0.0
    audio = _rounded(audio)
    return DecodedClip(audio, audio_start, clip.frames, clip.frame_times, record.window, clip.notes, not spec.shift)


def _rounded(audio: np.ndarray | None) -> np.ndarray | None:
    return None if audio is None else from_sixteen_bits(*to_sixteen_bits(audio))


def _whole_sound(record: ClipRecord, spec: DecodeSpec) -> np.ndarray | None:
    try:
        sound = read_media(
            record.source, sampling_rate=spec.sampling_rate, want_frames=False, max_seconds=spec.max_seconds
        )
    except MediaError as error:
        if error.reason != "no_audio":
            raise
        return None
    return sound.audio


class MediaClips(ClipDataset):
    """The clips of one split, decoded from media.

    Args:
        records: the clips.
        classes: names of the labels.
        options: what to decode and how to present it.
        split: its name; only `train` is augmented, `train` and `calibration` get new noise every epoch.
        decoder: reads one record; files by default.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        classes: Sequence[str],
        options: MediaOptions,
        split: str,
        decoder: Decoder = decode_file,
    ):
        super().__init__(
            [record.id for record in records],
            [record.group for record in records],
            [record.label for record in records],
            classes,
            sampling_rate=options.sampling_rate,
        )
        self.records, self.options, self.split, self.decoder = list(records), options, split, decoder
        self.spec = DecodeSpec.of(options, options.shift if split == "train" else 0.0)
        self._kept: dict[int, DecodedClip] | None = None

    def decoded(self, place: int) -> DecodedClip:
        """The decoded clip, from memory or the cache folder where it is there."""
        if self._kept is not None and place in self._kept:
            return self._kept[place]
        clip = self._from_disk(self.records[place])
        if self._kept is not None:
            self._kept[place] = clip
        return clip

    def keep(self) -> None:
        """Hold decoded clips in memory from now on."""
        self._kept = {} if self._kept is None else self._kept

    def without(self, places: set[int]) -> MediaClips:
        """The same clips less some, kept clips included."""
        rest = [i for i in range(len(self)) if i not in places]
        other = MediaClips([self.records[i] for i in rest], self.classes, self.options, self.split, self.decoder)
        if self._kept is not None:
            other._kept = {new: self._kept[old] for new, old in enumerate(rest) if old in self._kept}
        return other

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        name = self.ids[place]
        return present(
            self.decoded(place), name, self.options, self.split, epoch, lambda rng: self._voices(place, rng)
        )

    def _voices(self, place: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The sound of six other clips of the split, on the same clock."""
        voices = []
        for other in rng.permutation(len(self)):
            sound = None if other == place else self.decoded(int(other)).audio
            if sound is not None:
                voices.append(sound)
            if len(voices) == VOICES:
                break
        if not voices:
            raise DataError(f"babble needs other clips with sound in the {self.split} split; there is none")
        return voices

    def _from_disk(self, record: ClipRecord) -> DecodedClip:
        if self.options.cache_dir is None:
            return self.decoder(record, self.spec)
        path = _cache_file(Path(self.options.cache_dir), record, self.spec)
        if path.exists():
            return _load_decoded(path)
        clip = self.decoder(record, self.spec)
        _save_decoded(path, clip)
        return clip


def present(
    clip: DecodedClip, name: str, options: MediaOptions, split: str, epoch: int | None, voices: Voices
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A decoded clip as training sees it: its window cut out, with noise, augmented where `epoch` is given.

    Args:
        clip: what was decoded.
        name: its id; with the seed and the epoch it decides all that is drawn.
        options: noise and augmentation.
        split: only `train` is augmented; `train` and `calibration` get new noise every epoch.
        epoch: None for the clip as it is.
        voices: gives other clips' sound on the same clock, for babble.

    Returns:
        Audio `(S,)` and frames `(T, H, W, 3)`.
    """
    (start, end), move = clip.window, epoch is not None and split == "train"
    rng = rng_for(options.seed, "augment", epoch, name)
    if move and options.shift:
        delta = rng.uniform(-options.shift, options.shift)
        start, end = start + delta, end + delta
    if not (options.redraw_noise and split in ("train", "calibration")):
        epoch = None
    snr = options.train_snr_db if split == "train" and epoch is not None else None
    audio = _sound(clip, start, end, options, snr, rng_for(options.seed, "noise", epoch, name), voices)
    frames = _frames_at(clip, start, end, options.frames)
    if frames is not None and move:
        frames = jitter_frames(
            frames, rng, shift=options.crop_jitter, flip=options.flip, brightness=options.brightness
        )
    return audio, frames


def _sound(
    clip: DecodedClip,
    start: float,
    end: float,
    options: MediaOptions,
    snr_range: list[float] | None,
    rng: np.random.Generator,
    voices: Voices,
) -> np.ndarray | None:
    if clip.audio is None:
        return None
    rate = options.sampling_rate
    first, length = round((start - clip.audio_start) * rate), max(round((end - start) * rate), 1)
    wave = cut(clip.audio, first, length)
    if options.noise == "none":
        return wave
    snr = options.snr_db if snr_range is None else float(rng.uniform(snr_range[0], snr_range[1]))
    if options.noise == "white":
        return add_noise(wave, rng.standard_normal(length, dtype=np.float32), snr)
    return add_noise(wave, babble([cut(voice, first, length) for voice in voices(rng)]), snr)


def _frames_at(clip: DecodedClip, start: float, end: float, count: int) -> np.ndarray | None:
    """The frames on show at the centres of `count` equal parts."""
    if clip.frames is None or clip.frame_times is None:
        return None
    if clip.exact and (start, end) == clip.window:
        return clip.frames
    centres = start + (np.arange(count) + 0.5) * (end - start) / count
    places = np.searchsorted(clip.frame_times, centres + 1e-6, side="right") - 1
    return clip.frames[np.maximum(places, 0)]


def _cache_file(folder: Path, record: ClipRecord, spec: DecodeSpec) -> Path:
    stat = os.stat(record.source) if os.path.exists(record.source) else None
    state = (stat.st_size, stat.st_mtime_ns) if stat else None
    # Another version's files are not taken for this one's.
    layout = ["16 bits", *(field.name for field in fields(DecodedClip))]
    named = repr((layout, record.source, state, record.window, spec))
    key = hashlib.blake2b(named.encode(), digest_size=16).hexdigest()
    return folder / key[:2] / f"{key}.npz"


def _save_decoded(path: Path, clip: DecodedClip) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: getattr(clip, name) for name in ("audio", "frames", "frame_times")}
    there = {name: part for name, part in parts.items() if part is not None}
    draft = path.with_suffix(f".{os.getpid()}-{id(clip)}.tmp.npz")
    np.savez(
        draft,
        window=clip.window,
        audio_start=clip.audio_start,
        exact=clip.exact,
        notes=np.array(clip.notes, dtype=str),
        **there,
    )
    os.replace(draft, path)  # a killed run leaves no half file under the real name


def _load_decoded(path: Path) -> DecodedClip:
    with np.load(path) as file:
        audio, frames, times = (
            file[name] if name in file.files else None for name in ("audio", "frames", "frame_times")
        )
        window = (float(file["window"][0]), float(file["window"][1]))
        notes = tuple(str(note) for note in file["notes"])
        return DecodedClip(audio, float(file["audio_start"]), frames, times, window, notes, bool(file["exact"]))


def decode_all(splits: dict[str, MediaClips], options: MediaOptions) -> tuple[dict[str, MediaClips], list[str]]:
    """Decode every clip of every split once, side by side, with a progress bar.

    Args:
        splits: data sets that share `options`.
        options: `on_error`, `cache`, `cache_gib` and `workers` are used.

    Returns:
        The data sets, less the clips that were skipped, and notes.

    Raises:
        DataError: clips do not decode and `on_error` is `raise`; names them with their reasons.
    """
    jobs = [(name, place) for name, dataset in splits.items() for place in range(len(dataset))]
    notes, keep = [], options.cache != "none"
    if options.cache == "auto" and jobs:
        size = _first_size(splits, jobs) * len(jobs) / 2**30
        keep = size <= options.cache_gib
        if not keep:
            notes.append(f"decoded clips would take about {size:.1f} GiB (cache_gib={options.cache_gib}): read anew")
    if not keep and options.cache_dir is None and options.on_error == "raise":
        return splits, notes
    if keep:
        for dataset in splits.values():
            dataset.keep()
    failed: dict[tuple[str, int], MediaError] = {}
    remarks: dict[str, int] = {}

    def work(job: tuple[str, int]) -> None:
        name, place = job
        try:
            for note in splits[name].decoded(place).notes:
                remarks[note.split(":")[0]] = remarks.get(note.split(":")[0], 0) + 1
        except MediaError as error:
            failed[job] = error

    with ThreadPoolExecutor(options.workers or os.cpu_count() or 1) as pool:
        list(
            tqdm(
                pool.map(work, jobs),
                total=len(jobs),
                desc="decoding clips",
                unit="clip",
                disable=True if len(jobs) < 50 else None,
            )
        )
    notes += [f"{count} clips: {remark}" for remark, count in sorted(remarks.items())]
    return _settle_failures(splits, failed, options, notes), notes


def _first_size(splits: dict[str, MediaClips], jobs: list[tuple[str, int]]) -> int:
    for name, place in jobs[:20]:
        try:
            return splits[name].decoded(place).nbytes
        except MediaError:
            continue
    return 0


def _settle_failures(
    splits: dict[str, MediaClips], failed: dict[tuple[str, int], MediaError], options: MediaOptions, notes: list[str]
) -> dict[str, MediaClips]:
    if not failed:
        return splits
    some = [f"{error} [{error.reason}]" for _, error in sorted(failed.items())]
    if options.on_error == "raise":
        more = f"\n  ... and {len(some) - 10} more" if len(some) > 10 else ""
        text = f"{len(some)} clips cannot be used:\n  " + "\n  ".join(some[:10]) + more
        raise DataError(f"{text}\nmend or remove them, or pass on_error=skip to leave them out")
    notes.append(f"{len(some)} clips were left out: {'; '.join(some)}")
    out = {
        name: dataset.without({place for split, place in failed if split == name}) for name, dataset in splits.items()
    }
    empty = [name for name, dataset in out.items() if len(dataset) == 0]
    if empty:
        raise DataError(f"no clip of the {', '.join(empty)} split can be decoded: {some[0]}")
    return out
