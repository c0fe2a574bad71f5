"""Push a built dataset to the Hub: changed shards, one card for all builds of a repository, a tag for the content."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_mmbalance.building.cli import DatasetScript, Say
from hf_mmbalance.building.engine import BuildError, file_sha256
from hf_mmbalance.building.report import MANIFEST, REPORT
from hf_mmbalance.console import fields
from hf_mmbalance.hub import dataset_card as cards
from hf_mmbalance.hub.commit import Change, check_files, push_change
from hf_mmbalance.hub.errors import HubError


if TYPE_CHECKING:
    from huggingface_hub import HfApi

BASE = "data"  # folder for the shards of the main build, which has no name
SHEET = "contact_sheet.png"


@dataclass
class Build:
    """A folder that `build` or `annotations` wrote, in the form it gets in the repository.

    Attributes:
        head, body: parts of its card.
        shards: path in the repository -> local file.
        extras: report, manifest, contact sheet, and the card of a named build.
        sha256: path in the repository -> hash of the content, for shards and contact sheet.
        place: folder of the shards in the repository.
        tag: tag that identifies this content.
        clips: number of clips, as text.
        media: columns with audio, video or images.
    """

    head: dict[str, Any]
    body: str
    shards: dict[str, Path]
    extras: dict[str, Path | bytes]
    sha256: dict[str, str]
    place: str
    tag: str
    clips: str
    media: list[str]


def publish(
    folder: Path,
    repo_id: str,
    *,
    name: str | None = None,
    default: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    media_may_be_public: bool = True,
) -> dict[str, Any]:
    """Push a built folder to a dataset on the Hub in one commit; unchanged files are not sent.

    Args:
        folder: Folder that `build` (or Kinetics-Sounds' `annotations`) wrote.
        repo_id: `user/name`.
        name: Name of this build in a repository with several builds; used for its configurations and the folder of
            its shards. Without a name, the build is the main one of the repository.
        default: Configuration to make the default (otherwise it stays the same).
        private: True: the repository must be private, and is created private if it is new.
        revision: Branch.
        token: Access token; default: the one of `hf auth login` or `HF_TOKEN`.
        media_may_be_public: False for media that may not be republished: these go to private repositories only.

    Returns:
        `repo`, `url`, `commit`, `tag` (a revision to pin for this content), `configs`, `default`, `files` (number of
        shards sent), `bytes` sent, and `load`, the line of code that loads this content.

    Raises:
        HubError: the Hub or this package rejects the push; the message gives the remedy.
        BuildError: the folder is not a complete build.
    """
    build = read_build(folder, repo_id, name)
    if build.media and not media_may_be_public and not private:
        text = f"{folder} contains media ({', '.join(build.media)}) that may not be republished"
        raise HubError(f"{text}; publish the list of clips (`annotations` writes it), or pass --private")
    result: dict[str, Any] = {}

    def change(api: HfApi, repo: str, head: str) -> Change:
        return _change(api, repo, head, build, name, default, result)

    message = f"{'Build ' + name if name else 'Data'}: {build.clips} clips ({build.tag})"
    done = push_change(
        change,
        repo_id,
        message=message,
        repo_type="dataset",
        private=private,
        revision=revision,
        token=token,
        tag=build.tag,
    )
    repo = done.repo_url.repo_id
    sent = result.pop("sent")
    mine = cards.config_names(build.head)
    config = "" if result["default"] in mine else f', "{mine[0]}"'
    return {
        **{"repo": repo, "url": done.repo_url.url, "commit": done.oid, "tag": build.tag},
        **result,
        "files": len(sent),
        "bytes": sum(build.shards[path].stat().st_size for path in sent),
        "load": f'load_dataset("{repo}"{config}, revision="{build.tag}")',
    }


def read_build(folder: Path, repo_id: str, name: str | None) -> Build:
    """Read a built folder and check that it is complete.

    Raises:
        BuildError: the card is missing, or shards are missing or changed since the build.
        HubError: the name is invalid, the card cannot be read, or a file to publish contains an access token.
    """
    if name is not None and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == BASE):
        raise HubError(f"--name {name!r}: use letters, digits, _ and -, but not the name {BASE!r}")
    card = folder / "README.md"
    if not card.is_file():
        raise BuildError(f"{folder}: README.md does not exist; give a folder that `build` finished")
    local = sorted((folder / "data").glob("*.parquet"))
    hashes = {path.name: file_sha256(path) for path in local}
    report = json.loads((folder / REPORT).read_text(encoding="utf-8")) if (folder / REPORT).exists() else None
    listed = {Path(shard["file"]).name: shard["sha256"] for shard in report["shards"]} if report else hashes
    wrong = sorted(file for file in listed.keys() | hashes.keys() if listed.get(file) != hashes.get(file))
    if wrong or not local:
        text = (
            f"{folder}: {wrong[0]} is missing or has changed since the build"
            if wrong
            else f"{folder}: there is no shard"
        )
        raise BuildError(f"{text}; delete it if it exists, and run `build` again (it keeps complete shards)")
    head, body = cards.read_card(card.read_text(encoding="utf-8"), str(card))
    if not head.get("configs"):
        raise BuildError(f"{card}: there are no configs in its head; run `build` again")
    if not head.get("license"):
        raise BuildError(f"{card} names no license; add `license:` to its head and publish again")
    schema = pq.read_schema(local[0])
    rows = sum(pq.read_metadata(path).num_rows for path in local)
    head = _with_features(head, schema)
    renamed = cards.new_names(head, name)
    head = cards.rename(head, name) if name else head
    tag = "build-" + hashlib.sha256(json.dumps([hashes, head["configs"]]).encode()).hexdigest()[:10]
    sources = _sources(folder)
    body = cards.fill_snippets(cards.remove_folders(body, sources), repo_id, tag, renamed)
    place = name or BASE
    extras = {f"{place}/{file}" if name else file: text for file, text in _extras(folder, sources).items()}
    if name:
        extras[f"{name}/README.md"] = body.encode()
    shards = {f"{place}/{path.name}": path for path in local}
    check_files({**shards, **extras, "README.md": body.encode()}, folder)
    sha256 = {f"{place}/{file}": digest for file, digest in hashes.items()}
    sha256 |= {path: file_sha256(content) for path, content in extras.items() if isinstance(content, Path)}
    return Build(head, body, shards, extras, sha256, place, tag, clips=f"{rows:,}", media=_media_columns(schema))


def _with_features(head: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Add the columns' types to the head, so that the viewer and streams know them before they read a shard."""
    from datasets import Features

    features = Features.from_arrow_schema(schema)._to_yaml_list()
    infos = {info["config_name"]: info for info in head.get("dataset_info") or []}
    named = [{"config_name": config, "features": features} for config in cards.config_names(head)]
    return head | {"dataset_info": [info | infos.get(info["config_name"], {}) for info in named]}


def _media_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that contain files (bytes and path), single or in lists."""

    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return holds(kind.value_type)
        fields = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
        return pa.types.is_binary(kind) or "bytes" in fields

    return [field.name for field in schema if holds(field.type)]


def _sources(folder: Path) -> list[str]:
    """Return the local paths of a build's raw files."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return []
    with manifest.open(newline="", encoding="utf-8") as file:
        return sorted({row["source"] for row in csv.DictReader(file) if row["source"]})


def _extras(folder: Path, sources: list[str]) -> dict[str, Path | bytes]:
    """Return report, manifest and contact sheet without local paths."""
    extras: dict[str, Path | bytes] = {}
    if (folder / REPORT).exists():
        extras[REPORT] = cards.remove_folders((folder / REPORT).read_text(encoding="utf-8"), sources).encode()
    if (folder / MANIFEST).exists():
        text = io.StringIO()
        with (folder / MANIFEST).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            writer = csv.DictWriter(text, list(reader.fieldnames or ()), lineterminator="\n")
            writer.writeheader()
            for row in reader:
                detail = cards.remove_folders(row["detail"], sources)
                writer.writerow(row | {"source": Path(row["source"]).name, "detail": detail})
        extras[MANIFEST] = text.getvalue().encode()
    if (folder / SHEET).exists():
        extras[SHEET] = folder / SHEET
    return extras


def _change(
    api: HfApi, repo: str, head: str, build: Build, name: str | None, default: str | None, result: dict[str, Any]
) -> Change:
    """Return the change on top of the commit `head`, and add a summary of it to `result`."""
    listed = api.list_repo_tree(repo, recursive=True, revision=head, repo_type="dataset")
    existing = {entry.path: entry for entry in listed if hasattr(entry, "blob_id")}
    script = repo.split("/")[-1] + ".py"
    if script in existing:
        text = f"{repo} has the file {script}, and load_dataset rejects repositories with a script of the same name"
        raise HubError(f"{text}; delete that file on the Hub and push again")
    old_head, old_body = _existing_card(api, repo, head) if "README.md" in existing else ({}, "")
    merged = cards.merge_heads(build.head, old_head, build.place, default, beside=name is not None)
    if name is None:
        body = cards.keep_list(build.body, old_body)
    else:
        old_body = old_body or f"# {merged.get('pretty_name', repo)}\n"
        body = cards.list_build(old_body, name, build.clips, cards.config_names(build.head))
    mine = {**build.shards, **build.extras}
    changed = {
        path: file for path, file in mine.items() if _remote_hash(existing.get(path)) != build.sha256.get(path, "")
    }
    sent = changed.keys() & build.shards.keys()
    deleted = [path for path in existing if path.startswith(build.place + "/") and path not in mine]
    cards.check_head(merged, {*existing, *mine} - set(deleted))
    # Count files of an earlier attempt too: its commit may have succeeded even if the reply was lost.
    sent |= result.get("sent", set())
    result.update(
        sent=sent,
        configs=cards.config_names(merged),
        default=next(config["config_name"] for config in merged["configs"] if config.get("default")),
    )
    card = cards.write_card(merged, body).encode()
    return Change({**changed, "README.md": card}, deleted)


def _existing_card(api: HfApi, repo: str, head: str) -> tuple[dict[str, Any], str]:
    path = api.hf_hub_download(repo, "README.md", revision=head, repo_type="dataset")
    text = Path(path).read_text(encoding="utf-8")
    if not text.startswith("---"):
        return {}, text
    return cards.read_card(text, f"{repo}/README.md")


def _remote_hash(entry: Any) -> str | None:
    return entry.lfs.sha256 if entry is not None and entry.lfs is not None else None


def add_publish(tool: DatasetScript, *, media_may_be_public: bool = True) -> None:
    """Add the verb `publish` to a script of dataset_scripts/."""

    def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
        done = publish(
            args.folder,
            args.repo,
            name=args.name,
            default=args.default,
            private=args.private,
            revision=args.revision,
            media_may_be_public=media_may_be_public,
        )
        say(fields(done))
        return done

    add = tool.verb("publish", "push a built folder to the Hub", run).add_argument
    add("folder", type=Path, help="a built folder")
    add("repo", help="user/name of the dataset on the Hub")
    add("--name", help="name of this build, if the repository has several builds")
    add("--default", metavar="CONFIG", help="configuration that load_dataset uses by default")
    add("--private", action="store_true", default=None, help="push only to a private repository (created if missing)")
    add("--revision", help="branch (default main)")
