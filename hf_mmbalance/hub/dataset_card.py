"""The card of a dataset repository: several builds share one metadata block; a push replaces only its own part."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hf_mmbalance.hub.errors import HubError


HERE = '"path/of/this/folder"'  # placeholder of the built folder in the snippets of model_cards/
OTHERS = re.compile(r"\n*<!-- other builds -->.*?<!-- end of other builds -->\n*", re.DOTALL)
ROW = re.compile(r"^\| \[`([\w-]+)`\].*$", re.MULTILINE)


def read_card(text: str, where: str) -> tuple[dict[str, Any], str]:
    """Split a card into its YAML head and its body.

    Raises:
        HubError: the head is missing, not closed, or not YAML.
    """
    match = re.match(r"---\r?\n(.*?\n)---(?:\r?\n|$)(.*)", text, re.DOTALL)
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise HubError(f"{where}: the head of the card is not YAML ({error}); correct it and push again") from error
    if match is None or not isinstance(head, dict):
        raise HubError(f"{where}: the card has no YAML head between two --- lines; build the dataset again")
    return head, match[2]


class _Plain(yaml.SafeDumper):
    """Writes values shared by several configurations in full: not every reader of cards supports YAML references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_card(head: dict[str, Any], body: str) -> str:
    """Return the text of a card."""
    return "---\n" + yaml.dump(head, Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True) + "---\n" + body


def config_names(head: dict[str, Any]) -> list[str]:
    """Return the names of the configurations."""
    return [config["config_name"] for config in head.get("configs") or []]


def paths_of(config: dict[str, Any]) -> list[str]:
    """Return the file patterns of a configuration, for all splits."""
    files = config.get("data_files") or []
    parts = [files] if isinstance(files, str) else [part["path"] if isinstance(part, dict) else part for part in files]
    return [path for part in parts for path in ([part] if isinstance(part, str) else part)]


def new_names(head: dict[str, Any], name: str | None) -> dict[str, str]:
    """Return the names that a build's configurations get in the repository, by old name; {} if unchanged."""
    names = config_names(head)
    return {old: name if names == [old] else f"{name}-{old}" for old in names} if name else {}


def rename(head: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the head of a named build: the name is added to its configurations and paths."""
    new = new_names(head, name)
    configs = []
    for config in head["configs"]:
        files = []
        for part in config["data_files"]:
            paths = [part["path"]] if isinstance(part["path"], str) else part["path"]
            files.append({"split": part["split"], "path": [_under(name, path) for path in paths]})
        configs.append(config | {"config_name": new[config["config_name"]], "data_files": files})
    infos = [info | {"config_name": new[info["config_name"]]} for info in head.get("dataset_info") or []]
    return head | {"configs": configs, "dataset_info": infos}


def _under(name: str, path: str) -> str:
    return f"{name}/{path.removeprefix('data/')}"


def merge_heads(
    new: dict[str, Any], old: dict[str, Any], place: str, default: str | None, *, beside: bool = False
) -> dict[str, Any]:
    """Merge the heads of a pushed build and of the repository; configurations of other builds stay.

    Args:
        new: Head of the pushed build.
        old: Head of the existing card; {} if there is none.
        place: Folder of the pushed build's shards in the repository; configurations in it are replaced.
        default: Configuration to make the default; None keeps the old default, or uses the first of `new`.
        beside: The build has a name and is added to others: license, title and tags of the repository stay.

    Raises:
        HubError: two builds use the same name or different licenses, or `default` is not a configuration.
    """
    kept = [config for config in old.get("configs") or [] if not _lies_in(config, place)]
    names = config_names({"configs": kept})
    repeated = sorted(set(names) & set(config_names(new)))
    if repeated:
        text = f"the repository has a configuration {repeated[0]} of a different build"
        raise HubError(f"{text}; push with a different --name, or remove that configuration from the card first")
    configs = [dict(config) for config in [*new["configs"], *kept]]
    marked = next((config["config_name"] for config in old.get("configs") or [] if config.get("default")), None)
    names = config_names({"configs": configs})
    chosen = default or (marked if marked in names else None) or names[0]
    if chosen not in names:
        raise HubError(f"--default {chosen}: the configurations are {', '.join(names)}")
    for config in configs:
        config.pop("default", None)
        if config["config_name"] == chosen:
            config["default"] = True
    old_infos = old.get("dataset_info") or []
    old_infos = [old_infos] if isinstance(old_infos, dict) else old_infos
    infos = [*(new.get("dataset_info") or []), *(info for info in old_infos if info.get("config_name") in names)]
    unique = {info["config_name"]: info for info in reversed(infos)}
    beside = beside and bool(kept)
    if beside and (old.get("license") or new["license"]) != new["license"]:
        text = f"the repository's card says license {old['license']}, this build's says {new['license']}"
        raise HubError(f"{text}; push it to a separate repository, or correct the wrong card")
    rest = {
        key: entry
        for key, entry in ((new | old) if beside else (old | new)).items()
        if key not in ("configs", "dataset_info")
    }
    return rest | {"configs": configs, "dataset_info": [unique[name] for name in names if name in unique]}


def _lies_in(config: dict[str, Any], place: str) -> bool:
    return any(path.startswith(place + "/") for path in paths_of(config))


def check_head(head: dict[str, Any], files: Iterable[str]) -> None:
    """Check that the files of every configuration exist.

    Raises:
        HubError: files are missing; the message names the configuration.
    """
    there = list(files)
    for config in head["configs"]:
        for pattern in paths_of(config):
            if not any(fnmatch.fnmatchcase(path, pattern) for path in there):
                text = f"configuration {config['config_name']} names {pattern}, but no file matches it"
                raise HubError(f"{text}; build the dataset again, or push the build that it belongs to")


def list_build(body: str, name: str, clips: str, configs: list[str]) -> str:
    """Add one line about a named build to the list of builds in the body."""
    found = OTHERS.search(body)
    rows = {match[1]: match[0] for match in ROW.finditer(found[0])} if found else {}
    shown = ", ".join(f"`{config}`" for config in configs)
    rows[name] = f"| [`{name}`]({name}/README.md) | {shown} | {clips} |"
    return _with_others(OTHERS.sub("\n", body), rows)


def keep_list(body: str, old: str) -> str:
    """Copy the list of other builds from an older body into a new one."""
    found = OTHERS.search(old)
    return _with_others(body, {match[1]: match[0] for match in ROW.finditer(found[0])} if found else {})


def _with_others(body: str, rows: dict[str, str]) -> str:
    if not rows:
        return body
    head = ["<!-- other builds -->", "## Other builds in this repository", ""]
    head += ["| build and its card | configurations | clips |", "|---|---|---|"]
    lines = [*head, *(rows[name] for name in sorted(rows)), "<!-- end of other builds -->"]
    return body.rstrip("\n") + "\n\n" + "\n".join(lines) + "\n"


def fill_snippets(body: str, repo_id: str, tag: str, renamed: dict[str, str]) -> str:
    """Fill in the body's snippets, so that they load this content from the repository at its revision."""
    lines = body.split("\n")
    for i, line in enumerate(lines):
        if HERE not in line:
            continue
        source = f'"{repo_id}", revision="{tag}"'
        if renamed and 'config="' not in line:
            first = next(iter(renamed.values()))
            source += f', name="{first}"' if "load_dataset(" in line else f', config="{first}"'
        for old, new in renamed.items():
            line = line.replace(f'config="{old}"', f'config="{new}"')
        lines[i] = line.replace(HERE, source)
    return "\n".join(lines)


def remove_folders(text: str, sources: Iterable[str]) -> str:
    """Remove local folders from the paths in a text; file names stay."""
    parents = {str(parent) for source in sources for parent in list(Path(source).parents)[:3]}
    places = [*sorted(parents, key=len, reverse=True), str(Path.home())]
    for place in places:
        if place.startswith("/") and place != "/":
            text = re.sub(rf"(?<![\w.]){re.escape(place)}/", "", text)
    return text
