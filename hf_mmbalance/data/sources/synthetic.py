"""Made-up clips whose best fusion is known: every class has a sound and a look, shown wrongly at a known rate."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np

from hf_mmbalance.data.bayes import BayesOptimum
from hf_mmbalance.data.clips import SPLITS, ClipDataset, ClipSplits, DataError
from hf_mmbalance.data.seeding import rng_for


@dataclass
class SyntheticOptions:
    """Options of the `synthetic` data."""

    classes: int = field(default=6, metadata={"help": "Number of classes."})
    train_clips: int = field(default=1200, metadata={"help": "Clips the towers learn from."})
    calibration_clips: int = field(default=400, metadata={"help": "Clips the allocation learns from."})
    validation_clips: int = field(default=400, metadata={"help": "Clips for model selection."})
    test_clips: int = field(default=1000, metadata={"help": "Clips for the final numbers."})
    audio_error: list[float] | None = field(
        default=None,
        metadata={"help": "Per class: how often the sound is another class's. Default: reliable for the first half."},
    )
    vision_error: list[float] | None = field(
        default=None,
        metadata={"help": "Per class: how often the look is another class's. Default: reliable for the second half."},
    )
    prior: list[float] | None = field(
        default=None,
        metadata={"help": "Share of every class. Default: the first class of either half has 38 % (of six)."},
    )
    noise: float = field(default=0.3, metadata={"help": "Standard deviation of the noise on sound and pixels."})
    fresh_noise: bool = field(default=True, metadata={"help": "Training clips get new noise every epoch."})
    seconds: float = field(default=0.5, metadata={"help": "Length of the sound."})
    sampling_rate: int = field(default=16_000, metadata={"help": "Rate of the sound in Hz."})
    frames: int = field(default=4, metadata={"help": "Frames a clip."})
    frame_size: int = field(default=32, metadata={"help": "Height and width of a frame in pixels."})
    groups: int = field(default=20, metadata={"help": "Made-up speakers a split; no speaker is in two splits."})
    seed: int = field(default=0, metadata={"help": "Seed of labels, confusions and noise."})

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise DataError(f"classes must be at least 2, got {self.classes}")
        for name in ("audio_error", "vision_error", "prior"):
            values = getattr(self, name)
            if values is not None and len(values) != self.classes:
                raise DataError(f"{name} needs one number a class ({self.classes}), got {len(values)}")

    def bayes(self) -> BayesOptimum:
        """The optimum of these rates.

        The defaults make either modality right for the classes the other gets wrong, and two classes frequent: adding
        up even perfect unimodal log-posteriors counts that prior twice and stays well below the optimum.
        """
        half = (self.classes + 1) // 2
        first = np.array([i in (0, half) for i in range(self.classes)])
        good, poor = np.where(first, 0.2, 0.05), np.where(first, 0.7, 0.8)
        early = np.arange(self.classes) < half
        audio = np.where(early, good, poor) if self.audio_error is None else np.asarray(self.audio_error)
        vision = np.where(early, poor, good) if self.vision_error is None else np.asarray(self.vision_error)
        prior = np.where(first, 19.0, 12.0 / max(self.classes - 2, 1)) if self.prior is None else self.prior
        return BayesOptimum(np.stack([audio, vision]), np.asarray(prior) / np.sum(prior))


class SyntheticClips(ClipDataset):
    """Clips made on the fly from (seed, split, index).

    Attributes:
        shown: `(N, 2)` the class whose sound and look each clip shows.
    """

    def __init__(self, split: str, count: int, options: SyntheticOptions):
        bayes, rng = options.bayes(), rng_for(options.seed, "synthetic", split)
        labels = rng.choice(options.classes, size=count, p=bayes.prior)
        wrong = rng.random((count, 2)) < bayes.error.T[labels]
        other = (labels[:, None] + rng.integers(1, options.classes, size=(count, 2))) % options.classes
        self.shown = np.where(wrong, other, labels[:, None])
        self.split, self.options = split, options
        groups = [f"{split}-speaker{i % options.groups:02d}" for i in range(count)]
        names = [f"class{c}" for c in range(options.classes)]
        ids = [f"{split}-{i:05d}" for i in range(count)]
        super().__init__(ids, groups, labels.tolist(), names, sampling_rate=options.sampling_rate)

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
        options = self.options
        if not (options.fresh_noise and self.split == "train"):
            epoch = None
        rng = rng_for(options.seed, "synthetic", self.split, place, epoch)
        audio, frames = self.shown[place]
        return _sound(int(audio), options, rng), _look(int(frames), options, rng)


def synthetic_clips(options: SyntheticOptions) -> ClipSplits:
    """All splits of the synthetic data, with their optimum."""
    counts = {name: getattr(options, f"{name}_clips") for name in SPLITS}
    splits: dict[str, ClipDataset] = {
        name: SyntheticClips(name, count, options) for name, count in counts.items() if count > 0
    }
    if "train" not in splits:
        raise DataError(f"train_clips must be at least 1, got {options.train_clips}")
    bayes = options.bayes()
    audio, vision = bayes.unimodal_accuracy
    note = (
        f"Bayes-optimal accuracy {bayes.accuracy:.3f} (audio alone {audio:.3f}, vision alone {vision:.3f}, sum of "
        f"perfect log-posteriors {bayes.posterior_sum_accuracy:.3f}, unweighted vote {bayes.vote_accuracy:.3f})"
    )
    return ClipSplits("synthetic", splits["train"].classes, splits, options.sampling_rate, [note], bayes)


def _sound(kind: int, options: SyntheticOptions, rng: np.random.Generator) -> np.ndarray:
    """Two gliding tones in a band of the class's own, beating in its own rhythm, in white noise."""
    length = round(options.seconds * options.sampling_rate)
    time = np.arange(length, dtype=np.float32) / options.sampling_rate
    low = 250.0 * (3000.0 / 250.0) ** (kind / max(options.classes - 1, 1)) * rng.uniform(0.97, 1.03)
    glide = (-1) ** kind * 0.1 * low / options.seconds
    phase = 2 * np.pi * (low * time + glide * time**2 / 2) + rng.uniform(0, 2 * np.pi)
    rhythm = 0.6 + 0.4 * np.sin(2 * np.pi * (4 + 2 * (kind % 3)) * time + rng.uniform(0, 2 * np.pi))
    tone = rhythm * (np.sin(phase) + 0.5 * np.sin(1.5 * phase))
    wave = 0.5 * tone + options.noise * rng.standard_normal(length, dtype=np.float32)
    return (0.3 * wave).astype(np.float32)


def _look(kind: int, options: SyntheticOptions, rng: np.random.Generator) -> np.ndarray:
    """A moving grating in the class's own direction and colour, in pixel noise."""
    size, count = options.frame_size, options.frames
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle = np.pi * kind / options.classes + rng.normal(0, 0.05)
    distance = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    steps = np.linspace(0, 1.5, count, dtype=np.float32)[:, None, None] + rng.uniform(0, 2 * np.pi)
    stripes = 0.5 + 0.5 * np.sin(2 * np.pi * distance + steps)  # (T, H, W)
    colour = np.array(colorsys.hsv_to_rgb((kind / options.classes + rng.normal(0, 0.02)) % 1, 0.8, 0.9), np.float32)
    noise = options.noise * rng.standard_normal((count, size, size, 3), dtype=np.float32)
    pixels = stripes[..., None].astype(np.float32) * colour + noise
    return (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
