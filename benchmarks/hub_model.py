"""Loading time of a published model, import time of the package, and traffic of a second push.

    python benchmarks/hub_model.py [--small] [--runs 5]

A model of AST-base and ViT-base towers (random weights, 690 MB; `--small` uses tiny ones) and each tower by itself are
pushed to the tests' local Hub. Then, from a warm cache, offline and in a process without the package, `AutoModel`
loads the model with its own code, and the two towers for comparison. Prints medians over processes, separately for the
first load (which imports what it needs) and the later ones. Imports are timed in separate processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.hub.client import client_env, run_python  # noqa: E402
from tests.hub.server import HubServer  # noqa: E402


MAKE = """
import sys
from pathlib import Path
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ViTConfig, ViTImageProcessorPil
from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
torch.manual_seed(0)
size = {} if sys.argv[2] == "base" else {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
model = MMBalanceForAudioVisualClassification.from_backbones(
    ASTConfig(**size), ViTConfig(**size), id2label={index: f"class {index}" for index in range(6)}
)
print(f"{model.num_parameters() / 1e6:.1f} M parameters")
folder = Path(sys.argv[1])
model.save_pretrained(folder / "model")
MMBalanceProcessor(ASTFeatureExtractor(), ViTImageProcessorPil()).save_pretrained(folder / "model")
model.audio_model.save_pretrained(folder / "audio")
model.vision_model.save_pretrained(folder / "vision")
"""
PUSH = """
import sys
from pathlib import Path
from hf_mmbalance.hub import push_folder, push_saved
push_saved(Path(sys.argv[1]) / "model", "me/model")
for name in ("audio", "vision"):
    push_folder(Path(sys.argv[1]) / name, "me/" + name, message="One tower")
"""
LOAD = """
import json, sys, time
from transformers import AutoModel
def model():
    return AutoModel.from_pretrained("me/model", trust_remote_code=True)
def towers():
    return AutoModel.from_pretrained("me/audio"), AutoModel.from_pretrained("me/vision", add_pooling_layer=False)
times = []
for _ in range(4):
    start = time.perf_counter()
    loaded = (model if sys.argv[1] == "model" else towers)()
    times.append(time.perf_counter() - start)
    del loaded
print("TIMES", json.dumps(times))
"""
IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny towers, to try this script")
    parser.add_argument("--runs", type=int, default=5, help="processes of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, HubServer(Path(name) / "store") as hub:
        folder, token = Path(name), hub.add_account("me").token
        make = run_python(
            hub, MAKE, home=folder / "make", args=[name, "small" if arguments.small else "base"], timeout=600
        )
        print(make.stdout.strip())
        pushes(hub, folder, token)
        loads(hub, folder, arguments.runs)
        imports(hub, folder, arguments.runs)


def pushes(hub: HubServer, folder: Path, token: str) -> None:
    """Print the traffic of the first and the second push of the same folder."""
    for which in ("first", "second"):
        hub.log.clear()
        run_python(hub, PUSH, home=folder / "push", token=token, args=[str(folder)], timeout=600)
        sent = [record for record in hub.log if "/model" in record.path or "lfs" in record.path]
        weights = hub.log.received("lfs_upload") / 1e6
        other = sum(record.received for record in sent) / 1e6 - weights
        print(
            f"{which} push: {len(list(hub.log))} requests (model and both towers), {weights:.1f} MB of weights,"
            f" {1000 * other:.0f} kB else, {hub.log.count('commit')} commits"
        )


def loads(hub: HubServer, folder: Path, runs: int) -> None:
    """Print median times from a warm cache, offline: of the first load in a process, and of later ones."""
    options = {"home": folder / "load", "without": ["hf_mmbalance"], "timeout": 600}
    for what in ("model", "towers"):
        run_python(hub, LOAD, args=[what], **options)
    hub.log.clear()
    times: dict[str, list[list[float]]] = {"model": [], "towers": []}
    for _ in range(runs):
        for what, measured in times.items():
            done = run_python(hub, LOAD, args=[what], env={"HF_HUB_OFFLINE": "1"}, **options)
            line = next(line for line in done.stdout.splitlines() if line.startswith("TIMES"))
            measured.append(json.loads(line[6:]))
    for name, part in (("first", slice(0, 1)), ("later", slice(1, None))):
        medians = {
            what: statistics.median(value for process in measured for value in process[part])
            for what, measured in times.items()
        }
        ratio = medians["model"] / medians["towers"]
        print(
            f"{name} load in a process, warm and offline: model {medians['model']:.3f} s, its two towers by themselves"
            f" {medians['towers']:.3f} s: {ratio:.2f} times (median of {runs} processes)"
        )
    print(f"requests during loading: {len(list(hub.log))}")


def imports(hub: HubServer, folder: Path, runs: int) -> None:
    """Print median times of imports, each in a new process."""
    medians = {}
    for what in ("transformers", "transformers, hf_mmbalance"):
        command = [sys.executable, "-c", IMPORT.format(what)]
        env = client_env(hub, folder / "import", None)
        seconds = [
            float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
            for _ in range(runs)
        ]
        medians[what] = statistics.median(seconds)
    plain, both = medians.values()
    print(f"import: transformers {plain:.3f} s, with hf_mmbalance {both:.3f} s: {both - plain:+.3f} s")


if __name__ == "__main__":
    main()
