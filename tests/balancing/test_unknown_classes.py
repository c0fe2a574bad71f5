"""A modality that does not know a clip's class has no part in that clip's losses and comparisons."""

from __future__ import annotations

import pytest
import torch

from ..model.tiny import tiny_model
from .steps import CLIPS, LABELS, attached, batch_of, clips


#: A classifier that knows the first two of the four classes.
SOURCE = {"labels": ["calm", "angry"], "classes": [[0], [1], [], []], "layer_norm_eps": None, "layers": None}
KNOWN = LABELS < 2
TAUGHT = torch.stack([KNOWN, torch.ones(CLIPS, dtype=torch.bool)], dim=1)


def after_a_batch(name: str, **options):
    """The method's sums over a batch, and the model's output."""
    model = attached(name, model=tiny_model(fusion="adaptive", source_labels={"audio": SOURCE}), **options)
    inputs = clips()
    model.balancing.clip_index = inputs.pop("clip_index")
    output = model(**inputs)
    return model.balancing._totals, output


@pytest.mark.parametrize("name", ["ogm", "mlb", "inforeg", "opm", "agm"])
def test_scores_are_of_the_clips_whose_class_both_know(name):
    totals, output = after_a_batch(name)
    assert totals["clips"] == KNOWN.sum() == 4
    if name != "agm":  # which has scores of its own
        right = output.modality_logits.softmax(-1)[torch.arange(CLIPS), :, LABELS]
        torch.testing.assert_close(totals["scores"], right[KNOWN].sum(0))


def test_a_task_loss_is_of_the_clips_whose_class_the_modality_knows():
    totals, output = after_a_batch("olm")
    losses = torch.nn.functional.cross_entropy(output.modality_logits[:, 0], LABELS, reduction="none")
    assert losses[~KNOWN].min() > 10  # what it says of a class that it does not know
    torch.testing.assert_close(totals["losses"][0], losses[KNOWN].sum())


def random_logits() -> torch.Tensor:
    return 2 * torch.randn(CLIPS, 2, 4, generator=torch.Generator().manual_seed(3))


def test_a_clip_is_not_given_to_a_modality_that_does_not_know_its_class():
    logits = random_logits()
    logits[:, 0] *= 0.1  # audio is closest to uniform of every clip
    chosen = torch.where(KNOWN, 0, 1)
    losses = torch.nn.functional.cross_entropy(logits[torch.arange(CLIPS), chosen], LABELS)
    found = attached("remix", gamma=0.3, warmup=0.0).balancing.loss(batch_of(logits, TAUGHT))
    assert found.item() == pytest.approx(1.3 * losses.item(), abs=1e-5)


def test_a_stage_teaches_no_class_that_its_modality_does_not_know():
    logits = random_logits()
    losses = torch.nn.functional.cross_entropy(logits[:, 0], LABELS, reduction="none")
    others_right = logits[:, 1].softmax(-1)[torch.arange(CLIPS), LABELS]
    expected = ((5 - others_right) * losses)[KNOWN].sum() / CLIPS / 4
    found = attached("reconboost").balancing.loss(batch_of(logits, TAUGHT))
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
