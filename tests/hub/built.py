"""Small built data sets for the Hub tests, and their raw clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hf_mmbalance.building.engine import build
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip
from hf_mmbalance.building.report import finish
from hf_mmbalance.building.sheet import contact_sheet
from tests.media_factory import write_clip


SCRIPTS = Path(__file__).parents[2] / "dataset_scripts"
CARD = """---
license: cc-by-4.0
pretty_name: Toy
---
# Toy

{{ clips }} clips: {{ configs }}.

```python
from datasets import load_dataset
clips = load_dataset("path/of/this/folder")
from hf_mmbalance.data import load
train = load("path/of/this/folder", config="fold1", split="train")
```

{{ splits }}

{{ left_out }}
"""


def write_media(folder: Path, clips: int = 12) -> Path:
    """Numbered clips of a third of a second."""
    for i in range(clips):
        write_clip(folder / "raw" / f"{i:02d}.mp4", seconds=0.32, size=(24, 32), tone=300.0 + 20 * i)
    return folder / "raw"


def build_toy(media: Path, out: Path, *, clips: int = 12, shift: int = 0, **encode) -> Path:
    """Build two folds over three cells of four clips each, two clips a shard; the last clip planned has no file.

    `shift` gives the clips of the last cell other files.
    """
    planned = []
    for i in range(clips):
        path = media / f"{(i + shift) % 12 if i % 3 == 2 else i:02d}.mp4"
        problem = ("missing", f"{media / 'gone.mp4'}: not there") if i == clips - 1 else None
        clip = PlannedClip(f"c{i:02d}", str(path), f"part{i % 3}", i % 2, {"group": f"g{i}"}, path.stat().st_size)
        planned.append(replace(clip, problem=problem))
    parts = ["part0", "part1", "part2"]
    configs = {
        f"fold{k}": {"train": [part for part in parts if part != f"part{k}"], "test": [f"part{k}"]} for k in range(2)
    }
    plan = BuildPlan(
        name="toy",
        clips=planned,
        classes=["even", "odd"],
        label_column="label",
        group_column="group",
        features={"group": {"dtype": "string", "_type": "Value"}},
        configs=configs,
        encode=EncodeOptions(**{"frames": 2, **encode}),
        clips_per_shard=2,
    )
    report = finish(plan, out, build(plan, out), CARD)
    contact_sheet(out, report["shards"], plan.classes, "label")
    return out
