"""transformers' own test mixins, from the sdist of the installed version, on our classes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import transformers


SUITE = Path(__file__).parent / "transformers_suite"
# Siblings of the common tests that the sdist leaves out and that our classes have no use for.
STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs):\n    return url\n",
}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    name = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), name], capture_output=True, text=True, timeout=600)
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        pytest.skip(f"the sdist of {name} cannot be downloaded: {done.stderr.strip()[-300:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    root = folder / f"transformers-{transformers.__version__}"
    for path, text in STUBS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if not (root / path).exists():
            (root / path).write_text(text)
    shutil.rmtree(root / "src")  # the installed package is tested, not the unpacked one
    for check in SUITE.glob("check_*.py"):
        shutil.copy(check, root)
    return root


@pytest.mark.slow
def test_their_tests_pass_on_our_classes(sdist, capsys):
    checks = sorted(path.name for path in sdist.glob("check_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-rsf", *checks]
    done = subprocess.run(
        command, cwd=sdist, capture_output=True, text=True, timeout=1200, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    reasons: Counter[str] = Counter()
    for count, reason in re.findall(
        r"^(?:SUB)?SKIPPED(?:\[\w+\])? \[(\d+)\] [^:]+:(?:\d+:)? (.+)$", done.stdout, re.MULTILINE
    ):
        reasons[reason] += int(count)
    totals = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    with capsys.disabled():
        sys.stdout.write(f"\ntransformers {transformers.__version__}: {totals}\n")
        for reason, count in reasons.most_common():
            sys.stdout.write(f"  {count:3d} skipped: {reason}\n")
    assert done.returncode == 0, done.stdout[-5000:]
    assert totals.get("passed", 0) >= 100 and "failed" not in totals
    assert sum(reasons.values()) == totals["skipped"]  # every skip has its reason in the list
