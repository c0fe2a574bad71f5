"""Fuse two models from the Hub into one classifier, using a table of clips, and classify a clip with it.

python examples/fuse_two_models.py AUDIO_MODEL VISION_MODEL clips.csv        # path,label[,group]; labels can be empty
"""

import argparse
import csv
import json
from pathlib import Path

from transformers import pipeline

from hf_mmbalance.cli import main as mmbalance


def main(audio: str, vision: str, table: str, out: str = "outputs/fused", *options: str) -> dict:
    """Fuse, then print the accuracies and the answers for the first clip, with and without its sound."""
    towers = ["--audio_model", audio, "--vision_model", vision]
    status = mmbalance(["fuse", *towers, "--dataset", table, "--out", out, *options])
    if status != 0:
        raise SystemExit(status)  # the command has printed the reason

    results = json.loads(Path(out, "results.json").read_text())
    accuracy = {row["method"]: row["accuracy"] for row in results["rows"]}
    print("out of fold:", ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracy.items()))

    with open(table, newline="") as file:
        clip = next(csv.DictReader(file))["path"]
    classify = pipeline("audio-visual-classification", model=out, trust_remote_code=True)
    path = str(Path(table).parent / clip)  # paths in a table are relative to it
    print("both:   ", classify(path, top_k=1))
    print("picture:", classify(path, top_k=1, modalities="vision"))
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("audio", "vision", "table"):
        parser.add_argument(name)
    parser.add_argument("--out", default="outputs/fused")
    main(**vars(parser.parse_args()))
