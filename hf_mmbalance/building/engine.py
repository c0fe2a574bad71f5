"""Shards are written by several processes, each under a draft name until it is whole: a build can be killed."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from hf_mmbalance.building.encode import arrow_schema, encode_clip, features_of
from hf_mmbalance.building.plan import BuildPlan, Shard
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.model.media_mmbalance import MediaError


ROWS_PER_GROUP = 32  # rows held in memory while writing and reading
STATE = ".build"  # drafts and one record a shard; `datasets` reads no hidden folder
PLAIN = ("string", "int64", "int32", "float64")

_progress: Any = None  # a shared counter of clips, in a worker


class BuildError(RuntimeError):
    """A build that cannot go on; the message says why and how to go on."""


def part_of(shards: list[Shard], part: tuple[int, int]) -> list[Shard]:
    """The shards of machine i of n.

    Raises:
        DataError: not 0 <= i < n.
    """
    index, count = part
    if not 0 <= index < count:
        raise DataError(f"--shard i/n needs 0 <= i < n, got {index}/{count}")
    return shards[index::count]


def build(
    plan: BuildPlan, out: Path, *, num_proc: int = 1, part: tuple[int, int] = (0, 1), overwrite: bool = False
) -> dict[str, Any]:
    """Write the shards of a plan that are not there yet.

    Args:
        plan: what to build.
        out: folder; a build of the same plan in it is gone on with.
        num_proc: processes.
        part: (i, n): build every n-th shard from the i-th on.
        overwrite: remove another build that is in the folder.

    Returns:
        `clips`, `seconds` and `steady_clips_per_second` of this run.

    Raises:
        BuildError: the folder holds something else, the disk is full, or a worker died.
    """
    _open_folder(plan, out, overwrite)
    todo = [shard for shard in part_of(plan.shards(), part) if not is_done(out, shard.name)]
    for draft in (out / STATE / "drafts").iterdir():
        if not _is_alive(draft):
            draft.unlink(missing_ok=True)
    started = time.perf_counter()
    clips = sum(len(shard.clips) for shard in todo)
    with tqdm(total=clips, desc=f"building {plan.name}", unit="clip", disable=None if clips else True) as bar:
        steady = _run(plan, out, todo, num_proc, bar)
    return {"clips": clips, "seconds": time.perf_counter() - started, "steady_clips_per_second": steady}


def _open_folder(plan: BuildPlan, out: Path, overwrite: bool) -> None:
    mark = out / STATE / "plan.json"
    if mark.exists():
        there = json.loads(mark.read_text())
        if there["fingerprint"] == plan.fingerprint():
            return
        if not overwrite:
            text = f"{out} holds a build of {there['name']} with other clips, files or options"
            raise BuildError(f"{text}; build into another folder, or pass --overwrite to remove it")
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise BuildError(f"{out} is not empty and holds no build; give an empty or new folder")
    (out / STATE / "drafts").mkdir(parents=True, exist_ok=True)
    (out / STATE / "shards").mkdir(exist_ok=True)
    (out / "data").mkdir(exist_ok=True)
    write_json(mark, {"name": plan.name, "fingerprint": plan.fingerprint(), "plan": plan.to_json()})


def _is_alive(draft: Path) -> bool:
    """Whether the process that writes a draft still runs (another part of the build on this machine)."""
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
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[-1].split()[0] == "Z")


def _run(plan: BuildPlan, out: Path, todo: list[Shard], num_proc: int, bar: tqdm) -> float:
    """Build shards; returns the rate between the first and the last fifth of the clips (start-up left out)."""
    marks: list[tuple[float, int]] = []

    def advance(done: int) -> None:
        bar.update(done - (marks[-1][1] if marks else 0))
        marks.append((time.perf_counter(), done))

    head = (plan.label_column, plan.encode, features_of(plan))
    if num_proc <= 1:
        statuses = (status for shard in todo for status in _write_shard(shard, out, *head))
        for done, _ in enumerate(statuses, start=1):
            advance(done)
    elif todo:
        _run_pool(todo, out, head, num_proc, advance)
    return _steady_rate(marks)


def _run_pool(todo: list[Shard], out: Path, head: tuple, num_proc: int, advance: Any) -> None:
    # spawned, not forked: a worker must not inherit torch from whoever calls
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    # the largest first, so that no process is left with a large one at the end
    queue = sorted(todo, key=lambda shard: -len(shard.clips))
    with ProcessPoolExecutor(num_proc, context, initializer=_start_worker, initargs=(counter,)) as pool:
        pending: set[Future[None]] = {pool.submit(_work, shard, out, *head) for shard in queue}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                advance(counter.value)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            text = "a building process was killed (often by the system for want of memory)"
            raise BuildError(f"{text}; run the same command again to go on, with a smaller --num-proc") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _steady_rate(marks: list[tuple[float, int]]) -> float:
    if len(marks) < 10:
        return 0.0
    total = marks[-1][1]
    inner = [(moment, done) for moment, done in marks if 0.2 * total <= done <= 0.8 * total]
    if len(inner) < 2 or inner[-1][0] == inner[0][0]:
        return 0.0
    return (inner[-1][1] - inner[0][1]) / (inner[-1][0] - inner[0][0])


def _start_worker(counter: Any) -> None:
    global _progress
    _progress = counter
    pa.set_memory_pool(pa.system_memory_pool())  # gives memory back; the pooled ones keep it


def _work(shard: Shard, out: Path, label_column: str, options: Any, features: dict[str, Any]) -> None:
    for _ in _write_shard(shard, out, label_column, options, features):
        with _progress.get_lock():
            _progress.value += 1


def _write_shard(shard: Shard, out: Path, label_column: str, options: Any, features: dict[str, Any]) -> Iterator[str]:
    """Write one shard and its record; yields each clip's status as it is done."""
    draft = out / STATE / "drafts" / f"{shard.name}.{os.getpid()}"
    target = out / "data" / f"{shard.name}.parquet"
    rows: list[dict[str, Any]] = []
    manifest: list[dict[str, Any]] = []
    try:
        with _Draft(draft, features) as writer:
            for clip in shard.clips:
                status, detail, duration = "ok", "", None
                try:
                    rows.append(encode_clip(clip, label_column, options))
                    detail, duration = rows[-1]["notes"] or "", rows[-1]["duration"]
                except MediaError as error:
                    status, detail = error.reason, str(error)
                label = clip.label
                manifest.append(
                    {"id": clip.id, "cell": clip.cell, "label": label, "status": status, "detail": detail}
                    | {"duration": duration, "source": clip.source or ""}
                )
                if len(rows) == ROWS_PER_GROUP:
                    writer.write(rows)
                    rows = []
                yield status
            writer.write(rows)
        built = sum(entry["status"] == "ok" for entry in manifest)
        record = {"name": shard.name, "rows": built, "clips": manifest}
        if built:
            record |= {"bytes": draft.stat().st_size, "sha256": file_sha256(draft)}
            os.replace(draft, target)
        else:
            draft.unlink()
        # last: without this record the shard counts as not built
        write_json(out / STATE / "shards" / f"{shard.name}.json", record)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            text = f"the disk of {out} is full ({error.strerror}); make room and run the same command again to go on"
            raise BuildError(text) from None
        raise


class _Draft:
    """A Parquet file under its draft name, flushed to the disk when it is whole."""

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
    """Whether a shard is whole: its record is there, and the file it speaks of."""
    record = read_record(out, name)
    if record is None:
        return False
    target = out / "data" / f"{name}.parquet"
    return not record["rows"] or (target.exists() and target.stat().st_size == record["bytes"])


def read_record(out: Path, name: str) -> dict[str, Any] | None:
    """What the build wrote down about a shard, or None."""
    path = out / STATE / "shards" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(draft, path)


def file_sha256(path: Path) -> str:
    """Sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
