"""A small data set of made clips, as a plan."""

from __future__ import annotations

from pathlib import Path

from hf_mmbalance.building.engine import file_sha256
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip


GROUP = {"group": {"dtype": "string", "_type": "Value"}}


CARD = "---\nlicense: mit\n---\n# Test\n\n{{ clips }}\n\n{{ splits }}\n\n{{ left_out }}\n\n{{ encoding }}\n"


def make_plan(media: Path, encode: EncodeOptions | None = None, **changes) -> BuildPlan:
    clips = changes.get("clips") or [
        PlannedClip(
            id=f"c{i:02d}",
            source=str(media / f"{i:02d}.mp4"),
            cell="test" if i % 4 == 3 else "train",
            label=i % 2,
            columns={"group": f"g{i}"},
            size=(media / f"{i:02d}.mp4").stat().st_size,
        )
        for i in range(24)
    ]
    fields = {
        "name": "toy",
        "clips": clips,
        "classes": ["even", "odd"],
        "label_column": "label",
        "group_column": "group",
        "features": GROUP,
        "configs": {"default": {"train": ["train"], "test": ["test"]}},
        "encode": encode or EncodeOptions(frames=3),
        "clips_per_shard": 5,
    }
    return BuildPlan(**(fields | changes))


def shard_hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted((folder / "data").iterdir())}
