"""Build shards in worker processes, under a temporary name until complete, so a build can be killed and resumed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from hf_mmbalance.building.encode import arrow_schema, encode_clip, features_of
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip, Shard
from hf_mmbalance.building.workers import Answer, Worker, WorkerDied, ready
from hf_mmbalance.console import UserError
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.json_files import write_json
from hf_mmbalance.model.media_mmbalance import MediaError
from hf_mmbalance.model.reading_mmbalance import logger as reading_log
from hf_mmbalance.progress import bar as progress_bar


ROWS_PER_GROUP = 32  # rows held in memory while writing and reading
STATE = ".build"  # drafts and one record per shard; `datasets` ignores hidden folders
PLAIN = ("string", "int64", "int32", "float64")

RESUME = "run the same command again (without --overwrite): it resumes the build"


class BuildError(UserError):
    """Raised when a build cannot continue; the message gives the reason and the remedy."""


def part_of(shards: list[Shard], part: tuple[int, int]) -> list[Shard]:
    """Return the shards of machine i of n.

    Raises:
        DataError: i and n do not satisfy 0 <= i < n.
    """
    index, count = part
    if not 0 <= index < count:
        raise DataError(f"--shard i/n needs 0 <= i < n, got {index}/{count}")
    return shards[index::count]


def build(
    plan: BuildPlan, out: Path, *, num_proc: int = 1, part: tuple[int, int] = (0, 1), overwrite: bool = False
) -> dict[str, Any]:
    """Write the missing shards of a plan.

    Args:
        plan: plan to build.
        out: folder of the build; a build of the same plan in it is resumed.
        num_proc: number of worker processes. Only they decode clips, so that a crashing decoder cannot end the build.
        part: (i, n) to build every n-th shard, starting at the i-th.
        overwrite: build again what is in `out`: this part if the plan is the same, everything if it is different.

    Returns:
        `clips`, `seconds` and `steady_clips_per_second` of this run.

    Raises:
        BuildError: the folder holds something else, the disk is full, or a worker died.
    """
    _open_folder(plan, out, overwrite)
    shards = part_of(plan.shards(), part)
    if overwrite:
        for shard in shards:
            _record_path(out, shard.name).unlink(missing_ok=True)
    todo = [shard for shard in shards if not is_done(out, shard.name)]
    _remove_dead_drafts(out, {shard.name for shard in todo})
    started = time.perf_counter()
    clips = sum(len(shard.clips) for shard in todo)
    with progress_bar(total=clips, desc=f"building {plan.name}", unit="clip", disable=not clips) as bar:
        steady = _run(plan, out, todo, num_proc, bar)
    return {"clips": clips, "seconds": time.perf_counter() - started, "steady_clips_per_second": steady}


def _open_folder(plan: BuildPlan, out: Path, overwrite: bool) -> None:
    mark = out / STATE / "plan.json"
    if mark.exists():
        existing = json.loads(mark.read_text(encoding="utf-8"))
        if existing["fingerprint"] == plan.fingerprint():
            return
        if not overwrite:
            text = f"{out} holds a build of {existing['name']} with other clips, files or options"
            raise BuildError(f"{text}; build into a different folder, or pass --overwrite to remove it")
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise BuildError(f"{out} is not empty and holds no build; give an empty or new folder")
    (out / STATE / "drafts").mkdir(parents=True, exist_ok=True)
    (out / STATE / "shards").mkdir(exist_ok=True)
    (out / "data").mkdir(exist_ok=True)
    write_json(mark, {"name": plan.name, "fingerprint": plan.fingerprint(), "plan": plan.to_json()})


def _remove_dead_drafts(out: Path, shards: set[str]) -> None:
    """Remove drafts of these shards that killed processes left; other shards can be in progress on other machines."""
    for draft in (out / STATE / "drafts").iterdir():
        if draft.stem in shards and not _is_alive(draft):
            draft.unlink(missing_ok=True)


def _is_alive(draft: Path) -> bool:
    """Return True if a process on this machine is writing a draft."""
    pid = int(draft.name.rsplit(".", 1)[-1])
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text(encoding="utf-8").rsplit(")", 1)[-1].split()[0] == "Z")


def _run(plan: BuildPlan, out: Path, todo: list[Shard], num_proc: int, bar: tqdm) -> float:
    """Build shards in worker processes and return the rate between the first and the last fifth of the clips.

    A worker that crashes is replaced, and its shard is built again with every clip decoded in a separate process.

    Raises:
        BuildError: the worker also crashed when it did not decode the clips itself.
    """
    writer = ShardWriter(out, plan.label_column, plan.encode, features_of(plan))
    # The largest shards come first, so that none is left for the end.
    queue = deque((shard, False) for shard in sorted(todo, key=lambda shard: -len(shard.clips)))
    running: dict[Worker, tuple[Shard, bool]] = {}
    idle: list[Worker] = []
    in_shard: dict[str, int] = {}
    marks: list[tuple[float, int]] = []
    try:
        while queue or running:
            while queue and len(running) < max(num_proc, 1):
                worker = idle.pop() if idle else Worker(writer)
                running[worker] = queue.popleft()
                worker.send(running[worker])
            for worker in ready(list(running), timeout=0.2):
                shard, careful = running[worker]
                try:
                    answered, _ = worker.receive()
                except WorkerDied as death:
                    del running[worker]
                    draft_path(out, shard, worker.process.pid).unlink(missing_ok=True)
                    if careful:
                        text = f"the process that wrote shard {shard.name} died twice ({death})"
                        raise BuildError(f"{text}; {RESUME}, with a smaller --num_proc") from None
                    queue.appendleft((shard, True))
                    in_shard[shard.name] = 0
                    continue
                if answered:
                    idle.append(worker)
                    del running[worker]
                else:
                    in_shard[shard.name] = in_shard.get(shard.name, 0) + 1
            done = sum(in_shard.values())
            bar.update(done - bar.n)
            marks.append((time.perf_counter(), done))
    finally:
        for worker in [*running, *idle]:
            worker.stop()
    return _steady_rate(marks)


def _steady_rate(marks: list[tuple[float, int]]) -> float:
    if len(marks) < 10:
        return 0.0
    total = marks[-1][1]
    inner = [(moment, done) for moment, done in marks if 0.2 * total <= done <= 0.8 * total]
    if len(inner) < 2 or inner[-1][0] == inner[0][0]:
        return 0.0
    return (inner[-1][1] - inner[0][1]) / (inner[-1][0] - inner[0][0])


@dataclass(frozen=True)
class ShardWriter:
    """Writer of shards, called in a worker process.

    Attributes:
        out: folder of the build.
        label_column: name of the label column.
        options: how clips are stored.
        features: all columns of a shard.
    """

    out: Path
    label_column: str
    options: EncodeOptions
    features: dict[str, Any]

    def __call__(self, request: tuple[Shard, bool]) -> Answer:
        """Write a shard and its record, yielding once per clip. `request`: shard, and whether to isolate clips."""
        shard, careful = request
        pa.set_memory_pool(pa.system_memory_pool())  # returns freed memory to the system, unlike Arrow's other pools
        encode = ClipEncoder(self.label_column, self.options)
        with _SeparateProcess(encode) if careful else nullcontext(encode.row) as encoded:
            yield from self._write(shard, encoded)

    def _write(self, shard: Shard, encode: Callable[[PlannedClip], dict[str, Any]]) -> Iterator[None]:
        draft = draft_path(self.out, shard, os.getpid())
        rows: list[dict[str, Any]] = []
        manifest: list[dict[str, Any]] = []
        try:
            with _Draft(draft, self.features) as writer:
                for clip in shard.clips:
                    row, entry = _attempt(clip, encode)
                    rows += [row] if row is not None else []
                    manifest.append(entry)
                    if len(rows) == ROWS_PER_GROUP:
                        writer.write(rows)
                        rows = []
                    yield
                writer.write(rows)
            self._keep(shard, draft, manifest)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise BuildError(_disk_message(self.out, error)) from None

    def _keep(self, shard: Shard, draft: Path, manifest: list[dict[str, Any]]) -> None:
        """Give a complete draft its final name, then write the record that marks the shard as built."""
        built = sum(entry["status"] == "ok" for entry in manifest)
        record = {"name": shard.name, "rows": built, "clips": manifest}
        if built:
            record |= {"bytes": draft.stat().st_size, "sha256": file_sha256(draft)}
            os.replace(draft, self.out / "data" / f"{shard.name}.parquet")
        else:
            draft.unlink()
            (self.out / "data" / f"{shard.name}.parquet").unlink(missing_ok=True)  # from an earlier build
        write_json(_record_path(self.out, shard.name), record)


@dataclass(frozen=True)
class ClipEncoder:
    """Encoder of clips, called in a worker process or in the current one."""

    label_column: str
    options: EncodeOptions

    def row(self, clip: PlannedClip) -> dict[str, Any]:
        """Return the row of a clip; errors of its decoder are raised unchanged."""
        reading_log.setLevel("ERROR")  # remarks on a clip are in the manifest instead
        return encode_clip(clip, self.label_column, self.options)

    def __call__(self, clip: PlannedClip) -> Answer:
        return self.row(clip)
        yield  # makes this a generator, as a worker requires; there is no progress to report


class _SeparateProcess:
    """Context that encodes clips in a separate worker; a clip that crashes it twice gets the status `crashed`."""

    def __init__(self, encoder: ClipEncoder):
        self.encoder = encoder
        self.worker: Worker | None = None

    def __enter__(self) -> Callable[[PlannedClip], dict[str, Any]]:
        return self.row

    def __exit__(self, *_: object) -> None:
        if self.worker is not None:
            self.worker.stop()

    def row(self, clip: PlannedClip) -> dict[str, Any]:
        try:
            return self._try(clip)
        except WorkerDied:  # it may have been killed from outside: try the clip once more
            try:
                return self._try(clip)
            except WorkerDied as death:
                text = f"{clip.source}: decoding it ended the process twice ({death})"
                raise MediaError("crashed", text) from None

    def _try(self, clip: PlannedClip) -> dict[str, Any]:
        self.worker = self.worker or Worker(self.encoder)
        try:
            return self.worker.answer(clip)
        except WorkerDied:
            self.worker = None
            raise


def _attempt(
    clip: PlannedClip, encode: Callable[[PlannedClip], dict[str, Any]]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the row of a clip (None if it cannot be used) and its entry in the manifest."""
    row, status, detail = None, "ok", ""
    try:
        row = encode(clip)
        detail = row["notes"] or ""
    except MediaError as error:
        status, detail = error.reason, str(error)
    except Exception as error:  # a decoder can raise any error on a damaged file; it counts for that clip only
        status, detail = "undecodable", f"{clip.source}: {type(error).__name__}: {error}"
    entry = {"id": clip.id, "cell": clip.cell, "label": clip.label, "status": status, "detail": detail}
    return row, entry | {"duration": row and row["duration"], "source": clip.source or ""}


def _disk_message(out: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk of {out} is full ({error.strerror}); make room and {RESUME}"
    return f"{out} cannot be written ({error.strerror or error}); fix that and {RESUME}"


def draft_path(out: Path, shard: Shard, pid: int | None) -> Path:
    """Return the temporary file in which a process writes a shard until it is complete."""
    return out / STATE / "drafts" / f"{shard.name}.{pid}"


class _Draft:
    """Parquet file under its temporary name, flushed to disk when complete."""

    def __init__(self, path: Path, features: dict[str, Any]):
        self.path, self.schema = path, arrow_schema(features)
        plain = [name for name, feature in features.items() if feature.get("dtype") in PLAIN and name != "id"]
        self.file = path.open("wb")
        self.writer = pq.ParquetWriter(
            self.file,
            self.schema,
            compression="snappy",
            use_dictionary=plain,
            write_statistics=plain,
            store_schema=True,
        )

    def write(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            self.writer.write_table(pa.Table.from_pylist(rows, schema=self.schema), row_group_size=ROWS_PER_GROUP)

    def __enter__(self) -> _Draft:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.writer.close()
            self.file.flush()
            os.fsync(self.file.fileno())
        finally:
            self.file.close()


def is_done(out: Path, name: str) -> bool:
    """Return True if a shard is complete: its record exists, and so does the file that it describes."""
    record = read_record(out, name)
    if record is None:
        return False
    target = out / "data" / f"{name}.parquet"
    return not record["rows"] or (target.exists() and target.stat().st_size == record["bytes"])


def _record_path(out: Path, name: str) -> Path:
    return out / STATE / "shards" / f"{name}.json"


def read_record(out: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a shard, or None if there is none."""
    path = _record_path(out, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
