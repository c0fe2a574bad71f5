"""A build that is killed, interrupted or out of disk ends the same when it is run again."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_mmbalance.building.engine import BuildError, build
from hf_mmbalance.building.report import finish
from hf_mmbalance.building.validate import validate

from .toy import CARD, make_plan, shard_hashes


def test_a_full_disk_leaves_nothing_half_written(media, tmp_path):
    plan = make_plan(media)
    build(plan, tmp_path / "out", part=(0, 3))
    whole = shard_hashes(tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a worker inherits it; the plan is smaller
    try:
        with pytest.raises(BuildError, match="disk .* is full .*run the same command again"):
            build(plan, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out" / ".build" / "drafts").iterdir()) == []
    assert shard_hashes(tmp_path / "out") == whole and len(whole) == 2
    assert build(plan, tmp_path / "out")["clips"] < 24
    finish(plan, tmp_path / "out", {}, CARD)
    assert validate(tmp_path / "out") == []


BUILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.building.toy import make_plan
from hf_mmbalance.building import encode, engine
if __name__ == "__main__":
    engine.build(make_plan(Path({media!r})), Path({out!r}), num_proc={num_proc})
"""


COMMAND = """
import sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
from tests.building.toy import make_plan
from hf_mmbalance.building.cli import DatasetScript

def long_plan(args, encode):
    clips = make_plan(args.source).clips
    clips = [replace(clip, id=f"{{clip.id}}-{{again}}") for again in range(3) for clip in clips]
    return make_plan(args.source, clips=clips)

if __name__ == "__main__":
    tool = DatasetScript("toy", "", long_plan, Path({card!r}), max_lost=1.0)
    sys.exit(tool.main(["build", "--source", {media!r}, "--out", {out!r}, "--num-proc", "2"]))
"""


def test_an_interrupted_build_says_how_to_resume(media, tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "out"
    (tmp_path / "card.md").write_text(CARD)
    places = {"root": str(Path(__file__).parents[2]), "card": str(tmp_path / "card.md")}
    script.write_text(COMMAND.format(**places, media=str(media), out=str(out)))
    command = [sys.executable, str(script)]
    run = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    while not list((out / ".build" / "drafts").glob("*")):
        assert run.poll() is None, "the build ended before it began"
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, shown = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in shown
    line = "toy build: error: interrupted; run the same command again (without --overwrite): it resumes the build"
    assert shown.strip().splitlines()[-1] == line
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert validate(out) == []


def process_ids_of_session(session: int) -> list[int]:
    """Processes of a session that still run (zombies do not)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else None
        except OSError:
            continue
        if fields is not None and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_within_a_second_of_their_parent(media, tmp_path, signal_number):
    script = tmp_path / "run.py"
    places = {"root": str(Path(__file__).parents[2]), "media": str(media), "out": str(tmp_path / "out")}
    script.write_text(BUILD.format(**places, num_proc=2))
    run = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out" / ".build" / "drafts").glob("*")):
        assert run.poll() is None, "the build ended before it began"
        time.sleep(0.005)
    assert len(process_ids_of_session(run.pid)) >= 3
    os.kill(run.pid, signal_number)  # the parent only
    run.wait()
    deadline = time.monotonic() + 1.0
    while (left := process_ids_of_session(run.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_killed_at_random_moments_the_shards_are_the_same(media, built, tmp_path):
    rng = random.Random(0)
    out, script, kills = tmp_path / "out", tmp_path / "run.py", 0
    places = {"root": str(Path(__file__).parents[2]), "media": str(media)}
    for attempt in range(4):
        script.write_text(BUILD.format(**places, out=str(out), num_proc=1 + attempt % 2))
        run = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.DEVNULL)
        while not (out / ".build" / "drafts").exists():
            assert run.poll() is None, "the build ended before it began"
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.25 if attempt % 2 == 0 else 1.5))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        kills += run.returncode == -signal.SIGKILL
        plan = make_plan(media)
        build(plan, out)
        assert shard_hashes(out) == shard_hashes(built)
        finish(plan, out, {}, CARD)
        assert list((out / ".build" / "drafts").iterdir()) == []
        subprocess.run(["rm", "-rf", str(out)], check=True)
    assert kills >= 3
