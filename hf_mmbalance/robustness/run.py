"""Load a finished run of training or of `mmbalance fuse`, with its model and the test clips of its evaluation."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.data import load_clips, options_class
from hf_mmbalance.data.clips import ClipDataset, ClipSplits, DataError
from hf_mmbalance.data.corruptions import kinds_of
from hf_mmbalance.data.sources import typed_name
from hf_mmbalance.decision.fits import fit_prior
from hf_mmbalance.decision.results import RESULTS
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.decision.table_files import RUN_TABLE
from hf_mmbalance.embedding.dataset_options import load_dataset
from hf_mmbalance.embedding.run import FUSED_DATA
from hf_mmbalance.hub.limits import check_head


@dataclass(frozen=True)
class RunOptions:
    """What the results of a training run or a fusion say about its clips.

    Attributes:
        read_clips: function that reads the clips again.
        batch_size: clips per forward pass when the run was evaluated.
        trained_on: names of the corruptions in the clips that the towers were trained on.
        fitted_on: names of the corruptions in the clips that the decision layer was fitted on.
        test_remedy: how to get test clips, appended to the message that the run has none.
    """

    read_clips: Callable[[], ClipSplits]
    batch_size: int
    trained_on: list[str]
    fitted_on: list[str]
    test_remedy: str = ""

    @classmethod
    def of(cls, results: dict[str, Any]) -> RunOptions:
        """Read the options from `results.json` of training or of `mmbalance fuse`, which does not train towers."""
        arguments = arguments_of(results)
        if "heads" not in results:
            return cls(
                partial(clips_of_run, arguments),
                int(arguments["per_device_eval_batch_size"]),
                arguments.get("train_corruptions") or [],
                arguments.get("calibration_corruptions") or [],
            )
        return cls(
            partial(clips_of_fusion, arguments),
            int(arguments["batch_size"]),
            trained_on=[],
            fitted_on=arguments["corruptions"] if arguments["draws"] > 1 else [],
            test_remedy="; fuse again with --test_fraction 0.3, or give some clips the split test",
        )


@dataclass
class Run:
    """A finished run of training or of `mmbalance fuse`: its model, its clips and its options.

    Attributes:
        folder: output folder of the run.
        options: what its `results.json` says about its clips.
        clips: test clips to evaluate.
        log_prior: `(C,)`, see `log_prior_of_run`.
    """

    folder: Path
    options: RunOptions
    model: MMBalanceForAudioVisualClassification
    processor: MMBalanceProcessor
    clips: ClipDataset
    log_prior: np.ndarray

    @property
    def seen(self) -> list[str]:
        """Kinds of corruption that the towers were trained on or that the decision layer was fitted on."""
        met = [*self.options.trained_on, *(self.options.fitted_on if self.model.fusion.fitted else [])]
        names = [name for name in met if name != "none"]
        return kinds_of(names) if names else []

    @property
    def known(self) -> np.ndarray:
        """`(M, C)` bool, the classes that each modality knows."""
        return np.array(self.model.config.known_classes, dtype=bool)


class SomeClips(ClipDataset):
    """A given number of clips, spread evenly over a dataset."""

    def __init__(self, dataset: ClipDataset, count: int):
        self.dataset = dataset
        self.places = np.unique(
            np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
        ).tolist()
        ids, groups, labels = (
            [values[i] for i in self.places] for values in (dataset.ids, dataset.groups, dataset.labels)
        )
        super().__init__(ids, groups, labels, dataset.classes, sampling_rate=dataset.sampling_rate)

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        example = self.dataset[self.places[place]]
        return example["audio"], example["frames"]


def load_run(folder: Path, max_clips: int | None = None, trust_remote_code: bool = False) -> Run:
    """Load the model and the clips of a finished run.

    Args:
        folder: output folder of a training run or of `mmbalance fuse`.
        max_clips: evaluate only this many test clips, spread evenly over the split.
        trust_remote_code: run the file of a fusion head that was saved with the model.

    Raises:
        DataError: the folder does not hold a finished run, or its clips are missing or have changed.
    """
    file = folder / RESULTS
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        dataset, options = results["arguments"]["dataset"], RunOptions.of(results)
        fusion, classes = results["fusion"], list(results["classes"])
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; give the output folder of a finished training run") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file} is damaged or was not written by a training run of this version") from None
    if max_clips is not None and max_clips < 1:
        raise DataError(f"max_clips must be at least 1, got {max_clips}")
    check_head({"fusion": fusion}, str(folder), trust_remote_code)
    splits = options.read_clips()
    if list(splits.classes) != classes:
        raise DataError(f"{dataset} has different classes from the run in {folder}: it was changed since")
    test = splits.splits.get("test")
    if test is None or not len(test):
        raise DataError(f"{dataset} has no test clips, but corruption is evaluated on test clips{options.test_remedy}")
    model = MMBalanceForAudioVisualClassification.from_pretrained(folder, trust_remote_code=trust_remote_code)
    processor = MMBalanceProcessor.from_pretrained(folder)
    table = DecisionTable.read(folder / RUN_TABLE)
    _check_unchanged(table, splits, processor, f"the run in {folder}", dataset)
    return Run(
        folder,
        options,
        model.eval(),
        processor,
        test if max_clips is None else SomeClips(test, max_clips),
        log_prior_of_run(table, "calibration" if model.fusion.fitted else "train"),
    )


def _check_unchanged(
    table: DecisionTable, splits: ClipSplits, processor: MMBalanceProcessor, run: str, dataset: str
) -> None:
    """Check that these are the clips that the run was tested on.

    Raises:
        DataError: clips or labels differ from the table of the run, or the dataset was rebuilt with other options.
    """
    rows, test = table.select("test"), splits["test"]
    if dict(zip(rows.ids, rows.labels, strict=True)) != dict(zip(test.ids, test.labels, strict=True)):
        raise DataError(f"{dataset} has different test clips or labels from {run}: it was changed since")
    if splits.reading is not None and splits.reading.stored != processor.spec.stored:
        raise DataError(f"{dataset} was rebuilt with different options since {run}: build it as before or train again")


def log_prior_of_run(table: DecisionTable, split: str) -> np.ndarray:
    """Return the log class prior `(C,)` of a split of the run's table, as used by the run's own row `prior_sum`."""
    rows = table.select(split if split in table.splits else "train")
    return fit_prior(rows.labels, len(table.classes), rows.clip_names)


def arguments_of(results: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a run; a dataset on the Hub is pinned to the commit that the run read."""
    arguments, data = dict(results["arguments"]), results["provenance"]["data"]
    if data["revision"] is not None:
        arguments["dataset"] = f"{data['name']}@{data['revision']}"
        for option in ("revision", "data.revision"):  # names in training and in `mmbalance fuse`
            arguments.pop(option, None)
    return arguments


def clips_of_fusion(arguments: dict[str, Any]) -> ClipSplits:
    """Load the splits of a fusion from the arguments in its `results.json`."""
    return load_dataset(argparse.Namespace(**arguments), **FUSED_DATA)[0]


def clips_of_run(arguments: dict[str, Any]) -> ClipSplits:
    """Load the splits of a training run from the arguments in its `results.json`."""
    if arguments.get("embeddings"):
        raise DataError(
            f"the run was trained on the features in {arguments['embeddings']}, which cannot be corrupted: train with"
            " --dataset and --trainable_layers 0 to evaluate it"
        )
    dataset = arguments["dataset"]
    names = {entry.name: typed_name(entry.name) for entry in fields(options_class(dataset))}
    return load_clips(dataset, **{name: arguments[typed] for name, typed in names.items() if typed in arguments})
