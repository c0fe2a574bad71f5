"""Named corruptions of audio and frames, including missing modalities, at severities 1 to 5.

The corruptions of a clip depend on the seed, the clip's id, the kind and the draw (or the epoch), never on the order
in which clips are read. `docs/robustness.md` lists the name of each kind in AVRobustBench, READ and ImageNet-C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_mmbalance.console import did_you_mean
from hf_mmbalance.data import corruptions_audio as sound
from hf_mmbalance.data import corruptions_vision as picture
from hf_mmbalance.data.clips import Clip, ClipDataset, DataError, DrawnClips
from hf_mmbalance.data.seeding import rng_for


SEVERITIES = (1, 2, 3, 4, 5)
BABBLE_VOICES = 6
NOISE_DB = (3.0, -1.5, -6.0, -10.5, -15.0)


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        modality: the modality that it changes, `audio` or `vision`.
        function: function from `corruptions_audio` or `corruptions_vision`; None removes the modality.
        levels: parameter of the function at severities 1 to 5.
        half: `seen` or `unseen`, the fixed halves of the kinds for calibration and for evaluation; None for neither.
        voices: number of other clips whose audio it needs.
        other_class: True if those clips must be of a different class.
    """

    modality: str
    function: Callable[..., np.ndarray] | None
    levels: tuple[Any, ...]
    half: str | None = None
    voices: int = 0
    other_class: bool = False


CORRUPTIONS = {
    "babble": Corruption("audio", sound.babble, NOISE_DB, "seen", voices=BABBLE_VOICES),
    "telephone": Corruption(
        "audio", sound.telephone, ((200, 5000), (300, 3400), (400, 2400), (500, 1700), (600, 1200)), "seen"
    ),
    "dropouts": Corruption("audio", sound.dropouts, (0.1, 0.2, 0.35, 0.5, 0.7), "seen"),
    "white_noise": Corruption("audio", sound.white_noise, NOISE_DB, "unseen"),
    "pink_noise": Corruption("audio", sound.pink_noise, NOISE_DB, "unseen"),
    "clipping": Corruption("audio", sound.clipping, (0.05, 0.1, 0.2, 0.4, 0.7), "unseen"),
    "reverberation": Corruption("audio", sound.reverberation, (6.0, 1.5, -3.0, -7.5, -12.0), "unseen"),
    "sensor_noise": Corruption("vision", picture.sensor_noise, (0.08, 0.12, 0.18, 0.26, 0.38), "seen"),
    "blur": Corruption("vision", picture.blur, (0.015, 0.03, 0.05, 0.08, 0.12), "seen"),
    "pixelate": Corruption("vision", picture.pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), "seen"),
    "darkness": Corruption("vision", picture.darkness, (0.5, 0.35, 0.22, 0.13, 0.07), "unseen"),
    "occlusion": Corruption("vision", picture.occlusion, (0.1, 0.2, 0.35, 0.5, 0.7), "unseen"),
    "jpeg_compression": Corruption("vision", picture.jpeg_compression, (25, 18, 15, 10, 7), "unseen"),
    "frozen_frames": Corruption("vision", picture.frozen_frames, (0.2, 0.4, 0.6, 0.8, 1.0), "unseen"),
    "conflict": Corruption("audio", sound.conflict, (6.0, 0.0, -6.0, -12.0, None), voices=1, other_class=True),
    "missing_audio": Corruption("audio", None, (None,) * 5),
    "missing_vision": Corruption("vision", None, (None,) * 5),
}

#: Names for groups of kinds. `audio` and `vision` contain the kinds that change one modality only; conflict and
#: missing modalities are in `all` only.
GROUPS = {
    "all": list(CORRUPTIONS),
    **{half: [name for name, kind in CORRUPTIONS.items() if kind.half == half] for half in ("seen", "unseen")},
    **{
        modality: [name for name, kind in CORRUPTIONS.items() if kind.half and kind.modality == modality]
        for modality in ("audio", "vision")
    },
}


def kinds_of(names: str | Iterable[str]) -> list[str]:
    """Return the kinds of corruption for names of kinds and groups (`seen`, `unseen`, `all`, `audio`, `vision`).

    Raises:
        DataError: a name is unknown (the message suggests the nearest known one), or no name is given.
    """
    kinds: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        if name not in CORRUPTIONS and name not in GROUPS:
            hint = did_you_mean(name, [*CORRUPTIONS, *GROUPS])
            known = f"{', '.join(CORRUPTIONS)}; groups are {', '.join(GROUPS)}"
            raise DataError(f"unknown corruption {name!r}{hint}; known are {known}")
        kinds += GROUPS.get(name, [name])
    if not kinds:
        raise DataError(f"name at least one corruption: {', '.join(CORRUPTIONS)}, or {', '.join(GROUPS)}")
    return list(dict.fromkeys(kinds))


def corrupt_audio(
    wave: np.ndarray,
    sampling_rate: int,
    kind: str,
    severity: int,
    rng: np.random.Generator,
    voices: Sequence[np.ndarray] | None = None,
) -> np.ndarray | None:
    """Corrupt the audio of one clip.

    Args:
        wave: waveform, `(S,)` float32.
        sampling_rate: sampling rate in Hz.
        kind: a kind in `CORRUPTIONS` that changes audio.
        severity: 1 (mild) to 5.
        rng: source of all random numbers.
        voices: waveforms of other clips, for `babble` and `conflict`; they are cut or repeated to S samples.

    Returns:
        New array `(S,)`, float32; None for `missing_audio`.

    Raises:
        DataError: `kind` is not a corruption of audio, the severity is not in 1 to 5, or voices are missing.
    """
    corruption, level = _checked(kind, severity, "audio")
    if corruption.function is None:
        return None
    if corruption.voices and not voices:
        raise DataError(f"{kind} needs the audio of other clips: pass voices=")
    if len(wave) < 2:
        return np.array(wave, dtype=np.float32)
    others = [sound.fit_length(voice, len(wave)) for voice in voices or ()]
    out = corruption.function(wave, level, rng, sampling_rate, others)
    return np.array(out, dtype=np.float32)


def corrupt_frames(frames: np.ndarray, kind: str, severity: int, rng: np.random.Generator) -> np.ndarray | None:
    """Corrupt the frames of one clip.

    Args:
        frames: `(T, H, W, 3)` uint8.
        kind: a kind in `CORRUPTIONS` that changes frames.
        severity: 1 (mild) to 5.
        rng: source of all random numbers.

    Returns:
        uint8 frames of the same shape; None for `missing_vision`.

    Raises:
        DataError: `kind` is not a corruption of frames, or the severity is not in 1 to 5.
    """
    corruption, level = _checked(kind, severity, "vision")
    if corruption.function is None:
        return None
    return np.ascontiguousarray(corruption.function(frames, level, rng)) if len(frames) else frames.copy()


def _checked(kind: str, severity: int, modality: str) -> tuple[Corruption, Any]:
    (name,) = kinds_of(kind) if kind not in GROUPS else (None,)
    if name is None or CORRUPTIONS[name].modality != modality:
        own = [known for known, entry in CORRUPTIONS.items() if entry.modality == modality]
        raise DataError(f"{kind!r} does not name one corruption of {modality}; these do: {', '.join(own)}")
    return CORRUPTIONS[name], CORRUPTIONS[name].levels[check_severity(severity) - 1]


def check_severity(severity: int) -> int:
    """Return the severity if it is a whole number from 1 to 5.

    Raises:
        DataError: the severity is anything else.
    """
    if severity not in SEVERITIES:
        raise DataError(f"severity must be a whole number from 1 to 5, got {severity!r}")
    return int(severity)


Choice = tuple[str, int]  # kind and severity


@dataclass(frozen=True)
class CorruptionPlan:
    """Plan of the corruptions that clips get; see `CorruptionPlan.of`.

    Attributes:
        kinds: names in `CORRUPTIONS`.
        draws: versions of each clip; the first one is the clean clip.
        severities: severities to draw from, with equal probability.
        seed: seed of all random numbers.
    """

    kinds: tuple[str, ...]
    draws: int = 3
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise DataError(f"draws must be at least 1 (the clean clip), got {self.draws}")
        if not self.severities:
            raise DataError("severities must name at least one of 1 to 5")
        for severity in self.severities:
            check_severity(severity)

    @classmethod
    def of(
        cls, names: str | Iterable[str], draws: int = 3, severities: Iterable[int] = SEVERITIES, seed: int = 0
    ) -> CorruptionPlan:
        """Create a plan from names of kinds or groups, e.g. `CorruptionPlan.of("seen")`.

        Raises:
            DataError: an unknown name, a severity outside 1 to 5, or fewer than one draw.
        """
        return cls(tuple(kinds_of(names)), draws, tuple(severities), seed)

    def choices(self, clip_id: str, draw: int | str, present: Iterable[str]) -> list[Choice]:
        """Return the corruptions of one draw: one of the audio, one of the frames, or one of each.

        If the clip has both modalities, the three cases have the same probability.

        Args:
            clip_id: id of the clean clip.
            draw: number or name of the draw; 0 is the clean clip.
            present: modalities that the clip has.
        """
        pools = {name: [kind for kind in self.kinds if CORRUPTIONS[kind].modality == name] for name in present}
        usable = [name for name in ("audio", "vision") if pools.get(name)]
        if draw == 0 or not usable:
            return []
        rng = rng_for(self.seed, "corruption", clip_id, draw)
        taken = [usable] if len(usable) == 1 else [["audio"], ["vision"], ["audio", "vision"]]
        return [
            (str(rng.choice(pools[modality])), int(rng.choice(self.severities)))
            for modality in taken[rng.integers(len(taken))]
        ]


class _Corrupting(DrawnClips):
    """Clips of another dataset with corruptions chosen by a subclass.

    Args:
        dataset: the clean clips.
        draws: versions of every clip.
        seed: seed of all random numbers.
    """

    def __init__(self, dataset: ClipDataset, draws: int, seed: int):
        if isinstance(dataset, _Corrupting):
            raise DataError("these clips are already corrupted: pass the clean dataset")
        super().__init__(dataset, draws)
        self.seed = seed

    def corrupted(self, place: int, example: Clip, choices: Iterable[Choice], draw: int | str) -> Clip:
        """Return the example of the clean clip at `place` after corruption; a missing modality stays missing."""
        example = dict(example)
        for kind, severity in choices:
            corruption = CORRUPTIONS[kind]
            part, other = ("audio", "frames") if corruption.modality == "audio" else ("frames", "audio")
            only_one = example[other] is None
            if example[part] is None or (corruption.function is None and only_one):
                continue  # a clip keeps at least one modality
            rng = rng_for(self.seed, example["id"], kind, draw)
            if part == "audio":
                voices = self._voices(place, corruption, rng)
                rate = example["sampling_rate"]
                example["audio"] = corrupt_audio(example["audio"], rate, kind, severity, rng, voices)
            else:
                example["frames"] = corrupt_frames(example["frames"], kind, severity, rng)
        return example

    def _voices(self, place: int, corruption: Corruption, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the audio of other clips of the split, as many as the corruption needs (or as there are)."""
        voices: list[np.ndarray] = []
        if not corruption.voices:
            return voices
        labels = self.dataset.labels
        for other in rng.permutation(len(labels)):
            if other == place or (corruption.other_class and labels[other] == labels[place]):
                continue
            wave = self.dataset[int(other)]["audio"]
            if wave is not None:
                voices.append(wave)
            if len(voices) == corruption.voices:
                return voices
        if not voices:
            which = "of a different class " if corruption.other_class else ""
            raise DataError(f"no other clip {which}with audio in this split: remove babble and conflict")
        return voices


class CorruptedClips(_Corrupting):
    """Several versions of every clip: draw 0 is the clean clip, the others are corrupted according to a plan.

    The rows of a clip are consecutive, with ids `ID`, `ID#1`, `ID#2` and so on. Draws are the same in every epoch.

    Args:
        dataset: the clean clips.
        plan: kinds, severities, number of draws and seed.

    Attributes:
        clips: id of every row's clean clip.
        draws: number of every row's draw.

    Raises:
        DataError: `dataset` is already corrupted.
    """

    def __init__(self, dataset: ClipDataset, plan: CorruptionPlan):
        super().__init__(dataset, plan.draws, plan.seed)
        self.plan = plan

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        clean, draw = divmod(place, self.plan.draws)
        example = self.dataset[clean if epoch is None else (clean, epoch)]
        example = self.corrupted(clean, example, self.plan.choices(example["id"], draw, _present(example)), draw)
        return example["audio"], example["frames"]


class ClipsCorruptedByEpoch(_Corrupting):
    """Train clips corrupted differently in every epoch: augmentation by the corruptions of a plan.

    `dataset[i]` is the clean clip. `dataset[i, epoch]` is one of the plan's draws, so the clip is clean with
    probability 1 / `plan.draws`. The draw depends on the seed, the clip's id and the epoch.

    Args:
        dataset: the train clips.
        plan: kinds, severities, number of draws and seed.

    Raises:
        DataError: `dataset` is already corrupted.
    """

    def __init__(self, dataset: ClipDataset, plan: CorruptionPlan):
        super().__init__(dataset, 1, plan.seed)
        self.plan = plan

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        example = self.dataset[place if epoch is None else (place, epoch)]
        if epoch is not None and rng_for(self.seed, "draw", example["id"], epoch).integers(self.plan.draws):
            draw = f"epoch {epoch}"
            example = self.corrupted(place, example, self.plan.choices(example["id"], draw, _present(example)), draw)
        return example["audio"], example["frames"]


class ClipsOfOneCorruption(_Corrupting):
    """Every clip with one kind of corruption at one severity, for evaluating a model.

    Args:
        dataset: the clean clips.
        kind: a name in `CORRUPTIONS`.
        severity: 1 to 5.
        seed: seed of all random numbers; noise and positions are the same at every severity.

    Raises:
        DataError: an unknown kind, a severity outside 1 to 5, or clips that are already corrupted.
    """

    def __init__(self, dataset: ClipDataset, kind: str, severity: int, seed: int = 0):
        super().__init__(dataset, 1, seed)
        kinds = kinds_of(kind)
        if len(kinds) > 1:
            raise DataError(f"{kind!r} names several corruptions ({', '.join(kinds)}); name one of them")
        self.choice: Choice = (kinds[0], check_severity(severity))

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        example = self.dataset[place if epoch is None else (place, epoch)]
        example = self.corrupted(place, example, [self.choice], "judged")
        return example["audio"], example["frames"]


def _present(example: Clip) -> list[str]:
    return [name for name, part in (("audio", "audio"), ("vision", "frames")) if example[part] is not None]
