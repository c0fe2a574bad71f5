"""Corruptions: severity is monotone in what it should change, levels hold exactly, nothing depends on the order."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest

from hf_mmbalance.data import DataError, load_clips
from hf_mmbalance.data.clips import ClipDataset
from hf_mmbalance.data.corruptions import (
    CORRUPTIONS,
    GROUPS,
    NOISE_DB,
    SEVERITIES,
    ClipsCorruptedByEpoch,
    ClipsOfOneCorruption,
    CorruptedClips,
    CorruptionPlan,
    corrupt_audio,
    corrupt_frames,
    kinds_of,
)
from hf_mmbalance.data.corruptions_audio import room_response


RATE = 16_000
SOUND = [name for name, kind in CORRUPTIONS.items() if kind.modality == "audio" and kind.function]
PICTURE = [name for name, kind in CORRUPTIONS.items() if kind.modality == "vision" and kind.function]


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key or 0)


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    return (0.1 * rng(1).standard_normal(RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def voices() -> list[np.ndarray]:
    return [(0.05 * rng(2, i).standard_normal(4_000 + 3_000 * i)).astype(np.float32) for i in range(6)]


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return rng(3).integers(0, 256, (10, 40, 50, 3), dtype=np.uint8)


def snr_db(clean: np.ndarray, noisy: np.ndarray) -> float:
    noise = noisy.astype(np.float64) - clean
    return 10 * np.log10(np.mean(clean.astype(np.float64) ** 2) / np.mean(noise**2))


def strictly(values: list[float], direction: str) -> bool:
    steps = np.diff(values)
    return bool((steps < 0).all() if direction == "falls" else (steps > 0).all())


@pytest.mark.parametrize("kind", ["babble", "white_noise", "pink_noise"])
def test_noise_has_the_stated_ratio(kind, wave, voices):
    for severity, level in zip(SEVERITIES, NOISE_DB, strict=True):
        noisy = corrupt_audio(wave, RATE, kind, severity, rng(), voices)
        assert snr_db(wave, noisy) == pytest.approx(level, abs=1e-3)


def test_conflict_mixes_another_sound_in_and_then_replaces_it(wave, voices):
    for severity, level in zip(SEVERITIES[:4], CORRUPTIONS["conflict"].levels[:4], strict=True):
        assert snr_db(wave, corrupt_audio(wave, RATE, "conflict", severity, rng(), voices)) == pytest.approx(
            level, abs=1e-3
        )
    replaced = corrupt_audio(wave, RATE, "conflict", 5, rng(), voices)
    np.testing.assert_array_equal(replaced[:4_000], voices[0])
    np.testing.assert_array_equal(replaced[4_000:8_000], voices[0])  # repeated to the clip's length


def test_pink_noise_falls_by_ten_decibels_per_decade(wave):
    noise = corrupt_audio(wave, RATE, "pink_noise", 5, rng()).astype(np.float64) - wave
    power = np.abs(np.fft.rfft(noise)) ** 2  # 1 Hz per bin
    low, high = power[50:150].mean(), power[500:1500].mean()
    assert 10 * np.log10(low / high) == pytest.approx(10, abs=1)


def test_a_telephone_keeps_its_band(wave):
    kept = []
    for severity, (low, high) in zip(SEVERITIES, CORRUPTIONS["telephone"].levels, strict=True):
        power = np.abs(np.fft.rfft(corrupt_audio(wave, RATE, "telephone", severity, rng()))) ** 2
        before = np.abs(np.fft.rfft(wave)) ** 2
        inside = slice(round(1.3 * low), round(0.8 * high))
        assert power[inside].sum() / before[inside].sum() == pytest.approx(1, abs=0.05)
        top = round(1.5 * high)
        assert power[top:].sum() / before[top:].sum() < 1e-2
        assert power[: low // 2].sum() / before[: low // 2].sum() < 1e-2
        kept.append(power.sum())
    assert strictly(kept, "falls")
    narrow = corrupt_audio(wave[:800], 4_000, "telephone", 1, rng())  # the band is wider than this rate holds
    assert np.isfinite(narrow).all() and np.abs(narrow).max() > 0


def test_clipping_cuts_the_stated_part_of_the_samples(wave):
    for severity, part in zip(SEVERITIES, CORRUPTIONS["clipping"].levels, strict=True):
        out = corrupt_audio(wave, RATE, "clipping", severity, rng())
        peak = np.abs(wave).max()
        assert np.abs(out).max() == pytest.approx(peak, rel=1e-5)
        assert (np.abs(out) > peak * (1 - 1e-5)).mean() == pytest.approx(part, abs=1e-3)


def test_dropouts_silence_the_stated_part_of_the_packets(wave):
    lost = []
    for severity, part in zip(SEVERITIES, CORRUPTIONS["dropouts"].levels, strict=True):
        out = corrupt_audio(wave, RATE, "dropouts", severity, rng())
        silent = out.reshape(25, 640) == 0  # packets of 40 ms
        assert silent.all(1).sum() == round(part * 25)
        np.testing.assert_array_equal(out[out != 0], wave[out != 0])
        lost.append(set(np.flatnonzero(silent.all(1))))
    assert all(a <= b for a, b in zip(lost, lost[1:], strict=False))  # a higher severity loses more, not others


def test_reverberation_has_the_stated_ratio_and_keeps_the_power(wave):
    for level in CORRUPTIONS["reverberation"].levels:
        response = room_response(level, 0.5, RATE, rng())
        assert response[0] == 1 and 10 * np.log10(1 / np.sum(response[1:] ** 2)) == pytest.approx(level)
    tail = room_response(0.0, 0.5, RATE, rng())[1:]
    drop = 10 * np.log10(np.mean(tail[:800] ** 2) / np.mean(tail[-800:] ** 2))
    assert drop == pytest.approx(60 * 0.9, abs=1.5)  # from the middle of the first 50 ms to that of the last
    correlation = []
    for severity in SEVERITIES:
        out = corrupt_audio(wave, RATE, "reverberation", severity, rng())
        assert np.mean(out**2) == pytest.approx(np.mean(wave**2), rel=1e-3)
        correlation.append(float(np.corrcoef(out, wave)[0, 1]))
    assert strictly(correlation, "falls")


def test_sensor_noise_has_the_stated_deviation():
    grey = np.full((4, 60, 80, 3), 128, np.uint8)
    for severity in SEVERITIES[:3]:  # beyond that, values reach 0 and 255
        out = corrupt_frames(grey, "sensor_noise", severity, rng()).astype(float)
        assert out.std() / 255 == pytest.approx(CORRUPTIONS["sensor_noise"].levels[severity - 1], rel=0.02)


@pytest.mark.parametrize(
    ("kind", "measure", "direction"),
    [
        ("sensor_noise", lambda out, frames: np.abs(out.astype(float) - frames).mean(), "rises"),
        ("blur", lambda out, frames: out.astype(float).std((1, 2)).mean(), "falls"),
        ("pixelate", lambda out, frames: len(np.unique(out[0].reshape(-1, 3), axis=0)), "falls"),
        ("darkness", lambda out, frames: out.mean(), "falls"),
        ("occlusion", lambda out, frames: (out != frames).any(-1).mean(), "rises"),
        ("jpeg_compression", lambda out, frames: np.abs(out.astype(float) - frames).mean(), "rises"),
        ("frozen_frames", lambda out, frames: len(np.unique(out, axis=0)), "falls"),
    ],
)
def test_severity_of_pictures_is_monotone(kind, measure: Callable, direction, frames):
    values = [float(measure(corrupt_frames(frames, kind, severity, rng()), frames)) for severity in SEVERITIES]
    assert strictly(values, direction), values


def test_levels_of_pictures_hold_exactly(frames):
    for severity, factor in zip(SEVERITIES, CORRUPTIONS["darkness"].levels, strict=True):
        dark = corrupt_frames(frames, "darkness", severity, rng())
        np.testing.assert_array_equal(dark, np.rint(frames * factor))
    for severity, part in zip(SEVERITIES, CORRUPTIONS["occlusion"].levels, strict=True):
        covered = (corrupt_frames(frames, "occlusion", severity, rng()) != frames).any((0, 3))
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / covered.size
        assert area == pytest.approx(part, abs=0.02)
    for severity, part in zip(SEVERITIES, CORRUPTIONS["frozen_frames"].levels, strict=True):
        still = corrupt_frames(frames, "frozen_frames", severity, rng())
        assert len(np.unique(still, axis=0)) == 10 - round(part * 9)
    small = corrupt_frames(frames, "pixelate", 2, rng())  # half of 40 x 50: squares of two by two
    squares = frames.reshape(10, 20, 2, 25, 2, 3).mean((2, 4))
    assert np.abs(small[:, ::2, ::2] - squares).max() <= 1
    np.testing.assert_array_equal(small[:, ::2], small[:, 1::2])


def test_a_blurred_point_has_the_stated_width():
    point = np.zeros((1, 101, 101, 3), np.float64)
    point[:, 50, 50] = 255
    bright = np.kron(point, np.ones((1, 9, 9, 1))).astype(np.uint8)  # a square of 9, large enough to survive rounding
    out = corrupt_frames(bright, "blur", 1, rng())[0, :, :, 0].astype(float)
    axis = np.arange(909)
    variance = (out.sum(0) * (axis - 454) ** 2).sum() / out.sum()
    assert np.sqrt(variance - (9**2 - 1) / 12) == pytest.approx(0.015 * 909, rel=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_form_is_kept_and_nothing_is_changed_in_place(severity, wave, voices, frames):
    waves = {"as it is": wave, "one sample": wave[:1], "short": wave[:40], "none": wave[:0]}
    waves |= {"silent": np.zeros(500, np.float32), "constant": np.full(500, 0.2, np.float32)}
    pictures = {"as it is": frames, "one frame": frames[:1], "one pixel": frames[:2, :1, :1]}
    pictures["black"] = np.zeros_like(frames)
    for kind in SOUND:
        for name, given in waves.items():
            before = given.copy()
            out = corrupt_audio(given, RATE, kind, severity, rng(), voices)
            assert out.shape == given.shape and out.dtype == np.float32 and np.isfinite(out).all(), (kind, name)
            np.testing.assert_array_equal(given, before)
            assert out is not given and not np.shares_memory(out, given), (kind, name)
            if name == "silent" and kind != "conflict":
                assert not out.any(), kind
    for kind in PICTURE:
        for name, given in pictures.items():
            before = given.copy()
            out = corrupt_frames(given, kind, severity, rng())
            assert out.shape == given.shape and out.dtype == np.uint8, (kind, name)
            np.testing.assert_array_equal(given, before)


def test_what_is_drawn_comes_from_the_generator(wave, voices, frames):
    for kind in SOUND:
        one, two = (corrupt_audio(wave, RATE, kind, 3, rng(7), voices) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    for kind in PICTURE:
        one, two = (corrupt_frames(frames, kind, 3, rng(7)) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    assert (
        corrupt_audio(wave, RATE, "white_noise", 3, rng(7)) != corrupt_audio(wave, RATE, "white_noise", 3, rng(8))
    )[:9].any()


def test_names_and_groups():
    assert kinds_of("seen")[0] == "babble" and not set(kinds_of("seen")) & set(kinds_of("unseen"))
    assert (
        set(kinds_of(["seen", "unseen"])) == set(kinds_of(["audio", "vision"])) == set(SOUND + PICTURE) - {"conflict"}
    )
    assert set(kinds_of("all")) - set(kinds_of(["seen", "unseen"])) == {"conflict", "missing_audio", "missing_vision"}
    assert kinds_of(["blur", "babble", "blur"]) == ["blur", "babble"]
    for group in ("seen", "unseen"):  # both halves hold both modalities
        assert {CORRUPTIONS[kind].modality for kind in GROUPS[group]} == {"audio", "vision"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kinds_of(["bable"]), "did you mean 'babble'"),
        (lambda: kinds_of([]), "at least one"),
        (lambda: CorruptionPlan.of("seen", severities=(1, 6)), "from 1 to 5, got 6"),
        (lambda: CorruptionPlan.of("seen", severities=()), "severities"),
        (lambda: CorruptionPlan.of("seen", draws=0), "draws must be at least 1"),
        (
            lambda: corrupt_audio(np.zeros(9, np.float32), RATE, "blur", 1, rng()),
            "does not name one corruption of audio",
        ),
        (
            lambda: corrupt_audio(np.zeros(9, np.float32), RATE, "seen", 1, rng()),
            "does not name one corruption of audio",
        ),
        (lambda: corrupt_audio(np.zeros(9, np.float32), RATE, "babble", 1, rng()), "pass voices="),
        (lambda: corrupt_audio(np.zeros(9, np.float32), RATE, "white_noise", 0, rng()), "from 1 to 5, got 0"),
        (lambda: corrupt_frames(np.zeros((1, 4, 4, 3), np.uint8), "blur", 2.5, rng()), "from 1 to 5, got 2.5"),
    ],
)
def test_bad_requests(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_choices_take_one_modality_the_other_or_both_equally_often():
    plan = CorruptionPlan.of("seen", severities=(2, 4), seed=1)
    chosen = [plan.choices(f"clip{i}", 1, ["audio", "vision"]) for i in range(3_000)]
    kinds = [[CORRUPTIONS[kind].modality for kind, _ in choices] for choices in chosen]
    for pattern in (["audio"], ["vision"], ["audio", "vision"]):
        assert kinds.count(pattern) / 3_000 == pytest.approx(1 / 3, abs=0.03)
    counts = {name: sum(kind == name for choices in chosen for kind, _ in choices) for name in plan.kinds}
    assert all(count == pytest.approx(3_000 * 2 / 3 / 3, abs=90) for count in counts.values()), counts
    assert {severity for choices in chosen for _, severity in choices} == {2, 4}
    assert plan.choices("clip0", 0, ["audio", "vision"]) == []
    assert all(len(plan.choices(f"clip{i}", 1, ["vision"])) == 1 for i in range(20))
    assert CorruptionPlan.of("audio").choices("clip0", 1, ["vision"]) == []


class Listed(ClipDataset):
    """Six clips of noise; `lacks` names the missing modality."""

    def __init__(self, lacks: dict[int, str] | None = None, labels: tuple[int, ...] = (0, 1, 2, 0, 1, 2)):
        names = [f"clip{i}" for i in range(len(labels))]
        super().__init__(
            names, [f"speaker{i // 2}" for i in range(len(labels))], labels, list("abc"), sampling_rate=RATE
        )
        self.lacks = lacks or {}

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        draw = rng(place, 0 if epoch is None else epoch)
        wave = draw.standard_normal(1_600).astype(np.float32)
        frames = draw.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
        lacks = self.lacks.get(place)
        return None if lacks == "audio" else wave, None if lacks == "vision" else frames


def same(a: dict, b: dict) -> bool:
    return all(np.array_equal(a[part], b[part]) for part in ("audio", "frames"))


def test_rows_of_corrupted_clips():
    clean = Listed()
    clips = CorruptedClips(clean, CorruptionPlan.of(["babble", "sensor_noise", "blur"], draws=3))
    assert clips.ids[:4] == ["clip0", "clip0#1", "clip0#2", "clip1"] and len(clips) == 18
    assert clips.clips[:4] == ["clip0", "clip0", "clip0", "clip1"] and clips.draws[:4] == [0, 1, 2, 0]
    assert (
        clips.groups[2:4] == ["speaker0", "speaker0"] and clips.labels[2:4] == [0, 1] and clips.classes == list("abc")
    )
    for place in range(18):
        example, original = clips[place], clean[place // 3]
        assert example["id"] == clips.ids[place] and example["label"] == original["label"]
        assert same(example, original) == (place % 3 == 0)
    assert same(clips[4, 9], clips[4]) is False  # the clean clip of epoch 9 is another one
    assert same(clips[3, 9], clean[1, 9])
    assert len(CorruptedClips(clean, CorruptionPlan.of("seen", draws=1))) == 6
    with pytest.raises(DataError, match="already corrupted"):
        CorruptedClips(clips, CorruptionPlan.of("seen"))


def test_corruptions_depend_on_the_key_and_not_on_the_order():
    plan = CorruptionPlan.of("all", draws=4)
    one, two = CorruptedClips(Listed(), plan), pickle.loads(pickle.dumps(CorruptedClips(Listed(), plan)))
    forward = [one[i] for i in range(len(one))]
    backward = {i: two[i] for i in reversed(range(len(two)))}
    assert all(same(forward[i], backward[i]) for i in range(len(one)))
    other = CorruptedClips(Listed(), CorruptionPlan.of("all", draws=4, seed=1))
    assert any(not same(forward[i], other[i]) for i in range(len(one)))


def test_severity_changes_the_level_and_not_what_is_drawn():
    mild, bad = (ClipsOfOneCorruption(Listed(), "white_noise", severity)[0]["audio"] for severity in (1, 5))
    clean = Listed()[0]["audio"]
    assert np.corrcoef(mild - clean, bad - clean)[0, 1] == pytest.approx(1, abs=1e-4)
    assert ClipsOfOneCorruption(Listed(), "white_noise", 1).ids == Listed().ids
    with pytest.raises(DataError, match="'seen' names several corruptions .babble, telephone"):
        ClipsOfOneCorruption(Listed(), "seen", 1)


def test_voices_come_from_other_clips():
    clean = Listed()
    sounds = [clean[i]["audio"] for i in range(6)]
    for place in range(6):
        corrupted = ClipsOfOneCorruption(clean, "conflict", 5)[place]["audio"]
        (source,) = [i for i in range(6) if np.array_equal(corrupted, sounds[i])]
        assert clean.labels[source] != clean.labels[place]
    noise = ClipsOfOneCorruption(clean, "babble", 3)[0]["audio"] - sounds[0]
    fit, residual, *_ = np.linalg.lstsq(np.stack(sounds[1:], 1), noise, rcond=None)
    assert residual[0] < 1e-4 and (fit > 0).all()  # the five other clips, and nothing else
    with pytest.raises(DataError, match="a different class"):
        _ = ClipsOfOneCorruption(Listed(labels=(1, 1)), "conflict", 1)[0]
    with pytest.raises(DataError, match="remove babble"):
        _ = ClipsOfOneCorruption(Listed({0: "audio"}, labels=(0, 1)), "babble", 1)[1]


def test_a_missing_modality_stays_missing_and_a_clip_keeps_one():
    lacks = {0: "audio", 1: "vision"}
    clean, clips = Listed(lacks), CorruptedClips(Listed(lacks), CorruptionPlan.of("all", draws=30))
    for place in range(60):
        example, original = clips[place], clean[place // 30]
        missing = {"audio": "audio", "vision": "frames"}[lacks[place // 30]]
        assert example[missing] is None and original[missing] is None
        assert example["audio"] is not None or example["frames"] is not None
    both = CorruptedClips(Listed(), CorruptionPlan.of(["missing_audio", "missing_vision"], draws=30))
    taken = [(clip["audio"] is None, clip["frames"] is None) for clip in both]
    assert (True, True) not in taken and (True, False) in taken and (False, True) in taken
    only = ClipsOfOneCorruption(clean, "missing_audio", 1)
    assert only[1]["audio"] is not None and only[2]["audio"] is None  # clip 1 has nothing else


def test_training_clips_are_corrupted_by_epoch():
    clean = Listed()
    clips = ClipsCorruptedByEpoch(clean, CorruptionPlan.of("seen", draws=2))
    assert clips.ids == clean.ids and same(clips[0], clean[0])
    untouched = [same(clips[i, epoch], clean[i, epoch]) for i in range(6) for epoch in range(100)]
    assert np.mean(untouched) == pytest.approx(0.5, abs=0.08)
    assert same(clips[2, 5], ClipsCorruptedByEpoch(Listed(), CorruptionPlan.of("seen", draws=2))[2, 5])


def test_every_kind_runs_on_clips_of_a_source():
    part = load_clips("synthetic", train_clips=12, calibration_clips=0, validation_clips=0, test_clips=0)["train"]
    for kind in CORRUPTIONS:
        clip = ClipsOfOneCorruption(part, kind, 5)[0]
        assert not same(clip, part[0]), kind
