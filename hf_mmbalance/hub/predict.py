"""`mmbalance predict`: classify clips with a model from the Hub or a folder, using the code of this package."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mmbalance import console
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.data.files import walk_files
from hf_mmbalance.data.sources.folder import MEDIA_SUFFIXES
from hf_mmbalance.data.sources.rows import cell
from hf_mmbalance.data.sources.table import TABLE_SUFFIXES, read_table
from hf_mmbalance.hub.errors import HubError, advice_for, explain_hub_errors
from hf_mmbalance.hub.limits import check_config, check_head, check_loaded, check_processor
from hf_mmbalance.hub.reach import check_reachable
from hf_mmbalance.progress import bar


if TYPE_CHECKING:
    from hf_mmbalance import AudioVisualClassificationPipeline

BAR_FROM = 20  # number of clips from which a progress bar is shown
PREDICT = """Classify clips, and show each modality's own prediction.

Score and trust are in percent. Share: a modality's part of the decision's weight for the class. Audio score, vision
score: score of the class from that modality alone. Trust: the probability that a modality by itself is right about
the clip.

example:
  mmbalance predict clip.mp4 --model user/name --revision model-3fa2b1c9d0
  mmbalance predict clip.mp4 --model outputs/words --start 1.2 --end 1.6      (a model trained on spans: one word)
  mmbalance predict clips/ --model outputs/my-run --csv answers.csv           (every media file of a folder)
  mmbalance predict spans.csv --model outputs/words --top_k 3 --json out.json (a table: path[,start,end])
"""


def add_predict(verbs: Any) -> None:
    """Add the verb `predict`."""
    parser = console.add_verb(verbs, "predict", PREDICT, run_predict)
    count, seconds = console.positive, console.seconds
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="video or audio file or its http(s) address, a folder"
                        " of files, or a table (.csv, .tsv, .parquet) with the columns path[,start,end]")  # fmt: skip
    parser.add_argument("--start", type=float, metavar="S", help="start of the span to classify, in seconds")
    parser.add_argument("--end", type=float, metavar="S", help="end of the span, in seconds")
    parser.add_argument("--model", required=True, metavar="ID", help="repository on the Hub, or folder")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the file of a fusion head saved with the"
                        " model; other code of the repository is never run")  # fmt: skip
    parser.add_argument("--top_k", type=count, default=5, help="number of classes to show (default: %(default)s)")
    switches = parser.add_mutually_exclusive_group()
    switches.add_argument("--no_audio", action="store_true", help="ignore the audio of the clips")
    switches.add_argument("--no_vision", action="store_true", help="ignore the frames of the clips")
    parser.add_argument("--window_seconds", type=seconds, metavar="S", help="read clips in windows of this length"
                        " (default: the input length of the audio tower)")  # fmt: skip
    parser.add_argument(
        "--stride_seconds", type=seconds, metavar="S", help="step between windows (default: no overlap)"
    )
    parser.add_argument("--max_seconds", type=seconds, metavar="S", help="longest clip accepted (default: 600)")
    parser.add_argument("--batch_size", type=count, default=1, help="windows per batch (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU, if there is one)")
    console.add_json_option(parser, "answers")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the answers as a table, one row per clip")


def run_predict(arguments: argparse.Namespace) -> int:
    """Run `predict` and return the exit status (2 if a clip or the model cannot be used)."""
    from hf_mmbalance._environment import check_device, check_torchaudio

    modalities = ["vision"] if arguments.no_audio else ["audio"] if arguments.no_vision else None
    names = ("top_k", "window_seconds", "stride_seconds", "max_seconds", "batch_size")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    inputs = inputs_of(arguments.clips, arguments.start, arguments.end)
    for place in (arguments.json, arguments.csv):
        console.check_place(place)
    check_torchaudio()
    check_device(arguments.device)
    classify = load_classifier(arguments.model, arguments.revision, arguments.trust_remote_code, arguments.device)
    names_of_modalities = classify.model.config.modalities
    answers: list[dict[str, Any]] = []
    try:
        for item in bar(inputs, desc="predicting", unit="clip", disable=len(inputs) < BAR_FROM):
            try:
                answers.append({**item, "answer": classify(_source(item), modalities=modalities, **options)})
            except (ValueError, OSError) as error:
                text = console.message_of(error)
                text = text if item["clip"] in text else f"{item['clip']}: {text}"
                answers.append({**item, "error": text})
                console.print_error(text)
                continue
            if console.shows_text(arguments):
                console.say(render_answer(item["clip"], answers[-1]["answer"], names_of_modalities))
    finally:  # keep the answers so far after Ctrl-C
        console.write_result(arguments.json, answers)
        if arguments.csv is not None:
            write_csv(arguments.csv, answers, names_of_modalities)
    return console.REFUSED if any("error" in answer for answer in answers) else console.DONE


def inputs_of(clips: list[str], start: float | None = None, end: float | None = None) -> list[dict[str, Any]]:
    """Return the inputs to classify: `{"clip": path}`, with `start` and `end` (seconds) for a span.

    Args:
        clips: Files, addresses, folders of media files, and tables with a column `path` (relative to the table) and
            optionally `start` and `end`.
        start, end: Span to classify, if only one clip is given.

    Raises:
        DataError: a folder is empty, or a table cannot be used.
        ValueError: a span is given for several clips, or without its start or end.
    """
    inputs: list[dict[str, Any]] = []
    for clip in clips:
        path = Path(clip)
        if not clip:
            raise ValueError("the name of a clip is empty")
        if path.is_dir():
            found = [file for file in walk_files(path) if file.suffix.lower() in MEDIA_SUFFIXES]
            if not found:
                raise DataError(f"{clip}: the folder has no media files (e.g. mp4, flv, wav)")
            inputs += [{"clip": str(file)} for file in found]
        elif path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
            inputs += _inputs_of_table(path)
        else:
            inputs.append({"clip": clip})
    if start is None and end is None:
        return inputs
    if len(inputs) != 1 or start is None or end is None:
        raise ValueError(
            "--start and --end must be used together and with one clip; use a table (path,start,end) for several spans"
        )
    return [{**inputs[0], "start": start, "end": end}]


def _inputs_of_table(table: Path) -> list[dict[str, Any]]:
    inputs = []
    for number, row in enumerate(read_table(table), start=1):
        path = cell(row, "path")
        if path is None:
            raise DataError(
                f"{table}, row {number}: column 'path' is missing or empty; the columns are path[,start,end]"
            )
        span = {edge: text for edge in ("start", "end") if (text := cell(row, edge)) is not None}
        try:
            seconds = {edge: float(text) for edge, text in span.items()}
        except ValueError:
            raise DataError(f"{table}, row {number}: {span} must be seconds") from None
        address = path.lower().startswith(("http://", "https://"))
        inputs.append({"clip": path if address else str(table.parent / path), **seconds})
    return inputs


def _source(item: dict[str, Any]) -> Any:
    span = {edge: item[edge] for edge in ("start", "end") if edge in item}
    return {"video": item["clip"], **span} if span else item["clip"]


def write_csv(path: Path, answers: list[dict[str, Any]], modalities: list[str]) -> None:
    """Write one row per clip: its most probable class, scores, shares and trust, or the error."""
    per_modality = [f"{kind}.{name}" for kind in ("share", "modality_score", "trust") for name in modalities]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["clip", "start", "end", "label", "score", *per_modality, "error"])
        writer.writeheader()
        for answer in answers:
            row: dict[str, Any] = {name: answer[name] for name in ("clip", "start", "end", "error") if name in answer}
            for entry in answer.get("answer", ())[:1]:
                row |= {"label": entry["label"], "score": entry["score"]}
                for kind in ("share", "modality_score", "trust"):
                    row |= {f"{kind}.{name}": value for name, value in (entry.get(kind) or {}).items()}
            writer.writerow(row)


def render_answer(clip: str, answer: list[dict[str, Any]], modalities: list[str]) -> str:
    """Render the answer for one clip: scores and trust in percent, shares of the decision's weight in 0..1."""
    head = ["class", "score", *(f"share {name}" for name in modalities), *(f"{name} score" for name in modalities)]
    rows = []
    for entry in answer:
        shares = [f"{entry['share'][name]:.2f}" if entry["share"] else "-" for name in modalities]
        scores = [_percent(entry["modality_score"][name]) for name in modalities]
        rows.append([entry["label"], _percent(entry["score"]), *shares, *scores])
    trust = answer[0]["trust"] or {}
    trusted = ", ".join(f"{name} {_percent(value)}" for name, value in trust.items())
    return f"\n{clip}{trusted and f' (trust: {trusted})'}\n{console.table(head, rows, indent='  ')}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def load_classifier(
    name: str, revision: str | None = None, trust_remote_code: bool = False, device: Any = None
) -> AudioVisualClassificationPipeline:
    """Load model and processor as a pipeline. The only repository code that can run is the model's own fusion head.

    Args:
        name: Repository on the Hub, or folder.
        revision: Branch, tag or commit.
        trust_remote_code: Run the file of a fusion head that was saved with the model.
        device: As in `transformers.pipeline`.

    Raises:
        HubError: loading fails; the message is the client's error and one sentence with the remedy.
        ValueError: the model is from a different package, its config exceeds the limits in `limits`, or its files do
            not fit together.
    """
    check_reachable(name, revision)
    with explain_hub_errors(f"loading model {name}"):
        try:
            return _load(name, revision, trust_remote_code, device)
        except Exception as error:
            if isinstance(error, console.UserError | ImportError) or advice_for(error) is not None:
                raise
            if isinstance(error, ValueError) and name in str(error):
                raise
            text = f"{name}: its files do not form a working model and processor ({console.message_of(error)})"
            raise ValueError(f"{text}; save or push it again") from error


def _load(name: str, revision: str | None, trust_remote_code: bool, device: Any) -> AudioVisualClassificationPipeline:
    from transformers import PreTrainedConfig

    from hf_mmbalance import (
        AudioVisualClassificationPipeline,
        MMBalanceForAudioVisualClassification,
        MMBalanceProcessor,
    )

    declared, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    kind = declared.get("model_type")
    if kind is None:
        raise HubError(
            f"{name} has no config.json that names a model type: check the name; if its upload was interrupted,"
            " push it again"
        )
    if kind != MMBalanceForAudioVisualClassification.config_class.model_type:
        raise ValueError(f"{name} is a {kind!r} model: give one that was trained with hf_mmbalance")
    check_config(declared, name)
    check_head(declared, name, trust_remote_code)
    model, loading = MMBalanceForAudioVisualClassification.from_pretrained(
        name,
        revision=revision or "main",
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # `check_loaded` reports them
    )
    check_loaded(loading, name)
    options, _ = MMBalanceProcessor.get_processor_dict(name, revision=revision or "main")
    check_config(options, name, "processor_config.json")
    processor = MMBalanceProcessor.from_pretrained(name, revision=revision or "main")
    check_processor(processor, name)
    return AudioVisualClassificationPipeline(
        model, processor=processor, task="audio-visual-classification", device=device
    )
