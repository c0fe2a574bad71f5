"""Order of clips, masks on spectrograms, and examples made into tensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from hf_mmbalance.data.streaming import EpochOrder
from hf_mmbalance.training.batches import ClipCollator, KeyedClips, SpecAugment

from .tiny_runs import ListedClips, random_clips, tiny_processor


def keys(clips: int, epoch: int = 0, **options) -> list[tuple[int, int]]:
    order = EpochOrder(range(clips), **options)
    order.set_epoch(epoch)
    return list(order)


@pytest.mark.parametrize(("clips", "fill"), [(10, 1), (10, 4), (37, 16), (3, 16), (16, 16)])
def test_an_order_gives_every_clip_once_then_fills_up(clips, fill):
    order = EpochOrder(range(clips), fill=fill)
    drawn = [index for index, _ in order]
    assert len(drawn) == len(order) and len(drawn) % fill == 0 and len(drawn) - clips < fill
    assert sorted(drawn[:clips]) == list(range(clips))
    for start in range(clips, len(drawn), clips):
        again = drawn[start : start + clips]
        assert len(set(again)) == len(again)  # filled up evenly


def test_an_order_depends_on_seed_and_epoch_alone():
    assert keys(30, 2, seed=5) == keys(30, 2, seed=5)
    order = EpochOrder(range(30), seed=5)
    list(order)
    order.set_epoch(2)
    assert list(order) == keys(30, 2, seed=5)  # whatever was read before
    assert {epoch for _, epoch in order} == {2}
    assert [i for i, _ in keys(30, 1, seed=5)] != [i for i, _ in keys(30, 2, seed=5)]
    assert keys(30, 2, seed=6) != keys(30, 2, seed=5)


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_the_clips_of_a_step_do_not_depend_on_how_it_is_split(processes, accumulation):
    """As accelerate deals batches: process p gets every so-manyth, in turn."""
    whole = keys(37, fill=16)
    batch = 16 // (processes * accumulation)
    batches = BatchSampler(EpochOrder(range(37), fill=16), batch, drop_last=False)
    shards = [list(BatchSamplerShard(batches, processes, process)) for process in range(processes)]
    for step in range(3):
        dealt = [shard[step * accumulation + part] for shard in shards for part in range(accumulation)]
        assert sorted(sum(dealt, [])) == sorted(whole[16 * step : 16 * step + 16])


class Keyed(ListedClips):
    """Clips whose sound tells for which epoch it was made."""

    def media(self, place, epoch):
        return np.full(4, -1.0 if epoch is None else epoch, dtype=np.float32), None


def test_clips_are_augmented_where_they_are_asked_for_with_an_epoch():
    clips = KeyedClips(Keyed("train", [(None, None)] * 3, [0, 1, 2]))
    assert len(clips) == 3
    assert clips[1, 7]["audio"][0] == 7 and clips[1, 7]["epoch"] == 7 and "index" not in clips[1, 7]
    assert clips[1]["audio"][0] == -1 and clips[1]["index"] == 1 and "epoch" not in clips[1]


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
    alone = ClipCollator(tiny_processor())([clips[3]])
    assert torch.equal(alone["input_values"][0], batch["input_values"][3])


@pytest.mark.parametrize(("lacking", "absent"), [("audio", "input_values"), ("vision", "pixel_values")])
def test_a_batch_in_which_no_clip_has_a_modality(lacking, absent):
    clips = random_clips("train", 3, without=dict.fromkeys(range(3), lacking))
    batch = ClipCollator(tiny_processor(), SpecAugment(1, 4))([{**clip, "epoch": 1} for clip in clips])
    assert absent not in batch
    assert batch["modality_mask"].sum().item() == 3


def test_collator_masks_the_examples_of_an_epoch_and_numbers_the_others():
    clips = KeyedClips(random_clips("train", 4))
    asked = [clips[0, 3], clips[1, 3], clips[2], clips[3]]
    augment = SpecAugment(1, 12, 1, 12)
    plain, augmented = ClipCollator(tiny_processor())(asked), ClipCollator(tiny_processor(), augment)(asked)
    for index, example in enumerate(asked[:2]):
        expected = plain["input_values"][index].clone()
        augment(expected, example["id"], 3)
        assert torch.equal(augmented["input_values"][index], expected)
    assert not torch.equal(augmented["input_values"][:2], plain["input_values"][:2])
    assert torch.equal(augmented["input_values"][2:], plain["input_values"][2:])
    assert "clip_index" not in plain
    assert ClipCollator(tiny_processor())(asked[2:])["clip_index"].tolist() == [2, 3]


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
