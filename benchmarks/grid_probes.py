"""Fast probes on GRID for the decision-layer benchmarks: log-mel means and mouth pixels under logistic regressions.

Audio and mouth pixels of the 1,000 clips of one speaker are decoded once into FOLDER/grid_probes.npz (about a minute
of CPU time); corruptions are drawn by a generator that the caller seeds. There is one speaker: the unit is the clip.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hf_mmbalance.decision.table import DecisionTable


RATE, FRAME_RATE = 16000, 25
#: Rows and columns of the 224 x 224 image that hold the mouth.
MOUTH = (slice(152, 208), slice(80, 164))
TIMES, BANDS = 10, 26
LABELS = ("digit", "letter", "colour")
SIZES = {"train": 500, "calibration": 200, "test": 300}


@dataclass
class Grid:
    """Decoded clips.

    Args:
        ids: N names.
        sound: `(N, 48000)` float32.
        mouths: `(N, 75, 14, 21)` uint8 luma, downsampled by 4.
        windows: label -> `(N, 2)` seconds.
        words: label -> `(N,)` class indices.
        split: `(N,)` train, calibration or test.
    """

    ids: list[str]
    sound: np.ndarray
    mouths: np.ndarray
    windows: dict[str, np.ndarray]
    words: dict[str, np.ndarray]
    split: np.ndarray

    def rows(self, split: str) -> np.ndarray:
        """Return the indices of one split."""
        return np.flatnonzero(self.split == split)


def load(cache: Path, clips: int | None = None) -> Grid:
    """Load the first clips (default: all 1,000) of `$MMBALANCE_DATA/grid_s1`, decoded once into a folder."""
    root = Path(os.environ["MMBALANCE_DATA"]) / "grid_s1"
    with open(root / "labels.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))[:clips]
    path = cache / "grid_probes.npz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        decoded = [decode(root / row["file"]) for row in table]
        np.savez(path, sound=np.stack([s for s, _ in decoded]), mouths=np.stack([m for _, m in decoded]))
    with np.load(path) as archive:
        sound, mouths = archive["sound"].astype(np.float32), archive["mouths"]
    windows = {n: np.array([[float(r[f"{n}_start_s"]), float(r[f"{n}_end_s"])] for r in table]) for n in LABELS}
    words = {n: np.unique([row[n] for row in table], return_inverse=True)[1] for n in LABELS}
    order = np.random.default_rng(0).permutation(len(table))
    split = np.empty(len(table), dtype="U11")
    split[order] = np.repeat(list(SIZES), list(SIZES.values()))[: len(table)]
    return Grid([row["id"] for row in table], sound, mouths, windows, words, split)


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return audio `(48000,)` float16 at 16 kHz and mouth luma `(75, 14, 21)` of one file."""
    import av

    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE)
        pieces, frames = [], []
        for frame in container.decode(audio=0, video=0):
            if isinstance(frame, av.AudioFrame):
                pieces += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            else:
                luma = frame.reformat(format="gray8").to_ndarray()[MOUTH].astype(np.float32)
                frames.append(luma.reshape(14, 4, 21, 4).mean(axis=(1, 3)).astype(np.uint8))
    sound = np.zeros(3 * RATE, dtype=np.float16)
    joined = np.concatenate(pieces)[: 3 * RATE]
    sound[: len(joined)] = joined
    frames = (frames + frames[-1:] * 75)[:75]
    return sound, np.stack(frames)


def with_sound(grid: Grid, row: int, kind: str, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Return a clip's audio with babble of three clips of the train split, white or pink noise, or low-passed."""
    clean = grid.sound[row]
    if kind == "clean":
        return clean
    if kind == "lowpass":
        return np.asarray(np.convolve(clean, np.ones(24) / 24, mode="same"), dtype=np.float32)
    if kind == "babble":
        voices = rng.choice(grid.rows("train"), size=3, replace=False)
        noise = sum(np.roll(grid.sound[v], rng.integers(clean.size)) for v in voices)
    else:
        noise = rng.normal(size=clean.size)
        if kind == "pink":
            spectrum = np.fft.rfft(noise) / np.sqrt(np.maximum(np.arange(clean.size // 2 + 1), 1))
            noise = np.fft.irfft(spectrum, clean.size)
    factor = np.sqrt(np.mean(clean**2) / (np.mean(noise**2) * 10 ** (snr / 10)))
    return np.asarray(clean + factor * noise, dtype=np.float32)


def with_mouth(grid: Grid, row: int, kind: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return a clip's mouth frames `(75, 14, 21)` in [0, 1] with noise or blur, darkened, or partly covered."""
    x = grid.mouths[row].astype(np.float32) / 255
    if kind == "noise":
        return np.clip(x + rng.normal(0, 0.06 * severity, x.shape), 0, 1)
    if kind == "blur":
        return gaussian_filter(x, (0, 0.6 * severity, 0.6 * severity))
    if kind == "dark":
        return np.clip(x * (1 - 0.17 * severity) + rng.normal(0, 0.01, x.shape), 0, 1)
    if kind == "occlusion":
        x = x.copy()
        top, left = rng.integers(0, 14 - 2 * severity), rng.integers(0, 21 - 2 * severity)
        x[:, top : top + 2 * severity + 2, left : left + 2 * severity + 2] = rng.random()
    return x


def _mel() -> np.ndarray:
    """Return triangular filters `(26, 201)` between 100 and 7,000 Hz."""
    edges = 700 * (10 ** (np.linspace(np.log10(1 + 100 / 700), np.log10(1 + 7000 / 700), BANDS + 2)) - 1)
    at = np.fft.rfftfreq(400, 1 / RATE)
    rise = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))


MEL = _mel()


def hear(sound: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the log-mel energies `(260,)` of a word, averaged in 10 parts of its time."""
    start, end = max(0.0, window[0] - 0.05), window[1] + 0.05
    piece = sound[int(start * RATE) : int(end * RATE)]
    piece = np.pad(piece, (0, max(0, 400 + 160 * TIMES - len(piece))))
    frames = np.lib.stride_tricks.sliding_window_view(piece, 400)[::160] * np.hanning(400)
    energy = np.log(np.abs(np.fft.rfft(frames)) ** 2 @ MEL.T + 1e-4)
    return np.concatenate([part.mean(axis=0) for part in np.array_split(energy, TIMES)])


def watch(mouth: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the mouth pixels `(10 * 49,)` of a word at 10 times."""
    at = np.linspace(max(0.0, window[0] - 0.05), window[1] + 0.05, TIMES) * FRAME_RATE
    frames = mouth[np.clip(np.round(at).astype(int), 0, 74)].reshape(TIMES, 7, 2, 7, 3).mean(axis=(2, 4))
    return frames.reshape(-1)


@dataclass
class Probe:
    """A tower: standardisation, then logistic regression.

    Args:
        scaler: scaler fitted on the training clips.
        model: the regression.
    """

    scaler: StandardScaler
    model: LogisticRegression

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, strength: float) -> Probe:
        """Fit with an inverse regularisation strength C."""
        scaler = StandardScaler().fit(x)
        return cls(scaler, LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(scaler.transform(x), y))

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log-probabilities and standardised features."""
        scaled = self.scaler.transform(x)
        return self.model.predict_log_proba(scaled).clip(-60, 0), scaled


def audio_features(
    grid: Grid, label: str, rows: np.ndarray, kind: str, snr: tuple[float, float], seed: int
) -> np.ndarray:
    """Return audio features of rows under a corruption with SNR drawn from a range, keyed by row and seed."""
    found = []
    for row in rows:
        rng = np.random.default_rng([seed, int(row), 1])
        found.append(hear(with_sound(grid, row, kind, rng.uniform(*snr), rng), grid.windows[label][row]))
    return np.stack(found)


def vision_features(
    grid: Grid, label: str, rows: np.ndarray, kind: str, severity: tuple[int, int], seed: int
) -> np.ndarray:
    """Return mouth features of rows under a corruption with severity drawn from a range, keyed by row and seed."""
    found = []
    for row in rows:
        rng = np.random.default_rng([seed, int(row), 2])
        drawn = int(rng.integers(severity[0], severity[1] + 1))
        found.append(watch(with_mouth(grid, row, kind, drawn, rng), grid.windows[label][row]))
    return np.stack(found)


def as_table(grid: Grid, label: str, parts: list[dict[str, np.ndarray]], classes: int) -> DecisionTable:
    """Join parts into a decision table.

    Each part has rows, split, draw, audio and vision (log-probabilities), and maybe features.
    """
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    features = {m: joined[f"{m}_features"] for m in ("audio", "vision") if f"{m}_features" in joined}
    names = [grid.ids[row] for row in joined["rows"]]
    return DecisionTable(
        ids=[f"{name}#{draw}" for name, draw in zip(names, joined["draw"], strict=True)],
        groups=["s1"] * len(names),
        splits=joined["split"].tolist(),
        labels=grid.words[label][joined["rows"]],
        logits=np.stack([joined["audio"], joined["vision"]], axis=1),
        classes=[str(c) for c in range(classes)],
        modalities=["audio", "vision"],
        features=features,
        clips=names,
        draws=joined["draw"],
    )
