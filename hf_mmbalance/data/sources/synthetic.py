"""Synthetic clips whose best fusion is known: each class has a sound and a look, each wrong at a known rate."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from hf_mmbalance.data.bayes import BayesOptimum
from hf_mmbalance.data.clips import SPLITS, ClipDataset, ClipSplits, DataError
from hf_mmbalance.data.options import check_at_least, option
from hf_mmbalance.data.seeding import rng_for


MODALITIES = ("audio", "vision")


@dataclass
class SyntheticOptions:
    """Options of the `synthetic` data."""

    classes: int = option(6, "Number of classes.")
    train_clips: int = option(240, "Clips that the towers learn from.")
    calibration_clips: int = option(400, "Clips that the decision layer is fitted on.")
    validation_clips: int = option(200, "Clips for model selection.")
    test_clips: int = option(1000, "Clips for the final numbers.")
    audio_error: list[float] | None = option(
        None,
        "Per class: how often the sound is that of a different class. Default: 0.1 for the first half of the classes,"
        " 0.3 for the rest.",
    )
    vision_error: list[float] | None = option(
        None,
        "Per class: how often the look is that of a different class. Default: 0.3 for the first half of the classes,"
        " 0.1 for the rest.",
    )
    prior: list[float] | None = option(None, "Probability of every class. Default: uniform.")
    corrupted: list[float] = option(
        [0.25, 0.25], "Fraction of clips whose audio, and fraction whose frames, are noise that shows no class."
    )
    train_corrupted: list[float] = option([0.05, 0.05], "The same for train clips.")
    fresh_noise: list[str] = option(
        ["vision"],
        "Modalities whose train clips get new noise in every epoch. The noise of other modalities is the same in every"
        " epoch, as in a recorded corpus, and a tower can memorise it.",
    )
    noise: float = option(0.3, "Standard deviation of the noise on audio and pixels.")
    seconds: float = option(0.5, "Length of the audio in seconds.")
    sampling_rate: int = option(16_000, "Sampling rate of the audio in Hz.")
    frames: int = option(4, "Frames per clip.")
    frame_size: int = option(32, "Height and width of a frame in pixels.")
    groups: int = option(20, "Synthetic speakers per split; no speaker is in two splits.")
    seed: int = option(0, "Seed of labels, confusions, corruptions and noise.")

    def __post_init__(self) -> None:
        check_at_least(self, 2, "classes")
        check_at_least(self, 1, "train_clips", "groups", "frames", "frame_size", "sampling_rate")
        check_at_least(self, 0, "calibration_clips", "validation_clips", "test_clips", "noise")
        if not 1 <= self.seconds * self.sampling_rate < math.inf:
            raise DataError(f"seconds must be at least one audio sample, got {self.seconds}")
        for name in ("audio_error", "vision_error", "prior"):
            values = getattr(self, name)
            if values is not None and len(values) != self.classes:
                raise DataError(f"{name} needs one number per class ({self.classes}), got {len(values)}")
        for name in ("corrupted", "train_corrupted"):
            rates = getattr(self, name)
            if len(rates) != len(MODALITIES) or not all(0 <= rate < 1 for rate in rates):
                raise DataError(
                    f"{name} needs one number per modality ({', '.join(MODALITIES)}) in [0, 1), got {rates}"
                )
        unknown = sorted(set(self.fresh_noise) - set(MODALITIES))
        if unknown:
            raise DataError(f"fresh_noise: {unknown[0]!r} is not one of {', '.join(MODALITIES)}")

    def bayes(self) -> BayesOptimum:
        """Return the optimal fusion for these rates."""
        half = (self.classes + 1) // 2
        early = np.arange(self.classes) < half
        audio = np.where(early, 0.1, 0.3) if self.audio_error is None else np.asarray(self.audio_error)
        vision = np.where(early, 0.3, 0.1) if self.vision_error is None else np.asarray(self.vision_error)
        prior = np.ones(self.classes) if self.prior is None else np.asarray(self.prior)
        return BayesOptimum(np.stack([audio, vision]), prior / np.sum(prior), np.asarray(self.corrupted))


class SyntheticClips(ClipDataset):
    """Clips generated on the fly from (seed, split, index).

    Attributes:
        shown: `(N, 2)`, the class whose sound, and the class whose look, each clip shows.
        corrupted: `(N, 2)`, true where audio or frames are noise and show no class.
    """

    def __init__(self, split: str, count: int, options: SyntheticOptions):
        bayes, rng = options.bayes(), rng_for(options.seed, "synthetic", split)
        labels = rng.choice(options.classes, size=count, p=bayes.prior)
        wrong = rng.random((count, 2)) < bayes.error.T[labels]
        other = (labels[:, None] + rng.integers(1, options.classes, size=(count, 2))) % options.classes
        self.shown = np.where(wrong, other, labels[:, None])
        self.corrupted = rng.random((count, 2)) < np.asarray(
            options.train_corrupted if split == "train" else options.corrupted
        )
        self.split, self.options = split, options
        groups = [f"{split}-speaker{i % options.groups:02d}" for i in range(count)]
        names = [f"class{c}" for c in range(options.classes)]
        ids = [f"{split}-{i:05d}" for i in range(count)]
        super().__init__(ids, groups, labels.tolist(), names, sampling_rate=options.sampling_rate)

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
        audio, vision = (
            None if bad else int(c) for c, bad in zip(self.shown[place], self.corrupted[place], strict=True)
        )
        return (
            _sound(audio, self.options, self._rng("audio", place, epoch)),
            _look(vision, self.options, self._rng("vision", place, epoch)),
        )

    def _rng(self, modality: str, place: int, epoch: int | None) -> np.random.Generator:
        if self.split != "train" or modality not in self.options.fresh_noise:
            epoch = None
        return rng_for(self.options.seed, "synthetic", self.split, place, epoch, modality)


def synthetic_clips(options: SyntheticOptions) -> ClipSplits:
    """Create all splits of the synthetic data, with their optimum."""
    counts = {name: getattr(options, f"{name}_clips") for name in SPLITS}
    splits: dict[str, ClipDataset] = {
        name: SyntheticClips(name, count, options) for name, count in counts.items() if count > 0
    }
    bayes = options.bayes()
    audio, vision = bayes.unimodal_accuracy
    note = (
        f"Bayes-optimal accuracy {bayes.accuracy:.3f} (audio {audio:.3f}, vision {vision:.3f}, sum of perfect"
        f" log-posteriors {bayes.posterior_sum_accuracy:.3f}, unweighted vote {bayes.vote_accuracy:.3f})"
    )
    return ClipSplits("synthetic", splits["train"].classes, splits, options.sampling_rate, [note], bayes)


def _sound(kind: int | None, options: SyntheticOptions, rng: np.random.Generator) -> np.ndarray:
    """Make two gliding tones in white noise, with the class's own band and rhythm; for None, noise only."""
    length = round(options.seconds * options.sampling_rate)
    if kind is None:
        return (0.3 * rng.uniform(0.5, 1.0) * rng.standard_normal(length)).astype(np.float32)
    time = np.arange(length, dtype=np.float32) / options.sampling_rate
    low = 250.0 * (3000.0 / 250.0) ** (kind / max(options.classes - 1, 1)) * rng.uniform(0.97, 1.03)
    glide = (-1) ** kind * 0.1 * low / options.seconds
    phase = 2 * np.pi * (low * time + glide * time**2 / 2) + rng.uniform(0, 2 * np.pi)
    rhythm = 0.6 + 0.4 * np.sin(2 * np.pi * (4 + 2 * (kind % 3)) * time + rng.uniform(0, 2 * np.pi))
    tone = rhythm * (np.sin(phase) + 0.5 * np.sin(1.5 * phase))
    wave = 0.5 * tone + options.noise * rng.standard_normal(length, dtype=np.float32)
    return (0.3 * wave).astype(np.float32)


def _look(kind: int | None, options: SyntheticOptions, rng: np.random.Generator) -> np.ndarray:
    """Make a moving grating in pixel noise, with the class's own direction and colour; for None, noise on grey."""
    size, count = options.frame_size, options.frames
    noise = rng.standard_normal((count, size, size, 3), dtype=np.float32)
    if kind is None:
        pixels = 0.4 + rng.uniform(0.5, 1.0) * noise
        return (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle = np.pi * kind / options.classes + rng.normal(0, 0.05)
    distance = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    steps = np.linspace(0, 1.5, count, dtype=np.float32)[:, None, None] + rng.uniform(0, 2 * np.pi)
    stripes = 0.5 + 0.5 * np.sin(2 * np.pi * distance + steps)  # (T, H, W)
    colour = np.array(colorsys.hsv_to_rgb((kind / options.classes + rng.normal(0, 0.02)) % 1, 0.8, 0.9), np.float32)
    pixels = stripes[..., None].astype(np.float32) * colour + options.noise * noise
    return (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
