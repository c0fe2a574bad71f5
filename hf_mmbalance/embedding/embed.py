"""Run frozen towers once over every clip; runs can be resumed and split over processes and machines."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from hf_mmbalance.data.clips import ClipDataset, ClipSplits, DataError
from hf_mmbalance.embedding.addresses import content_key, tower_fingerprint
from hf_mmbalance.embedding.build import TowerName
from hf_mmbalance.embedding.draws import Draws
from hf_mmbalance.embedding.parts import (
    PLAN,
    EmbeddingError,
    Feature,
    features_in,
    part_name,
    read_part,
    write_part,
)
from hf_mmbalance.json_files import write_json
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.model.reading_mmbalance import Clip
from hf_mmbalance.processes import call_in_main_process
from hf_mmbalance.progress import bar as progress_bar


Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
REUSED = ".reused"  # parts of an earlier plan, kept until the new one is complete
PARTS = {"audio": "audio", "vision": "frames"}  # modality -> its name in an example
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EmbedOptions:
    """How towers are run.

    Attributes:
        batch_size: clips per forward pass.
        clips_per_part: clips per file; an interruption loses at most the work on one file.
        dtype: dtype in which towers compute: `float32`, `bfloat16` or `float16`. Weights and stored features are
            float32.
    """

    batch_size: int = 8
    clips_per_part: int = 64
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise DataError(f"dtype {self.dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
        if min(self.batch_size, self.clips_per_part) < 1:
            raise DataError("batch_size and clips_per_part must be at least 1")


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one split, stored in one file per modality."""

    name: str
    split: str
    rows: range


def embed(
    clips: ClipSplits,
    model: MMBalanceForAudioVisualClassification,
    processor: MMBalanceProcessor,
    out: Path,
    *,
    draws: Draws | None = None,
    options: EmbedOptions | None = None,
    towers: dict[str, TowerName] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, int]:
    """Write the features of every clip and draw into a folder; features that it already holds are kept.

    With several processes (`accelerate launch`), each one handles some of the parts. The bytes written depend neither
    on the number of processes nor on interruptions.

    Args:
        clips: clips to embed, from any source.
        model: model whose towers are run in evaluation mode; it is moved to this process's device and stays there.
        processor: processor of the model; saved beside the features.
        out: output folder. Features that it already holds for the same content and tower are reused.
        draws: versions of each clip; only the clean one by default.
        options: batch size, size of parts, precision.
        towers: origin of each modality's tower, recorded in the plan.
        shard: (i, n) to write only every n-th part starting at the i-th, for n machines; join them with `merge`.

    Returns:
        The number of `rows`, and the number of features that this process `computed` and `reused`.

    Raises:
        EmbeddingError: the folder holds something else, or the model's frame pooling is trained.
    """
    draws, options, state = draws or Draws(), options or EmbedOptions(), PartialState()
    if model.config.frame_pooling == "temporal":
        raise EmbeddingError("frame_pooling='temporal' is trained, so its output cannot be stored: use 'mean'")
    if not 0 <= shard[0] < shard[1]:
        raise EmbeddingError(f"--shard i/n needs 0 <= i < n, got {shard[0]}/{shard[1]}")
    datasets = draws.of(clips)
    model = model.to(state.device).eval()  # type: ignore[arg-type]
    parts = list(_parts(datasets, options.clips_per_part))
    plan = _plan(clips, datasets, model, processor, draws, options, len(parts), towers or {})
    call_in_main_process(lambda: _open_folder(out, plan, processor))
    mine = parts[shard[0] :: shard[1]][state.process_index :: state.num_processes]
    counts = _run(mine, datasets, out, plan, _Towers(model, processor, options))
    state.wait_for_everyone()
    if shard == (0, 1):
        call_in_main_process(lambda: finish(out))
    return {"rows": sum(len(dataset) for dataset in datasets.values()), **counts}


def finish(out: Path) -> None:
    """Mark a folder as complete and remove files that are no longer needed.

    Raises:
        EmbeddingError: a part is missing; the message names the first one.
    """
    plan = read_plan(out)
    _parts_in([out], plan)
    kept = [tower_folder(out, plan, modality) for modality in plan["modalities"]]
    for folder in (out / REUSED, *(folder for folder in _tower_folders(out) if folder not in kept)):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in kept:
        for draft in folder.glob(".part-*"):  # left by a process that was killed
            draft.unlink()
    write_json(out / PLAN, {**plan, "complete": True})


def merge(folders: list[Path], out: Path) -> None:
    """Join the folders that `--shard` wrote on several machines.

    Raises:
        EmbeddingError: the folders have different plans, a part is missing, or `out` is not empty.
    """
    plans = [read_plan(folder) for folder in folders]
    for folder, plan in zip(folders, plans, strict=True):
        if _identity(plan) != _identity(plans[0]):
            raise EmbeddingError(f"{folder} was made from different clips, towers or options than {folders[0]}")
    if out.exists() and any(out.iterdir()):
        raise EmbeddingError(f"{out} is not empty: give a new folder")
    parts = _parts_in(folders, plans[0])  # before anything is written: it raises if a part is missing
    shutil.copytree(folders[0] / "processor", out / "processor")
    for path in parts:
        target = out / path.parent.name
        target.mkdir(exist_ok=True)
        shutil.copyfile(path, target / path.name)
    write_json(out / PLAN, {**plans[0], "complete": False})
    finish(out)


def _parts_in(folders: list[Path], plan: dict[str, Any]) -> list[Path]:
    """Find the files of all parts of a plan, each in one of the given folders.

    Raises:
        EmbeddingError: a part is missing; the message names the first one.
    """
    found = []
    for modality in plan["modalities"]:
        for index in range(plan["parts"]):
            name = part_name(index, plan["parts"])
            paths = [tower_folder(folder, plan, modality) / name for folder in folders]
            path = next(filter(Path.exists, paths), None)
            if path is None:
                raise EmbeddingError(
                    f"{paths[0].parent.name}/{name} is missing in {', '.join(map(str, folders))}: run `mmbalance"
                    " embed` again, or merge the folders of all shards"
                )
            found.append(path)
    return found


def read_plan(folder: Path) -> dict[str, Any]:
    """Read the plan in `embeddings.json`.

    Raises:
        EmbeddingError: the file is missing or damaged.
    """
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return {name: plan[name] for name in (*_PLAN_FIELDS, "complete")}
    except OSError:
        raise EmbeddingError(f"{folder} holds no {PLAN}: give a folder that `mmbalance embed` wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{folder / PLAN} is damaged ({error}): remove the folder and embed again") from None


def _identity(plan: dict[str, Any]) -> list[Any]:
    """Return what all shards of one plan share; the places where a machine found clips and towers may differ."""
    same = ("fingerprint", "parts", "classes", "draws", "sampling_rate", "reading")
    return [*(plan[name] for name in same), *(tower["fingerprint"] for tower in plan["towers"].values())]


def tower_folder(out: Path, plan: dict[str, Any], modality: str) -> Path:
    """Return the folder with the parts of one modality."""
    return out / f"{modality}-{plan['towers'][modality]['fingerprint'][:12]}"


def _tower_folders(out: Path) -> list[Path]:
    """Return all folders with features, from any tower; other folders in `out` are not ours to touch."""
    name = re.compile(rf"({'|'.join(PARTS)})-[0-9a-f]{{12}}")
    return [path for path in out.iterdir() if path.is_dir() and name.fullmatch(path.name)]


_PLAN_FIELDS = (
    "dataset", "commit", "classes", "modalities", "sampling_rate", "notes", "fingerprint", "towers", "parts", "draws",
    "options", "clips", "reading",
)  # fmt: skip


def _plan(
    clips: ClipSplits,
    datasets: dict[str, ClipDataset],
    model: MMBalanceForAudioVisualClassification,
    processor: MMBalanceProcessor,
    draws: Draws,
    options: EmbedOptions,
    parts: int,
    towers: dict[str, TowerName],
) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for split, dataset in datasets.items():
        for row in zip(dataset.ids, dataset.groups, dataset.labels, strict=True):
            digest.update(f"{split}\0{row}\0".encode())
    modalities = list(model.config.modalities)
    origin = {name: {"name": tower.name, "revision": tower.revision} for name, tower in towers.items()}
    used = {
        modality: {
            **origin.get(modality, {"name": None, "revision": None}),
            "fingerprint": tower_fingerprint(model, processor, modality, DTYPES[options.dtype]),
            "width": width,
        }
        for modality, width in zip(modalities, model.fusion.feature_sizes, strict=True)
    }
    return {
        "dataset": clips.name,
        "commit": clips.commit,
        "classes": list(clips.classes),
        "modalities": modalities,
        "sampling_rate": clips.sampling_rate,
        "notes": list(clips.notes),
        "fingerprint": digest.hexdigest(),
        "towers": used,
        "parts": parts,
        "draws": {**asdict(draws), "corruptions": list(draws.corruptions), "splits": list(draws.splits)},
        "options": asdict(options),
        "clips": {split: len(dataset) for split, dataset in clips.splits.items()},
        "reading": processor.reading,
    }


def _parts(datasets: dict[str, ClipDataset], clips_per_part: int) -> Iterator[Part]:
    ranges = []
    for split, dataset in datasets.items():
        versions = 1 + max(getattr(dataset, "draws", [0]), default=0)
        step = clips_per_part * versions  # keeps all draws of a clip in one part
        ranges += [(split, range(start, min(start + step, len(dataset)))) for start in range(0, len(dataset), step)]
    for index, (split, rows) in enumerate(ranges):
        yield Part(part_name(index, len(ranges)), split, rows)


def _open_folder(out: Path, plan: dict[str, Any], processor: MMBalanceProcessor) -> None:
    """Prepare the folder for a plan; parts of an earlier plan are set aside, so that their features can be reused."""
    if out.exists() and any(out.iterdir()):
        before = read_plan(out)  # raises if the folder holds anything but embeddings
        if any(before[name] != plan[name] for name in ("fingerprint", "parts")):
            for folder in _tower_folders(out):
                aside = out / REUSED / folder.name
                aside.mkdir(parents=True, exist_ok=True)
                for path in folder.glob("part-*.parquet"):
                    path.rename(aside / f"{before['fingerprint'][:12]}-{path.name}")
                shutil.rmtree(folder)
    for modality in plan["modalities"]:
        tower_folder(out, plan, modality).mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, {**plan, "complete": False})
    processor.save_pretrained(str(out / "processor"))


def _run(
    parts: list[Part], datasets: dict[str, ClipDataset], out: Path, plan: dict[str, Any], towers: _Towers
) -> dict[str, int]:
    counts = {"computed": 0, "reused": 0}
    total = sum(len(part.rows) for part in parts) * len(plan["modalities"])

    def read(part: Part) -> list[dict[str, Any]]:
        return [datasets[part.split][i] for i in part.rows]

    hidden = not PartialState().is_main_process
    with progress_bar(total=total, desc="embedding", unit="feature", disable=hidden) as bar:
        for part, examples in _one_ahead(read, parts):
            for modality in plan["modalities"]:
                folder = tower_folder(out, plan, modality)
                reusable = sorted((out / REUSED / folder.name).glob("*.parquet"))
                _write(part, datasets[part.split], examples, modality, folder, reusable, towers, counts, bar)
    return counts


def _one_ahead(prepare: Callable[[Item], Prepared], items: Sequence[Item]) -> Iterator[tuple[Item, Prepared]]:
    """Yield every item with the result of `prepare`; a thread prepares the next one while the caller works."""
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(prepare, item) for item in items[:1]]
        for index, item in enumerate(items):
            prepared = ahead.pop().result()
            ahead = [pool.submit(prepare, following) for following in items[index + 1 : index + 2]]
            yield item, prepared


def _write(
    part: Part,
    dataset: ClipDataset,
    examples: list[dict[str, Any]],
    modality: str,
    folder: Path,
    reusable: list[Path],
    towers: _Towers,
    counts: dict[str, int],
    bar: tqdm,
) -> None:
    """Write one part of one modality, unless the file already holds the features of exactly these contents."""
    contents = [example[PARTS[modality]] for example in examples]
    about = (dataset.sampling_rate,) if modality == "audio" else ()
    keys = [None if content is None else content_key(content, *about) for content in contents]
    path = folder / part.name
    if path.exists():
        if read_part(path, ["key"])["key"].to_pylist() == keys:
            counts["reused"] += len(set(keys) - {None})
            bar.update(len(keys))
            return
        reusable = [path, *reusable]
    known = features_in(reusable, {key for key in keys if key is not None})
    missing = {
        key: (content, dataset.sampling_rate)
        for key, content in zip(keys, contents, strict=True)
        if key is not None and key not in known
    }
    counts["reused"] += len(known)
    counts["computed"] += len(missing)
    bar.update(len(keys) - len(missing))
    known |= towers.features(modality, missing, bar)
    write_part(
        path,
        _rows(part, dataset, examples, keys),
        [None if key is None else known[key] for key in keys],
    )


def _rows(part: Part, dataset: ClipDataset, examples: list[dict[str, Any]], keys: list[str | None]) -> list[Any]:
    names, draws = getattr(dataset, "clips", dataset.ids), getattr(dataset, "draws", [0] * len(dataset))
    return [
        {
            "id": dataset.ids[i],
            "clip": names[i],
            "group": dataset.groups[i],
            "split": part.split,
            "label": dataset.labels[i],
            "draw": draws[i],
            "seconds": example["seconds"],
            "key": key,
        }
        for i, example, key in zip(part.rows, examples, keys, strict=True)
    ]


class _Towers:
    """Runs the towers in batches, and prepares each batch while the previous one is computed."""

    def __init__(
        self, model: MMBalanceForAudioVisualClassification, processor: MMBalanceProcessor, options: EmbedOptions
    ):
        self.model, self.processor, self.options = model, processor, options

    def features(self, modality: str, contents: dict[str, tuple[Any, int]], bar: tqdm) -> dict[str, Feature]:
        """Compute the features of `contents`, key -> (audio or frames, sampling rate); return them by key."""

        def prepare(keys: list[str]) -> dict[str, torch.Tensor]:
            return self._tensors(modality, [contents[key] for key in keys])

        found: dict[str, Feature] = {}
        for keys, tensors in _one_ahead(prepare, list(self._batches(modality, contents))):
            found |= dict(zip(keys, self._forward(modality, tensors), strict=True))
            bar.update(len(keys))
        return found

    def _batches(self, modality: str, contents: dict[str, tuple[Any, int]]) -> Iterator[list[str]]:
        """Yield the keys of each batch. Audio that would be padded is batched with audio of equal length only."""
        groups: dict[int, list[str]] = {}
        padded = modality == "audio" and self.processor.audio_seconds is None
        for key, (content, _) in contents.items():
            groups.setdefault(len(content) if padded else 0, []).append(key)
        size = self.options.batch_size
        for keys in groups.values():
            yield from (keys[start : start + size] for start in range(0, len(keys), size))

    def _tensors(self, modality: str, contents: list[tuple[Any, int]]) -> dict[str, torch.Tensor]:
        other = next(name for name in PARTS if name != modality)
        clips = [Clip({modality: content, other: None}, rate, 0.0) for content, rate in contents]
        return dict(self.processor.tensors(clips))

    @torch.no_grad()
    def _forward(self, modality: str, tensors: dict[str, torch.Tensor]) -> list[Feature]:
        where = self.model.device
        index = list(self.model.config.modalities).index(modality)
        inputs: dict[str, Any] = {name: value.to(where) for name, value in tensors.items()}
        dtype = DTYPES[self.options.dtype]
        with torch.autocast(where.type, dtype, enabled=dtype != torch.float32):  # leaves the weights unchanged
            output = self.model.embed(**inputs)
        vectors, tokens = (part[index].float().cpu().numpy() for part in (output.features, output.tokens))
        if not (np.isfinite(vectors).all() and np.isfinite(tokens).all()):  # NaN would later mean a missing modality
            raise EmbeddingError(
                f"the {modality} tower returns features that are not finite in {self.options.dtype}: use --dtype"
                " float32; if you already do, its weights are damaged"
            )
        log_probs = output.frame_log_probs if modality == "vision" else None
        labels = [None] * len(vectors) if log_probs is None else log_probs.float().cpu().numpy()
        return [Feature(*parts) for parts in zip(vectors, tokens, labels, strict=True)]
