"""Batches of fixed composition, masks on spectrograms, and examples made into tensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hf_mmbalance.training.batches import ClipCollator, MixedBatches, SpecAugment, TrainingClips

from .tiny_runs import ListedClips, random_clips, tiny_processor


def passes(batches: MixedBatches, epoch: int) -> list[list[tuple[int, int]]]:
    batches.set_epoch(epoch)
    return list(batches)


@pytest.mark.parametrize(
    ("train", "calibration", "batch", "parts", "per_step"), [(40, 10, 8, 2, 4), (37, 5, 6, 3, 3), (9, 0, 4, 2, None)]
)
def test_every_batch_holds_as_many_clips_of_each_kind(train, calibration, batch, parts, per_step):
    batches = MixedBatches(train, calibration, batch, parts, per_step)
    made = passes(batches, 0)
    assert len(made) == len(batches) == batches.steps * parts
    for part in made:
        assert len(part) == batch
        assert sum(index >= train for index, _ in part) == (per_step or 0) // parts
    assert {index for part in made for index, _ in part if index < train} == set(range(train))


def test_the_clips_of_a_step_do_not_depend_on_how_it_is_split():
    steps = {}
    for parts in (1, 2, 4):
        batches = MixedBatches(37, 11, 16 // parts, parts, calibration_per_step=4, seed=3)
        made = passes(batches, 2)
        steps[parts] = [sorted(sum(made[i : i + parts], [])) for i in range(0, len(made), parts)]
    assert steps[1] == steps[2] == steps[4]
    assert len(steps[1]) == 4  # 37 train clips, 12 a step


def test_a_process_gets_every_so_manyth_batch_of_a_step():
    from accelerate.data_loader import BatchSamplerShard

    batches = MixedBatches(20, 6, 3, parts=4, calibration_per_step=4)  # 2 processes, 2 accumulation steps
    whole = list(batches)
    shards = [list(BatchSamplerShard(batches, 2, process)) for process in (0, 1)]
    for step in range(batches.steps):
        dealt = [shard[2 * step + accumulation] for shard in shards for accumulation in (0, 1)]
        assert sorted(sum(dealt, [])) == sorted(sum(whole[4 * step : 4 * step + 4], []))


def test_every_train_clip_once_before_any_is_drawn_again():
    batches = MixedBatches(10, 4, 4, calibration_per_step=1, seed=1)
    train = [index for part in passes(batches, 0) for index, _ in part if index < 10]
    assert len(train) == 12 and sorted(train[:10]) == list(range(10))
    calibration = [index for part in passes(batches, 0) for index, _ in part if index >= 10]
    assert len(set(calibration)) == 4  # 4 of 4 clips in 4 steps: none twice


def test_more_calibration_clips_than_there_are_go_round_evenly():
    batches = MixedBatches(40, 2, 4, calibration_per_step=2)
    drawn = [index for part in batches for index, _ in part if index >= 40]
    assert drawn.count(40) == drawn.count(41) == 20


def test_order_depends_on_seed_and_epoch_alone():
    one, same = MixedBatches(30, 6, 6, seed=5), MixedBatches(30, 6, 6, seed=5)
    assert passes(one, 0) == passes(same, 0)
    order = [[index for part in passes(one, epoch) for index, _ in part] for epoch in (0, 1)]
    assert order[0] != order[1]
    assert passes(MixedBatches(30, 6, 6, seed=6), 0) != passes(one, 0)
    assert passes(one, 0) == passes(same, 0)  # whatever was read in between
    assert {epoch for part in passes(one, 4) for _, epoch in part} == {4}


def test_calibration_clips_have_their_share_by_default():
    assert MixedBatches(300, 100, 16).calibration_per_step == 4
    assert MixedBatches(300, 100, 16, parts=2).calibration_per_step == 8
    assert MixedBatches(1000, 1, 16).calibration_per_step == 1  # never none
    assert MixedBatches(100, 0, 16).calibration_per_step == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((10, 4, 4, 2, 3), "calibration_per_step=3 must be a multiple of 2"),
        ((10, 4, 4, 1, 4), "does not fit a global batch of 4 clips"),
        ((10, 4, 4, 1, 9), "does not fit"),
        ((10, 4, 4, 1, -1), "does not fit"),
        ((10, 0, 4, 1, 2), "0 calibration clips"),
        ((10, 4, 1, 1, None), "raise per_device_train_batch_size"),
    ],
)
def test_compositions_that_make_no_sense(arguments, words):
    with pytest.raises(ValueError, match=words):
        MixedBatches(*arguments)


class Keyed(ListedClips):
    """Clips whose sound tells for which epoch it was made."""

    def media(self, place, epoch):
        return np.full(4, -1.0 if epoch is None else epoch, dtype=np.float32), None


def test_calibration_clips_are_never_augmented():
    train, calibration = (Keyed(split, [(None, None)] * 3, [0, 1, 2]) for split in ("train", "calibration"))
    both = TrainingClips(train, calibration)
    assert len(both) == 6
    assert [both[index, 7]["audio"][0] for index in range(6)] == [7, 7, 7, -1, -1, -1]
    assert [both[index, 7]["epoch"] for index in range(6)] == [7, 7, 7, None, None, None]
    assert [both[index, 7]["calibration"] for index in range(6)] == [False] * 3 + [True] * 3
    assert [both[index, 7]["id"] for index in (0, 5)] == ["train-0", "calibration-2"]
    assert both[1]["audio"][0] == -1 and both[1]["epoch"] is None  # no epoch, no augmentation
    assert len(TrainingClips(train, None)) == 3


def masked(augment: SpecAugment, clip: str = "a", epoch: int = 0, shape: tuple[int, int] = (40, 20)) -> np.ndarray:
    features = torch.ones(shape)
    augment(features, clip, epoch)
    return features.numpy() == 0


def test_masks_are_whole_bands_and_stretches_within_their_widths():
    widths = {"bands": set(), "stretches": set()}
    for epoch in range(200):
        bands = masked(SpecAugment(frequency_masks=1, frequency_width=5), epoch=epoch)
        stretches = masked(SpecAugment(time_masks=1, time_width=7), epoch=epoch)
        assert (bands == bands[0]).all() and (stretches.T == stretches[:, 0]).all()
        for name, line in (("bands", bands[0]), ("stretches", stretches[:, 0])):
            edges = np.flatnonzero(np.diff(np.r_[0, line.astype(int), 0]))
            assert len(edges) in (0, 2)  # one piece or none
            widths[name].add(int(line.sum()))
    assert widths == {"bands": set(range(6)), "stretches": set(range(8))}


def test_several_masks_and_masks_wider_than_the_spectrogram():
    both = [masked(SpecAugment(2, 4, 3, 5), epoch=epoch) for epoch in range(50)]
    assert max(mask.all(0).sum() for mask in both) <= 8 and max(mask.all(1).sum() for mask in both) <= 15
    assert any((~mask).any() for mask in both)
    assert masked(SpecAugment(1, 100, 1, 100), shape=(3, 2)).shape == (3, 2)


def test_masks_depend_on_seed_epoch_and_clip_alone():
    def mask(seed: int = 0, clip: str = "a", epoch: int = 0) -> bytes:
        return masked(SpecAugment(2, 8, 2, 8, seed=seed), clip, epoch).tobytes()

    torch.manual_seed(1)
    first = mask()
    torch.manual_seed(2)
    assert mask() == first
    assert len({first, mask(seed=1), mask(clip="b"), mask(epoch=1)}) == 4
    before = torch.get_rng_state()
    mask()
    assert torch.equal(torch.get_rng_state(), before)  # dropout draws what it would have drawn


def test_collator_gives_tensors_labels_and_masks():
    clips = random_clips("train", 4, without={1: "audio", 2: "vision"})
    batch = ClipCollator(tiny_processor())([clips[index] for index in range(4)])
    assert batch["input_values"].shape == (4, 16, 16) and batch["pixel_values"].shape == (4, 2, 3, 16, 16)
    assert batch["modality_mask"].tolist() == [[True, True], [False, True], [True, False], [True, True]]
    assert batch["frame_mask"].tolist() == [[True, True], [True, True], [False, False], [True, True]]
    assert batch["labels"].tolist() == [0, 1, 2, 0] and batch["labels"].dtype == torch.int64
    assert "calibration_mask" not in batch
    alone = ClipCollator(tiny_processor())([clips[3]])
    assert torch.equal(alone["input_values"][0], batch["input_values"][3])


@pytest.mark.parametrize(("lacking", "absent"), [("audio", "input_values"), ("vision", "pixel_values")])
def test_a_batch_in_which_no_clip_has_a_modality(lacking, absent):
    clips = random_clips("train", 3, without=dict.fromkeys(range(3), lacking))
    batch = ClipCollator(tiny_processor(), SpecAugment(1, 4))([{**clip, "epoch": 1} for clip in clips])
    assert absent not in batch
    assert batch["modality_mask"].sum().item() == 3


def test_collator_says_which_clips_are_for_calibration_and_masks_only_the_others():
    clips = TrainingClips(random_clips("train", 2), random_clips("calibration", 2))
    examples = [clips[index, 3] for index in range(4)]
    plain = ClipCollator(tiny_processor())(examples)
    assert plain["calibration_mask"].tolist() == [False, False, True, True]
    augment = SpecAugment(1, 12, 1, 12)
    augmented = ClipCollator(tiny_processor(), augment)(examples)
    for index, example in enumerate(examples[:2]):
        expected = plain["input_values"][index].clone()
        augment(expected, example["id"], 3)
        assert torch.equal(augmented["input_values"][index], expected)
    assert not torch.equal(augmented["input_values"][:2], plain["input_values"][:2])
    assert torch.equal(augmented["input_values"][2:], plain["input_values"][2:])


def test_sound_at_another_rate_is_resampled_to_the_towers():
    time = np.arange(8000) / 8000
    low = ListedClips("train", [(np.sin(2 * np.pi * 440 * time).astype(np.float32), None)], [0])
    low.sampling_rate = 8000
    high_time = np.arange(16000) / 16000
    high = ListedClips("train", [(np.sin(2 * np.pi * 440 * high_time).astype(np.float32), None)], [0])
    collate = ClipCollator(tiny_processor())
    one, other = (collate([clips[0]])["input_values"] for clips in (low, high))
    low.sampling_rate = 16_000  # taken at its word, the tone is an octave higher
    wrong = collate([low[0]])["input_values"]
    below = slice(0, 6)  # mel bins that hold 440 Hz; above 4 kHz the slow recording has nothing
    assert (one - other)[..., below].abs().max() < 0.05 < (wrong - other)[..., below].abs().max()


def test_a_clip_at_fault_is_named():
    clips = [random_clips("train", 4)[index] for index in range(4)]
    collate = ClipCollator(tiny_processor())
    for broken, words in (
        ({"audio": np.array([0.1, np.nan], dtype=np.float32)}, "NaN or infinite"),
        ({"audio": np.zeros(0, dtype=np.float32)}, "empty"),
        ({"audio": None, "frames": None}, "no modality at all"),
        ({"frames": np.zeros((0, 8, 8, 3), dtype=np.uint8)}, "zero frames"),
    ):
        for examples in ([*clips[:2], {**clips[2], **broken}, clips[3]], [{**clips[2], **broken}]):
            with pytest.raises(ValueError, match=f"clip 'train-2': .*{words}"):
                collate(examples)
    assert collate(clips)["labels"].tolist() == list(itertools.islice(itertools.cycle([0, 1, 2]), 4))
