"""Synthetic clips: their content, error rates and reproducibility."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from hf_mmbalance.data import DataError, SyntheticOptions, load_clips


@pytest.fixture(scope="module")
def large():
    return load_clips("synthetic", test_clips=20_000)


def test_splits_and_shapes():
    splits = load_clips("synthetic", train_clips=30, calibration_clips=10, validation_clips=0, test_clips=20)
    assert {name: len(part) for name, part in splits.splits.items()} == {"train": 30, "calibration": 10, "test": 20}
    clip = splits["train"][3]
    assert clip["audio"].shape == (8000,) and clip["audio"].dtype == np.float32
    assert clip["frames"].shape == (4, 32, 32, 3) and clip["frames"].dtype == np.uint8
    assert clip["sampling_rate"] == 16_000 and clip["label"] == splits["train"].labels[3]
    assert np.abs(clip["audio"]).max() < 1
    assert splits.shared_groups() == {}
    assert "Bayes-optimal accuracy" in splits.summary()
    assert len(set(splits["train"].groups)) == 20


def test_confusions_happen_at_the_stated_rates(large):
    labels, shown = np.array(large["test"].labels), large["test"].shown
    for c in range(6):
        wrong = (shown[labels == c] != c).mean(0)
        n = (labels == c).sum()
        np.testing.assert_allclose(wrong, large.bayes.error[:, c], atol=4 * np.sqrt(0.25 / n))
    np.testing.assert_allclose(np.bincount(labels) / len(labels), large.bayes.prior, atol=0.015)
    first = shown[(labels == 0) & (shown[:, 1] != 0), 1]  # the wrong ones are spread evenly over the other classes
    np.testing.assert_allclose(np.bincount(first, minlength=6)[1:] / len(first), 0.2, atol=0.03)


def test_clips_are_corrupted_at_the_stated_rates(large):
    corrupted = large["test"].corrupted
    np.testing.assert_allclose(corrupted.mean(0), large.bayes.corrupted, atol=0.015)
    assert corrupted.all(1).mean() == pytest.approx(corrupted[:, 0].mean() * corrupted[:, 1].mean(), abs=0.01)
    wrong = large["test"].shown != np.array(large["test"].labels)[:, None]
    for m in range(2):  # whatever the signature that is hidden
        assert corrupted[wrong[:, m], m].mean() == pytest.approx(corrupted[:, m].mean(), abs=0.03)
    train = load_clips("synthetic", train_clips=4000, train_corrupted=[0.2, 0.0])["train"].corrupted
    assert train[:, 0].mean() == pytest.approx(0.2, abs=0.03) and not train[:, 1].any()


def test_modalities_err_independently_given_the_class(large):
    labels, shown = np.array(large["test"].labels), large["test"].shown
    wrong = shown[labels == 0] != 0
    both = wrong.all(1).mean()
    assert both == pytest.approx(wrong[:, 0].mean() * wrong[:, 1].mean(), abs=0.015)


def test_the_optimum_reaches_its_accuracy_and_exceeds_the_others(large):
    optimum, part = large.bayes, large["test"]
    right = optimum.predict(part.shown, part.corrupted) == np.array(part.labels)
    assert right.mean() == pytest.approx(optimum.accuracy, abs=0.012)
    assert optimum.accuracy > optimum.unimodal_accuracy.max() + 0.08
    # With a uniform prior and honest towers the plain sum is the optimum.
    assert optimum.posterior_sum_accuracy == pytest.approx(optimum.accuracy)


def test_signatures_are_readable():
    """A nearest-mean rule on plain features finds what is shown, except where the clip is corrupted."""
    splits = load_clips("synthetic", test_clips=240)

    def features(part):
        sounds, looks = [], []
        for clip in part:
            spectrum = np.abs(np.fft.rfft(clip["audio"]))
            sounds.append(np.log([band.mean() for band in np.array_split(spectrum[:2500], 100)]))
            looks.append(clip["frames"].mean(axis=(0, 1, 2)))
        return np.array(sounds), np.array(looks)

    train, test = splits["train"], splits["test"]
    for m, (x, y) in enumerate(zip(features(train), features(test), strict=True)):
        means = np.array([x[(train.shown[:, m] == c) & ~train.corrupted[:, m]].mean(0) for c in range(6)])
        guess = ((y[:, None] - means) ** 2).sum(-1).argmin(1)
        readable = ~test.corrupted[:, m]
        assert (guess == test.shown[:, m])[readable].mean() > 0.97
        assert (guess == test.shown[:, m])[~readable].mean() < 0.5  # chance is 1/6


def test_the_same_clip_everywhere_and_new_noise_every_epoch():
    one, two = load_clips("synthetic"), load_clips("synthetic")
    again = pickle.loads(pickle.dumps(one["train"]))
    for other in (two["train"], again):
        np.testing.assert_array_equal(one["train"][7]["audio"], other[7]["audio"])
        np.testing.assert_array_equal(one["train"][7, 2]["frames"], other[7, 2]["frames"])
    assert (one["train"][7, 1]["frames"] != one["train"][7, 2]["frames"]).any()
    np.testing.assert_array_equal(one["train"][7, 1]["audio"], one["train"][7]["audio"])  # a tower can memorise it
    np.testing.assert_array_equal(one["test"][7]["audio"], one["test"][7, 2]["audio"])
    assert one["train"].labels != load_clips("synthetic", seed=1)["train"].labels
    other = load_clips("synthetic", fresh_noise=["audio"])["train"]
    np.testing.assert_array_equal(other[7, 1]["frames"], other[7, 2]["frames"])
    assert (other[7, 1]["audio"] != other[7, 2]["audio"]).any()


def test_own_rates_and_bad_options():
    splits = load_clips("synthetic", classes=3, audio_error=[0.1, 0.2, 0.3], vision_error=[0.3] * 3, prior=[2, 1, 1])
    np.testing.assert_allclose(splits.bayes.error, [[0.1, 0.2, 0.3], [0.3] * 3])
    np.testing.assert_allclose(splits.bayes.prior, [0.5, 0.25, 0.25])
    with pytest.raises(DataError, match="one number per class"):
        SyntheticOptions(audio_error=[0.1])
    with pytest.raises(DataError, match="one number per modality"):
        SyntheticOptions(corrupted=[0.1])
    with pytest.raises(DataError, match="'sound' is not one of audio, vision"):
        SyntheticOptions(fresh_noise=["sound"])
    with pytest.raises(DataError, match="train_corrupted"):
        SyntheticOptions(train_corrupted=[0.1, 1.2])
    with pytest.raises(DataError, match="at least 2"):
        SyntheticOptions(classes=1)
    with pytest.raises(DataError, match="did you mean 'classes'"):
        load_clips("synthetic", clases=3)
    with pytest.raises(DataError, match="train_clips"):
        load_clips("synthetic", train_clips=0)
    for option in ("groups", "frames", "sampling_rate", "frame_size"):
        with pytest.raises(DataError, match=f"{option} must be at least 1, got 0"):
            SyntheticOptions(**{option: 0})
    with pytest.raises(DataError, match="test_clips must be at least 0, got -5"):
        SyntheticOptions(test_clips=-5)
    for seconds in (0.0, float("inf")):
        with pytest.raises(DataError, match=f"at least one audio sample, got {seconds}"):
            SyntheticOptions(seconds=seconds)
    with pytest.raises(ValueError, match="strictly between"):
        load_clips("synthetic", audio_error=[0.0] * 6)
