"""GRID as a data set: columns, splits, and training data equal to the raw clips."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_mmbalance.building.plan import EncodeOptions
from hf_mmbalance.building.recipes.grid import plan_grid
from hf_mmbalance.building.report import read_report
from hf_mmbalance.building.validate import validate
from hf_mmbalance.data import GridOptions, load_clips
from hf_mmbalance.data.sources.grid import assign_splits, scan_grid

from .test_crema_d import load_script


@pytest.fixture(scope="module")
def some(real_data, tmp_path_factory):
    """Forty of the real clips."""
    root = tmp_path_factory.mktemp("raw") / "grid"
    (root / "s1").mkdir(parents=True)
    (root / "align").symlink_to(real_data / "grid_s1" / "align")
    for path in sorted((real_data / "grid_s1" / "s1").iterdir())[::25]:
        (root / "s1" / path.name).symlink_to(path)
    return root


def test_columns_and_splits(some, tmp_path):
    out = tmp_path / "out"
    flags = ["--source", str(some), "--out", str(out), "--num-proc", "1", "--frames", "2", "--frame-size", "32"]
    assert load_script("grid").main(["build", *flags]) == 0
    report = read_report(out)
    assert report["clips"]["built"] == 40 and validate(out) == []
    assert set(report["splits"]["default"]) == {"train", "validation", "test"}
    rows = {row["id"]: row for path in (out / "data").iterdir() for row in pq.read_table(path).to_pylist()}
    row = rows["bbaf2n"]
    assert row["sentence"] == "bin blue at f two now" and row["digit"] == 2 and row["speaker"] == "s1"
    assert (row["digit_start"], row["digit_end"]) == (1.64, 1.89) and row["letter"] == 5


def test_of_many_speakers_the_calibration_clips_are_those_of_whole_speakers(tmp_path):
    """As from the raw clips: calibration clips taken from the train part of a build would share their speakers."""
    for speaker in range(6):
        (tmp_path / f"s{speaker}").mkdir()
        for name in ("bbaf1n", "bbaf2n", "bgaf1n", "bgaf2n"):
            (tmp_path / f"s{speaker}" / f"{name}.mpg").touch()
    plan = plan_grid(tmp_path, EncodeOptions())
    clips = scan_grid(tmp_path)
    raw, _ = assign_splits(clips, GridOptions())
    assert {clip.id: clip.cell for clip in plan.clips} == dict(zip((clip.id for clip in clips), raw, strict=True))
    assert set(plan.configs["default"]) == {"train", "calibration", "validation", "test"}
    few = plan_grid(tmp_path, EncodeOptions(), speakers=["s1", "s2"])
    assert set(few.configs["default"]) == {"train", "validation", "test"}


CROP = [0.32, 0.69, 0.75, 0.96]


@pytest.fixture(scope="module")
def built(some, tmp_path_factory):
    """Every frame around the mouth, without loss."""
    out = tmp_path_factory.mktemp("built") / "lips"
    flags = ["--source", str(some), "--out", str(out), "--num-proc", "1", "--fps", "25", "--image-format", "png"]
    flags += ["--crop", *map(str, CROP), "--frame-size", "32", "48"]
    assert load_script("grid").main(["build", *flags]) == 0
    return out


@pytest.mark.parametrize("noise", ["babble", "none"])
def test_training_data_from_the_build_equal_the_raw_clips(some, built, noise):
    """Same splits, order, windows, noise and augmentation; every pixel and sample equal."""
    common = {"noise": noise, "snr_db": -3.0, "frame_size": [32, 48], "frames": 6, "shift": 0.05}
    common |= {"crop_jitter": 0.05, "margin": 0.1}
    raw = load_clips("grid", data_dir=str(some), window="word", crop=CROP, **common)
    columns = {"label_column": "digit", "start_column": "digit_start", "end_column": "digit_end"}
    for in_memory in (False, True):
        stored = load_clips(str(built), in_memory=in_memory, **columns, **common)
        assert stored.classes == raw.classes
        for split, part in raw.splits.items():
            assert stored[split].ids == part.ids and stored[split].labels == part.labels
            for key in (0, (1, 3)):
                one, other = part[key], stored[split][key]
                np.testing.assert_array_equal(one["frames"], other["frames"])
                np.testing.assert_array_equal(one["audio"], other["audio"])
