"""Options of a training run, read from the command line and a YAML file; every field has a help text."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging

from hf_mmbalance.console import did_you_mean, underscored
from hf_mmbalance.data import options_class
from hf_mmbalance.data.options import check_at_least
from hf_mmbalance.data.sources import SOURCES, options_class_of, typed_name
from hf_mmbalance.processes import check_joined, prefer_cpu_where_there_is_no_accelerator
from hf_mmbalance.training.decision_layer import DecisionArguments
from hf_mmbalance.training.help import program
from hf_mmbalance.yaml_files import load_yaml


logger = logging.get_logger(__name__)

CONFIGS = Path(__file__).parents[1] / "configs"
SYNTHETIC = CONFIGS / "synthetic.yaml"


def _help(text: str, default: Any = None) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments:
    """Options that select the clips."""

    dataset: str = _help(
        "'synthetic', 'grid', a folder of class folders, a CSV or Parquet file of path,label[,group][,split], or the"
        " name of a Hub or local dataset with audio and frames or video columns.",
        "synthetic",
    )
    embeddings: str | None = _help("Folder written by `mmbalance embed`: its features are used, and no clip is read.")
    train_corruptions: list[str] = _help(
        "Corruptions of train clips, drawn in every epoch: kinds, groups such as seen, or none.", ["none"]
    )


@dataclass
class ModelArguments:
    """Options of the towers and of the decision."""

    audio_model: str | None = _help("Hub name or folder of the audio backbone. Default: AST-base trained on AudioSet.")
    vision_model: str | None = _help("Hub name or folder of the vision backbone. Default: ViT-base, ImageNet-21k.")
    audio_config: dict | str | None = _help(
        "Config (JSON) of an audio tower with random weights, instead of a backbone."
    )
    vision_config: dict | str | None = _help("Config (JSON) of a vision tower with random weights.")
    audio_revision: str | None = _help("Branch, tag or commit of the audio backbone.")
    vision_revision: str | None = _help("Branch, tag or commit of the vision backbone.")
    model_name_or_path: str | None = _help("Start from a trained model of this package instead of two backbones.")
    audio_max_length: int | None = _help("Spectrogram frames (10 ms each) of AST. Default: fitted to the train clips.")
    audio_mean: float | None = _help(
        "Mean of AST's log-mel input. Default: the backbone's, or AudioSet's for new towers."
    )
    audio_std: float | None = _help("Standard deviation of AST's log-mel input. Default: as for audio_mean.")
    image_mean: list[float] | None = _help("Mean of every colour. Default: the backbone's, or 0.5 for new towers.")
    image_std: list[float] | None = _help("Standard deviation of every colour. Default: as for image_mean.")
    trainable_layers: str = _help("'all', 0 to freeze the towers, or k to train only their last k layers.", "all")
    fusion: str = _help("Fusion head: a registered name, or 'path/to/my_head.py:MyHead'.", "adaptive")
    fusion_options: dict | str | None = _help("Options (JSON) of the fusion head, e.g. '{\"hidden_size\": 128}'.")
    unimodal_head: str = _help("Unimodal heads: 'linear' or 'cosine'.", "linear")
    frame_pooling: str = _help(
        "Pooling over frames: 'mean', 'temporal' (a small transformer layer first) or 'log_probs'.", "mean"
    )
    classifier_dropout: float = _help("Dropout on tower features and in the temporal layer.", 0.0)
    modality_dropout: list[float] = _help("For each modality, the rate at which train clips lose it.", [0.0, 0.0])
    fused_loss_weight: float | None = _help("Weight of the fused loss for the towers. Default: the fusion head's own.")
    unimodal_loss_weight: float | None = _help("Weight of the unimodal losses. Default: the fusion head's own.")
    balancing: str | None = _help(
        "Balancing method: a registered name (docs/balancing.md), or 'path/to/my_method.py:MyMethod'. Default: none."
    )
    balancing_options: dict | str | None = _help("Options (JSON) of the balancing method, e.g. '{\"alpha\": 0.5}'.")
    initializer_range: float = _help("Standard deviation of new weights outside the towers.", 0.02)
    label_smoothing: float = _help("Label smoothing of the towers' losses.", 0.0)
    class_weighted_loss: bool = _help("Weight classes by the inverse of their frequency in the train split.", False)
    frequency_masks: int = _help("SpecAugment: frequency masks on train clips' spectrograms.", 0)
    frequency_mask_width: int = _help("SpecAugment: widest frequency mask, in mel bins.", 8)
    time_masks: int = _help("SpecAugment: time masks.", 0)
    time_mask_width: int = _help("SpecAugment: widest time mask, in frames.", 8)
    attn_implementation: str | None = _help("Attention of both towers: 'sdpa', 'eager', 'flash_attention_2', ...")
    trust_remote_code: bool = _help("Run code that comes with backbones or models from the Hub.", False)
    named = frozenset[str]()  # names of the options given on the command line; not an option itself

    def __post_init__(self) -> None:
        for name in ("audio_config", "vision_config", "fusion_options", "balancing_options"):
            setattr(self, name, _as_mapping(name, getattr(self, name)))
        check_at_least(self, 0, "frequency_masks", "frequency_mask_width", "time_masks", "time_mask_width",
                       "initializer_range")  # fmt: skip
        for name in ("image_mean", "image_std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 3:
                raise ValueError(f"{name}={getattr(self, name)} must be three numbers, one for each colour")
        for name, values in (("audio_std", [self.audio_std]), ("image_std", self.image_std or [])):
            if not all(value is None or value > 0 for value in values):
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")


@dataclass
class MMBalanceTrainingArguments(TrainingArguments):
    """Options of the training loop: all of transformers' `TrainingArguments`, some with defaults of this package."""

    output_dir: str | None = _help("Folder of the run. Default: outputs/<dataset>-<time>-s<seed>.", "")
    per_device_train_batch_size: int = _help("Clips per process and accumulation step.", 16)
    per_device_eval_batch_size: int = _help("Clips per process in evaluation.", 32)
    learning_rate: float = _help("Learning rate of towers and heads.", 1e-4)
    early_stopping_patience: int | None = _help("Stop after that many validations without improvement.")
    eval_strategy: str = _help("When to evaluate on the validation split.", "epoch")
    save_strategy: str = _help("When to save a checkpoint.", "epoch")
    save_total_limit: int | None = _help("Number of checkpoints to keep.", 2)
    load_best_model_at_end: bool = _help("Keep the weights that were best on validation.", True)
    metric_for_best_model: str | None = _help("Validation measure that selects the model.", "nll")
    greater_is_better: bool | None = _help("Whether a higher measure is better. Default: for accuracies only.")
    logging_steps: float = _help("Steps between log lines.", 20)
    ddp_find_unused_parameters: bool | None = _help(
        "On by default: if no clip in a process's batch has a modality, its tower has no gradient.", True
    )
    restore_callback_states_from_checkpoint: bool = _help("Early stopping continues its count in a resumed run.", True)
    seed: int = _help("Random seed of weights, order, dropout and augmentation.", 0)

    def __post_init__(self) -> None:
        if self.hub_token is not None:
            # Trainer pickles its arguments into every checkpoint, and all users of a machine can see command lines.
            raise ValueError("hub_token is not accepted: log in with `hf auth login`, or set HF_TOKEN")
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        check_at_least(self, 1, *sizes)
        check_at_least(self, 0, "num_train_epochs")
        if self.max_steps == 0:  # Trainer would train one step
            raise ValueError("max_steps=0 must be at least 1; to train nothing, set num_train_epochs=0")
        for name in ("fp16_full_eval", "bf16_full_eval", "dataloader_drop_last"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported: every clip is used, and evaluation is as in serving")
        strategies = [str(getattr(value, "value", value)) for value in (self.eval_strategy, self.save_strategy)]
        if self.load_best_model_at_end and strategies[1] not in ("best", strategies[0]):
            raise ValueError(
                f"eval_strategy={strategies[0]!r} and save_strategy={strategies[1]!r}: to keep the best weights, each"
                " evaluation needs a checkpoint; give both the same value, or --load_best_model_at_end false"
            )
        if self.greater_is_better is None:
            self.greater_is_better = "accuracy" in (self.metric_for_best_model or "")
        super().__post_init__()
        uses = self.load_best_model_at_end, self.early_stopping_patience, self.save_strategy == "best"
        if not (any(uses) or self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")):
            # Trainer would still track the best checkpoint, and keep it instead of the last, whose weights are used.
            self.metric_for_best_model = None
        patience = self.early_stopping_patience
        if patience is not None and (patience < 1 or strategies[0] == "no"):
            raise ValueError(
                f"early_stopping_patience={patience} must be at least 1, with eval_strategy 'epoch' or 'steps' (it is"
                f" {strategies[0]!r})"
            )
        if self.n_gpu > 1:
            # Trainer would wrap the model in DataParallel, which may split a batch into unequal parts: the mean of
            # their losses would not be the loss of the batch.
            logger.warning("%d GPUs but one process, which uses one GPU: start with accelerate launch", self.n_gpu)
            self._n_gpu = 1


@dataclass
class RunArguments:
    """All options of a run."""

    data: DataArguments
    source: Any
    model: ModelArguments
    decision: DecisionArguments
    training: MMBalanceTrainingArguments
    argv: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration of the run as plain values, as stored in `results.json`."""
        training = self.training.to_dict()
        ours = {f.name for f in dataclasses.fields(MMBalanceTrainingArguments)} - {"hub_token"}
        source = {}
        if self.data.embeddings is None:  # stored features need no options for reading clips
            source = {typed_name(name): value for name, value in dataclasses.asdict(self.source).items()}
        return {
            **dataclasses.asdict(self.data),
            **source,
            **dataclasses.asdict(self.model),
            **dataclasses.asdict(self.decision),
            **{name: value for name, value in training.items() if name in ours},
        }


def parse_arguments(argv: list[str] | None = None) -> RunArguments:
    """Parse the file of `--config NAME` (its keys are option names) and the command line, which takes precedence.

    Without `--config`, the synthetic dataset uses the built-in recipe with tiny towers.

    Raises:
        ValueError: if the config file is missing or holds an unknown key or an invalid value,
            or if an option is unknown.
        SystemExit: raised by argparse for a value of the wrong type and for `--help_all`.
    """
    argv = underscored(sys.argv[1:] if argv is None else argv)
    given = list(argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", metavar="NAME")
    chosen, argv = first.parse_known_args(argv)
    for name in ("embeddings", *OVERRULES):  # these decide which other options and settings apply
        first.add_argument(f"--{name}")
    settings, dataset = _settings(chosen.config, vars(first.parse_known_args(argv)[0]))
    source_part = _source_part(dataset)
    parts: Any = (DataArguments, source_part, ModelArguments, DecisionArguments, MMBalanceTrainingArguments)
    parser = _parser(parts, dataset)
    known = {f.name for part in parts for f in dataclasses.fields(part) if f.init}
    settings = _without_foreign(settings, known, dataset)
    for key in settings:
        if key not in known:
            elsewhere = _not_of(dataset, key)
            raise ValueError(f"{chosen.config}: {elsewhere or f'unknown key {key!r}{did_you_mean(key, known)}'}")
    for action in parser._actions:
        if action.dest in settings and not isinstance(action, argparse._StoreFalseAction):
            settings[action.dest] = _typed(action, settings[action.dest], f"{chosen.config}: {action.dest}")
            action.required = False
    parser.set_defaults(**settings)
    prefer_cpu_where_there_is_no_accelerator()
    argv = _with_lists(parser, argv)
    data, source, model, decision, training, *left = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True
    )
    if left[-1]:
        raise ValueError(_unknown_option(left[-1][0], known, dataset))
    check_joined(training.world_size)
    model.named = frozenset(word.split("=")[0].removeprefix("--") for word in argv)
    if data.embeddings is not None:
        for name in (entry.name for entry in dataclasses.fields(source)):
            if name in model.named:
                raise ValueError(f"--{name} says how clips are read, but --embeddings reads no clips: remove it")
    kind = options_class(dataset)
    options = {entry.name: getattr(source, typed_name(entry.name)) for entry in dataclasses.fields(kind)}
    return RunArguments(data, kind(**options), model, decision, training, given)


def _settings(config_file: str | None, named: dict[str, str | None]) -> tuple[dict[str, Any], str]:
    """Return the settings of the config file (or recipe) that the command line does not override, and the dataset."""
    settings = {} if config_file is None else read_config(config_file)
    if named["embeddings"] is not None and named["dataset"] is not None:
        raise ValueError("--dataset cannot be combined with --embeddings, which belong to a dataset: remove it")
    if isinstance(settings.get("dataset"), list | dict):
        raise ValueError(f"{config_file}: dataset: {settings['dataset']!r} is not the name of one dataset")
    if settings.get("dataset") is not None:
        settings["dataset"] = str(settings["dataset"])  # a folder may be called 2024
    dataset = named["dataset"] or settings.get("dataset") or "synthetic"
    if dataset == "synthetic" and config_file is None and named["embeddings"] is None:
        settings = read_config(SYNTHETIC)
    overruled = {key for option, keys in OVERRULES.items() if named[option] is not None for key in keys}
    if named["embeddings"] is not None or (named["dataset"] is None and "embeddings" in settings):
        dataset = "synthetic"  # the default; clip options in the file describe the clips that were embedded
        overruled = overruled.union({"dataset"}, *(_typed_names(options_class_of(source)) for source in SOURCES))
    return {key: value for key, value in settings.items() if key not in overruled}, dataset


def _parser(parts: Any, dataset: str) -> HfArgumentParser:
    parser = HfArgumentParser(
        parts,
        prog=program(),
        usage="%(prog)s [--config NAME] [--option VALUE ...]",
        description=f"Every option of a training run on clips of {dataset!r}; --help shows the main ones.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help_all", action="help", help="Show this text.")
    return parser


def _with_lists(parser: HfArgumentParser, argv: list[str]) -> list[str]:
    """Return the command line with lists written as in YAML, `--crop [0,0,1,1]`, changed to `--crop 0 0 1 1`."""
    several = {name for action in parser._actions if action.nargs in ("+", "*") for name in action.option_strings}
    words: list[str] = []
    for word in argv:
        name, joined, value = word.partition("=")
        before = next((other for other in reversed(words) if other.startswith("--")), "")
        if joined and name in several and value.startswith("["):
            words.append(name)
            before, word = name, value
        if before in several and word.startswith("[") and word.endswith("]"):
            words += [str(item) for item in yaml.safe_load(word)]
        else:
            words.append(word)
    return words


def _unknown_option(word: str, known: set[str], dataset: str) -> str:
    """Return the error message for a word of the command line that belongs to no option."""
    if not word.startswith("-"):
        return f"{word!r} belongs to no option; write --option VALUE, e.g. --dataset {word}"
    name = word.split("=")[0].lstrip("-")
    hint = did_you_mean(f"--{name}", [f"--{option}" for option in known])
    return _not_of(dataset, name) or f"unknown option --{name}{hint} (--help_all lists all)"


def _not_of(dataset: str, name: str) -> str | None:
    """Return the error message for an option that only other datasets have; None if no dataset has it."""
    elsewhere = [source for source in SOURCES if name in _typed_names(options_class_of(source))]
    return f"--{name} is not an option of dataset {dataset!r}, but of {', '.join(elsewhere)}" if elsewhere else None


def option_names() -> set[str]:
    """Return the names of all options of all datasets."""
    parts = (DataArguments, ModelArguments, DecisionArguments, MMBalanceTrainingArguments)
    own = {f.name for part in parts for f in dataclasses.fields(part)}
    return own.union(*(_typed_names(options_class_of(source)) for source in SOURCES))


def _typed_names(options: type) -> set[str]:
    return {typed_name(entry.name) for entry in dataclasses.fields(options)}


# Options of the towers.
TOWER_FIELDS = (
    "audio_model", "audio_revision", "audio_config", "audio_max_length",
    "vision_model", "vision_revision", "vision_config",
)  # fmt: skip
# Either clips or their features are read; a tower is named, configured or part of a trained model. An option on the
# command line replaces the settings of the file that it excludes.
OVERRULES = {
    "dataset": ("embeddings",),
    "audio_model": ("audio_config",),
    "audio_config": ("audio_model", "audio_revision"),
    "vision_model": ("vision_config",),
    "vision_config": ("vision_model", "vision_revision"),
    "model_name_or_path": TOWER_FIELDS,
}


def _without_foreign(settings: dict[str, Any], known: set[str], dataset: str) -> dict[str, Any]:
    """Drop settings that only the file's own dataset uses, if the command line names a different one."""
    own = settings.get("dataset", dataset)
    if own == dataset:
        return settings
    foreign = {f.name for f in dataclasses.fields(_source_part(own))} - known
    left_out = [key for key in settings if key in foreign]
    if left_out:
        logger.warning("ignored for %s: %s of %r", dataset, ", ".join(left_out), own)
    return {key: value for key, value in settings.items() if key not in foreign}


def _source_part(dataset: str) -> type:
    """Return a dataclass of a dataset's options, under their names on the command line."""
    fields = []
    hints = typing.get_type_hints(options_class(dataset))
    for entry in dataclasses.fields(options_class(dataset)):
        metadata = {**entry.metadata, "help": entry.metadata.get("help", "").replace("%", "%%")}
        kept: dict[str, Any] = {
            "default": entry.default,
            "default_factory": entry.default_factory,
            "metadata": metadata,
        }
        fields.append((typed_name(entry.name), hints[entry.name], field(**kept)))
    return dataclasses.make_dataclass("SourceArguments", fields)


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Args:
        path: The file, or the name of a packaged config (a file of `hf_mmbalance/configs/`, without its suffix).

    Raises:
        ValueError: if the file does not exist, is not YAML or holds no mapping.
    """
    packaged = {file.stem: file for file in CONFIGS.glob("*.yaml")}
    file = Path(path) if Path(path).is_file() else packaged.get(str(path), Path(path))
    try:
        settings = load_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(packaged))
        text = f"--config {path}: {error.strerror}; name a file, or one of the packaged configs: {known}"
        raise ValueError(text + did_you_mean(str(path), packaged)) from error
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path}: expected `name: value` lines")
    return settings


def _typed(action: argparse.Action, value: Any, name: str) -> Any:
    """Convert a value of the file as its option would convert it on the command line."""
    if value is None:
        return None
    several = action.nargs in ("+", "*")
    if several and not isinstance(value, list):
        raise ValueError(f"{name}: {value!r} is not a list; write [{value}]")
    if value is False and action.dest.endswith("_strategy"):
        return "no"  # YAML 1.1 reads an unquoted no as false
    if action.type is str and type(value) in (int, float):
        return str(value)
    if action.type not in (int, float):
        return value
    try:
        numbers = [action.type(str(item)) for item in (value if several else [value])]
    except ValueError as error:
        raise ValueError(f"{name}: {value!r} must be {action.type.__name__}") from error
    return numbers if several else numbers[0]


def _as_mapping(name: str, value: Any) -> dict[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    try:
        mapping = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{name} {value!r} is not valid JSON: {error}") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"--{name} {value!r}: expected a JSON object")
    return mapping
