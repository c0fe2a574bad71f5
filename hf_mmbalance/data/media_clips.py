"""Clips from media files or stored rows, decoded once and cached in memory or on disk, with noise and augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.data import cache
from hf_mmbalance.data.augmentation import add_noise, babble, cut_padded, jitter_frames
from hf_mmbalance.data.clips import ClipDataset, DataError
from hf_mmbalance.data.options import MediaOptions
from hf_mmbalance.data.seeding import rng_for
from hf_mmbalance.model.inputs_mmbalance import round_sound
from hf_mmbalance.model.media_mmbalance import MediaError
from hf_mmbalance.model.reading_mmbalance import Clip, DecodedClip, ReadingSpec, cut, decode


VOICES = 6  # other clips mixed to make babble


@dataclass(frozen=True)
class ClipRecord:
    """One clip before it is decoded; `window` is in seconds without margin, None for the complete clip."""

    id: str
    group: str
    label: int
    source: str
    window: tuple[float, float] | None = None


#: Returns a record's media in a form that `read` accepts: a path, or a mapping with `audio`, `frames`, etc.
Fetch = Callable[[ClipRecord], Any]
Voices = Callable[[np.random.Generator], list[np.ndarray]]


def media_file(record: ClipRecord) -> str:
    """Return the path of a record's media file."""
    return record.source


def decode_record(
    record: ClipRecord, media: Any, spec: ReadingSpec, options: MediaOptions, around: float
) -> DecodedClip:
    """Decode a record's media, with the margin that noise and augmentation need.

    Raises:
        MediaError: the clip cannot be decoded; the message names it.
    """
    try:
        # Babble noise for other clips also uses the audio outside the window.
        whole = options.noise == "babble"
        return decode(media, spec, record.window, around=around, whole_audio=whole, limits=options.limits)
    except MediaError as error:
        raise MediaError(error.reason, f"clip {record.id!r}: {error}") from None
    except ValueError as error:
        raise MediaError("undecodable", f"clip {record.id!r}: {error}") from None


def frame_seconds(clip: DecodedClip) -> float:
    """Return the length of a clip that has frames with times, including its audio; 0 for other clips."""
    return clip.window[1] - clip.window[0] if clip.timed and clip.frames is not None else 0.0


class MediaClips(ClipDataset):
    """Clips of one split, decoded from media.

    Args:
        records: the clips.
        classes: names of the labels.
        options: noise, augmentation, cache and limits.
        split: name of the split; only `train` is augmented and gets new noise in every epoch.
        spec: how clips are read.
        fetch: function that returns a record's media; by default the path.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        classes: Sequence[str],
        options: MediaOptions,
        split: str,
        spec: ReadingSpec,
        fetch: Fetch = media_file,
    ):
        super().__init__(
            [record.id for record in records],
            [record.group for record in records],
            [record.label for record in records],
            classes,
            sampling_rate=options.sampling_rate,
        )
        self.records, self.options, self.split, self.spec, self.fetch = list(records), options, split, spec, fetch
        self.around = options.shift if split == "train" else 0.0
        self._kept: dict[int, DecodedClip] | None = None
        self._frame_seconds: dict[int, float] = {}

    def decoded(self, place: int) -> DecodedClip:
        """Return the decoded clip, from memory or the cache folder if it is there."""
        if self._kept is not None and place in self._kept:
            return self._kept[place]
        clip = self._from_disk(self.records[place])
        if self._kept is not None:
            self._kept[place] = clip
        return clip

    def keep(self) -> None:
        """Keep decoded clips in memory from now on."""
        self._kept = {} if self._kept is None else self._kept

    def without(self, places: set[int]) -> MediaClips:
        """Return the dataset without the clips at `places`; decoded clips stay in memory."""
        rest = [i for i in range(len(self)) if i not in places]
        records = [self.records[i] for i in rest]
        other = MediaClips(records, self.classes, self.options, self.split, self.spec, self.fetch)
        if self._kept is not None:
            other._kept = {new: self._kept[old] for new, old in enumerate(rest) if old in self._kept}
        return other

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        clip, voices = self.decoded(place), lambda rng: self._voices(place, rng)
        self._frame_seconds[place] = frame_seconds(clip)
        return augmented(clip, self.spec, self.ids[place], self.options, self.split, epoch, voices)

    def frame_seconds(self, place: int) -> float:
        if place not in self._frame_seconds:
            self._frame_seconds[place] = frame_seconds(self.decoded(place))
        return self._frame_seconds[place]

    def _voices(self, place: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the audio of up to six other clips of the split, on the same time axis."""
        voices = []
        for other in rng.permutation(len(self)):
            sound = None if other == place else self.decoded(int(other)).audio
            if sound is not None:
                voices.append(sound)
            if len(voices) == VOICES:
                break
        if not voices:
            raise DataError(f"babble needs other clips with audio in the {self.split} split, which has none")
        return voices

    def _from_disk(self, record: ClipRecord) -> DecodedClip:
        def make() -> DecodedClip:
            return decode_record(record, self.fetch(record), self.spec, self.options, self.around)

        if self.options.cache_dir is None:
            return make()
        key = (record.window, self.spec, self.around, self.options.noise == "babble", self.options.limits)
        return cache.load_or_make(Path(self.options.cache_dir), record.source, key, make)


def augmented(
    clip: DecodedClip,
    spec: ReadingSpec,
    name: str,
    options: MediaOptions,
    split: str,
    epoch: int | None,
    voices: Voices,
) -> tuple[np.ndarray | None, Any]:
    """Cut the window out of a decoded clip, add noise, and augment it if `epoch` is given.

    Args:
        clip: the decoded clip.
        spec: spec that the clip was decoded with.
        name: id of the clip; seed, epoch and id determine all random numbers.
        options: noise and augmentation.
        split: name of the split; only `train` is augmented and gets new noise in every epoch.
        epoch: epoch of the augmentation; None for no augmentation.
        voices: function that returns other clips' audio on the same time axis, for babble.

    Returns:
        Audio `(S,)` and frames `(T, H, W, 3)`.
    """
    move = epoch is not None and split == "train"
    rng = rng_for(options.seed, "augment", epoch, name)
    window = clip.window
    if move and options.shift:
        delta = rng.uniform(-options.shift, options.shift)
        window = (window[0] + delta, window[1] + delta)
    redrawn = epoch if move and options.redraw_noise else None
    made = cut(clip, spec, window)
    if clip.audio is not None and made.parts["audio"] is None:  # the moved window has no audio
        window, made = clip.window, cut(clip, spec)
    snr = options.train_snr_db if redrawn is not None else None
    audio = _noisy(made, window[0], options, snr, rng_for(options.seed, "noise", redrawn, name), voices)
    frames = made.parts["vision"]
    if frames is not None and move:
        frames = jitter_frames(
            frames, rng, shift=options.crop_jitter, flip=options.flip, brightness=options.brightness
        )
    return audio, frames


def _noisy(
    clip: Clip,
    start: float,
    options: MediaOptions,
    snr_range: list[float] | None,
    rng: np.random.Generator,
    voices: Voices,
) -> np.ndarray | None:
    wave = clip.parts["audio"]
    if wave is None or options.noise == "none":
        return wave
    snr = options.snr_db if snr_range is None else float(rng.uniform(snr_range[0], snr_range[1]))
    if options.noise == "white":
        return add_noise(wave, rng.standard_normal(len(wave), dtype=np.float32), snr)
    first = max(round(start * clip.sampling_rate), 0)
    return add_noise(wave, babble([round_sound(cut_padded(voice, first, len(wave))) for voice in voices(rng)]), snr)
