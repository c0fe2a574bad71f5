"""README of a built dataset: a template filled with the results of a build, and metadata for `datasets`."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hf_mmbalance import markdown
from hf_mmbalance.building.plan import BuildPlan
from hf_mmbalance.data.clips import DataError


LISTED = 40  # clips listed in a card; manifest.csv lists all


def fill_card(template: str, plan: BuildPlan, report: dict[str, Any], configs: list[dict[str, Any]]) -> str:
    """Fill the template of a dataset card.

    Args:
        template: Markdown with an optional YAML head and `{{ name }}` marks: `clips`, `splits`, `classes`,
            `left_out`, `noted`, `encoding`, `notes`, `configs`.
        plan: plan that was built.
        report: report of the build.
        configs: `configs:` section that `datasets` reads; added to the head.

    Raises:
        DataError: the template has an unknown mark.
    """
    head, body = {}, template
    if template.startswith("---\n"):
        _, front, body = template.split("---\n", 2)
        head = yaml.safe_load(front)
    parts = {
        "clips": f"{report['clips']['built']:,} of {report['clips']['planned']:,}",
        "splits": _splits(report),
        "classes": ", ".join(f"{i} {markdown.text(name)}" for i, name in enumerate(plan.classes)),
        "left_out": _clips(report["left_out"], "No clip was left out."),
        "noted": _clips(report["noted"], "No clip needed special treatment."),
        "encoding": _encoding(plan),
        "notes": "\n".join(f"- {markdown.text(note)}" for note in plan.notes) or "- none",
        "configs": ", ".join(f"`{config['config_name']}`" for config in configs),
    }

    def fill(mark: re.Match[str]) -> str:
        if mark[1] not in parts:
            raise DataError(f"the card has an unknown mark {mark[0]}; known are {', '.join(parts)}")
        return parts[mark[1]]

    text = re.sub(r"\{\{ *(\w+) *\}\}", fill, body)
    head |= {"configs": configs, "dataset_info": _info(report, configs)}
    return "---\n" + yaml.safe_dump(head, sort_keys=False, width=110) + "---\n" + text


def _info(report: dict[str, Any], configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the number of clips and bytes of every split, for the YAML head.

    `datasets` names its cache by the folder's last name and this head, not by the files. Without these numbers,
    `load_dataset` would return an earlier build of the same name.
    """
    infos = []
    for config in configs:
        splits = []
        for part in config["data_files"]:
            starts = tuple(pattern.removesuffix("*.parquet") for pattern in part["path"])
            size = sum(shard["bytes"] for shard in report["shards"] if shard["file"].startswith(starts))
            count = report["splits"][config["config_name"]][part["split"]]["built"]
            splits.append({"name": part["split"], "num_bytes": size, "num_examples": count})
        total = sum(split["num_bytes"] for split in splits)
        infos.append(
            {"config_name": config["config_name"], "splits": splits, "download_size": total, "dataset_size": total}
        )
    return infos


def _splits(report: dict[str, Any]) -> str:
    """Return one table per configuration with the clips, groups and classes of every split."""
    blocks = []
    for config, splits in report["splits"].items():
        lines = [
            f"**`{config}`**",
            "",
            "| split | clips | of planned | groups | " + " | ".join(map(markdown.text, report["classes"])) + " |",
        ]
        lines.append("|" + "---|" * (4 + len(report["classes"])))
        for split, counts in splits.items():
            classes = " | ".join(str(number) for number in counts["classes"].values())
            lines.append(f"| {split} | {counts['built']} | {counts['planned']} | {counts['groups']} | {classes} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _clips(reasons: dict[str, str], none: str) -> str:
    if not reasons:
        return none
    lines = [f"- {markdown.code(clip)}: {markdown.text(reason)}" for clip, reason in sorted(reasons.items())[:LISTED]]
    more = len(reasons) - LISTED
    return "\n".join(lines + ([f"- and {more} more, all in `manifest.csv`"] if more > 0 else []))


def _encoding(plan: BuildPlan) -> str:
    encode = plan.encode
    frames = f"{encode.frames} evenly spaced frames" if encode.fps is None else f"{encode.fps:g} frames per second"
    size = encode.frame_size
    shape = "original size" if size is None else f"shorter side {size} px"
    shape = f"height x width {size} px" if isinstance(size, tuple) else shape
    picture = "PNG" if encode.image_format == "png" else f"JPEG (quality {encode.quality})"
    crop = f", cropped to {list(encode.crop)} (left, top, right, bottom)" if encode.crop else ""
    return f"Audio: FLAC, 16 bit, mono, {encode.sampling_rate} Hz. Vision: {frames} as {picture}, {shape}{crop}."
