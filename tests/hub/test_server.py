"""The test Hub against the real clients: what huggingface_hub, datasets, transformers and evaluate ask of it."""

from __future__ import annotations

import http.client
import json
import threading

import pytest

from .faults import CutAnswer, CutRequest, RacingCommit, Refuse, Slow
from .store import HubError, check_path


PRELUDE = """
import os, sys, time
from huggingface_hub import *
from huggingface_hub.errors import *
USER = os.environ["USER"]
api = HfApi()

def raises(kind, call, status=None):
    try:
        call()
    except kind as error:
        assert status is None or error.response.status_code == status, error
        return error
    raise AssertionError(f"{kind} not raised")
"""


def snippet(code: str) -> str:
    lines = code.split("\n")
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return PRELUDE + "\n".join(line[indent:] for line in lines)


def connect(hub) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=20)


def test_push_pull_and_history(hub, run_client, tmp_path):
    run_client(
        snippet("""
        from pathlib import Path
        folder = Path("folder"); (folder / "sub").mkdir(parents=True)
        big = os.urandom(11_000_000)
        (folder / "model.safetensors").write_bytes(big)
        (folder / "config.json").write_text("{}")
        (folder / "large.txt").write_bytes(b"a" * 10_000_001)
        (folder / "sub" / "empty.bin").write_bytes(b"")
        (folder / "sub" / "naïve name.txt").write_text("odd name")
        card = "---\\npipeline_tag: video-classification\\ntags:\\n- audio\\n- video\\n---\\n# x"
        (folder / "README.md").write_text(card)
        repo = f"{USER}/tower"
        assert api.whoami()["name"] == USER
        url = api.create_repo(repo)
        assert str(api.create_repo(repo, exist_ok=True)) == str(url) and url.repo_id == repo
        raises(HfHubHTTPError, lambda: api.create_repo(repo), 409)
        first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="First").oid
        api.create_branch(repo, branch="dev/2")
        api.create_tag(repo, tag="v1", revision=first)
        raises(HfHubHTTPError, lambda: api.create_branch(repo, branch="dev/2"), 409)
        raises(HfHubHTTPError, lambda: api.create_tag(repo, tag="v1"), 409)
        second = api.upload_file(repo_id=repo, path_or_fileobj=b"two", path_in_repo="config.json").oid
        api.upload_file(repo_id=repo, path_or_fileobj=b"dev", path_in_repo="config.json", revision="dev/2")

        refs = api.list_repo_refs(repo, include_pull_requests=True)
        assert {ref.name for ref in refs.branches} == {"main", "dev/2"} and refs.tags[0].target_commit == first
        titles = [commit.title for commit in api.list_repo_commits(repo)]
        assert titles[1:] == ["First", "initial commit"], titles
        info = api.model_info(repo, files_metadata=True)
        assert info.sha == second and info.pipeline_tag == "video-classification" and info.tags == ["audio", "video"]
        sizes = {file.rfilename: (file.size, file.lfs is not None) for file in info.siblings}
        assert sizes["model.safetensors"] == (11_000_000, True) and sizes["large.txt"] == (10_000_001, True)
        assert sizes["sub/empty.bin"] == (0, False) and sizes["config.json"] == (3, False)
        for revision, config in ((None, "two"), ("v1", "{}"), (first, "{}"), ("dev/2", "dev"), ("main", "two")):
            got = Path(snapshot_download(repo, revision=revision))
            assert (got / "config.json").read_text() == config, revision
            assert (got / "model.safetensors").read_bytes() == big
            assert (got / "sub" / "naïve name.txt").read_text() == "odd name"
        assert [repo.id for repo in api.list_models(author=USER)] == [repo]
        api.auth_check(repo)

        addition = CommitOperationAdd("pr.txt", b"pr")
        request = api.create_commit(repo, [addition], commit_message="Please", create_pr=True)
        assert request.pr_revision == "refs/pr/1" and not api.file_exists(repo, "pr.txt")
        assert Path(hf_hub_download(repo, "pr.txt", revision="refs/pr/1")).read_text() == "pr"
        api.create_commit(repo, commit_message="Move and delete", operations=[
            CommitOperationCopy("model.safetensors", "weights/a.safetensors"),
            CommitOperationCopy("config.json", "weights/config.json"),
            CommitOperationDelete("model.safetensors"), CommitOperationDelete("sub/")])
        left = api.list_repo_files(repo)
        assert sorted(left) == [
            ".gitattributes", "README.md", "config.json", "large.txt", "weights/a.safetensors", "weights/config.json"]
        raises(EntryNotFoundError, lambda: api.delete_file("absent.txt", repo))
        api.delete_branch(repo, branch="dev/2"); api.delete_tag(repo, tag="v1")
        raises(RevisionNotFoundError, lambda: api.model_info(repo, revision="dev/2"))
        api.delete_repo(repo); assert not api.repo_exists(repo)
        """)
    )
    assert hub.log.received("lfs_upload") == 21_000_001  # each content once, though five snapshots and a copy held it
    assert "none" not in hub.log.by_route(), hub.log.select(status=404)


def test_only_what_changed_is_uploaded_again(hub, run_client):
    code = snippet("""
        from pathlib import Path
        folder = Path("folder"); folder.mkdir()
        (folder / "a.safetensors").write_bytes(b"a" * 3_000_000)
        (folder / "b.safetensors").write_bytes(sys.argv[1].encode() * 2_000_000)
        (folder / "config.json").write_text("{}")
        api.create_repo(f"{USER}/x", exist_ok=True)
        print(api.upload_folder(repo_id=f"{USER}/x", folder_path=folder).oid)
    """)
    first = run_client(code, args=["b"]).stdout
    assert hub.log.received("lfs_upload") == 5_000_000
    hub.log.clear()
    assert run_client(code, args=["b"]).stdout == first
    assert hub.log.count("lfs_upload") == hub.log.count("commit") == 0
    run_client(code, args=["c"])
    assert hub.log.received("lfs_upload") == 2_000_000 and hub.log.received("commit") < 1000
    # another repository does not get these contents for free
    run_client(code.replace("/x", "/y"), args=["c"])
    assert hub.log.received("lfs_upload") == 2_000_000 + 5_000_000


def test_rights_and_error_mapping(hub, hub_server, run_client):
    other = hub_server.add_account("somebody")
    code = snippet("""
        mine, read_token, other_token = f"{USER}/secret", sys.argv[1], sys.argv[2]
        api.create_repo(mine, private=True)
        api.upload_file(repo_id=mine, path_or_fileobj=b"hush", path_in_repo="a.txt")
        assert open(hf_hub_download(mine, "a.txt")).read() == "hush"
        assert open(hf_hub_download(mine, "a.txt", token=read_token, force_download=True)).read() == "hush"
        def get(filename="a.txt", revision=None, token=None):
            return lambda: get_hf_file_metadata(hf_hub_url(mine, filename, revision=revision), token=token)
        get(token=read_token)()
        raises(RepositoryNotFoundError, get(token=False), 401)
        raises(RepositoryNotFoundError, get(token=other_token), 404)
        raises(RepositoryNotFoundError, lambda: api.model_info(f"{USER}/absent"), 404)
        raises(RepositoryNotFoundError, lambda: api.model_info("no-namespace"), 404)
        raises(RepositoryNotFoundError, lambda: hf_hub_download("no-namespace", "a.txt"), 404)
        raises(RevisionNotFoundError, get(revision="absent"), 404)
        raises(EntryNotFoundError, get(filename="absent.txt"), 404)
        error = raises(HfHubHTTPError, get(token="hf_wrong"), 401)
        assert "Invalid credentials" in str(error) and "hf_wrong" not in str(error)
        put = lambda token: lambda: api.upload_file(repo_id=mine, path_or_fileobj=b"x", path_in_repo="b", token=token)
        raises(HfHubHTTPError, put(read_token), 403)
        raises(HfHubHTTPError, lambda: api.create_repo("somebody/x"), 403)
        raises(HfHubHTTPError, lambda: api.create_repo(f"{USER}/x", token=read_token), 403)
        raises(HfHubHTTPError, lambda: api.create_repo(f"{USER}/x", token=False), 401)
        card = lambda text: lambda: api.upload_file(repo_id=mine, path_or_fileobj=text, path_in_repo="README.md")
        raises(ValueError, card(b"---\\ntags: [a\\n# not closed"))
        assert len(list(api.list_models(author=USER))) == 1 and not list(api.list_models(author=USER, token=False))
        stale = api.model_info(mine).sha
        api.upload_file(repo_id=mine, path_or_fileobj=b"1", path_in_repo="c.txt")
        later = lambda: api.upload_file(repo_id=mine, path_or_fileobj=b"2", path_in_repo="c.txt", parent_commit=stale)
        raises(HfHubHTTPError, later, 412)
        raises(HfHubHTTPError, lambda: api.upload_file(
            repo_id=mine, path_or_fileobj=b"2", path_in_repo="d.txt", revision=stale), 400)
        api.update_repo_settings(mine, private=False)
        hf_hub_download(mine, "a.txt", token=False, force_download=True)
    """)
    run_client(code, args=[hub.account.read_token, other.token])


def test_paging_paths_info_and_file_system(hub, run_client):
    files = {f"data/{n:02d}/part.txt": f"part {n}".encode() for n in range(9)} | {"top.bin": bytes(range(256)) * 40}
    hub.server.seed("datasets", f"{hub.user}/many", files)
    hub.server.page_size = 4
    run_client(
        snippet("""
        repo = f"{USER}/many"
        names = api.list_repo_files(repo, repo_type="dataset")
        assert len(names) == 11 and names == sorted(names), names
        expanded = list(api.list_repo_tree(repo, recursive=True, expand=True, repo_type="dataset"))
        assert len(expanded) == 21 and all(entry.last_commit.title for entry in expanded)
        api.upload_file(repo_id=repo, path_or_fileobj=b"new", path_in_repo="data/03/new.txt", repo_type="dataset",
                        commit_message="Newer")
        rows = api.get_paths_info(repo, ["data/03", "data/04/part.txt", "absent"], expand=True, repo_type="dataset")
        assert [(row.path, row.last_commit.title) for row in rows] == [
            ("data/03", "Newer"), ("data/04/part.txt", "Seeded")]
        raises(EntryNotFoundError, lambda: list(api.list_repo_tree(repo, "absent", repo_type="dataset")))

        fs, root = HfFileSystem(), f"datasets/{repo}"
        assert len(fs.glob(f"{root}/data/*/part.txt")) == 9
        assert fs.cat(f"{root}/data/03/new.txt") == b"new" and fs.isdir(f"{root}/data") and not fs.exists(f"{root}/x")
        whole = bytes(range(256)) * 40
        with fs.open(f"{root}/top.bin", block_size=1000) as file:
            file.seek(10_000)
            assert file.read(100) == whole[10_000:10_100]
            file.seek(-40, 2)
            assert file.read() == whole[-40:]
        with fs.open(f"{root}/top.bin", block_size=0) as stream:
            assert stream.read() == whole
        with fs.open(f"{root}/written.txt", "w") as file:
            file.write("through the file system")
        fs.mv(f"{root}/written.txt", f"{root}/moved.txt")
        assert fs.cat(f"{root}/moved.txt") == b"through the file system" and not fs.exists(f"{root}/written.txt")
        """)
    )
    assert hub.log.count("tree", path="cursor=8") >= 1
    parts = hub.log.select("resolve", status=206)
    assert parts and all(record.sent < 10_240 for record in parts)


def test_ranges_head_and_keep_alive(hub):
    """Straight from the protocol, on one connection."""
    hub.server.seed("models", f"{hub.user}/r", {"a.bin": b"0123456789", "empty": b""})
    connection = connect(hub)
    opened = set()

    def ask(path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        opened.add(connection.sock.getsockname())
        return answer, body

    path = f"/{hub.user}/r/resolve/main/a.bin"
    wanted = {
        "bytes=2-4": (206, b"234"),
        "bytes=7-": (206, b"789"),
        "bytes=-3": (206, b"789"),
        "bytes=8-100": (206, b"89"),
        "bytes=-100": (206, b"0123456789"),
        "bytes=4-2": (200, b"0123456789"),
        "bytes=0-1,4-5": (200, b"0123456789"),
    }
    for header, (status, body) in wanted.items():
        answer, got = ask(path, Range=header)
        assert (answer.status, got) == (status, body), header
    answer, _ = ask(path, Range="bytes=10-")
    assert answer.status == 416 and answer.headers["Content-Range"] == "bytes */10"
    answer, got = ask(path, "HEAD", Range="bytes=2-4")
    assert (answer.status, got, answer.headers["Content-Length"]) == (200, b"", "10")
    assert len(answer.headers["X-Repo-Commit"]) == 40 and answer.headers["ETag"]
    assert ask(f"/{hub.user}/r/resolve/main/empty", Range="bytes=0-")[0].status == 416
    assert ask(f"/{hub.user}/r/resolve/refs%2Fheads%2Fmain/a.bin")[1] == b"0123456789"
    answer, body = ask("/api/nothing/here")
    assert answer.status == 404 and b"No such route" in body
    # a refused request whose body nobody reads must not disturb the next one on the connection
    connection.request("POST", "/api/repos/create", body=b"x" * 300_000)
    answer = connection.getresponse()
    assert answer.status == 401 and answer.read()
    assert ask(path)[1] == b"0123456789"
    connection.request("PUT", "/lfs-upload/forged", body=iter([b"abc", b"def"]), encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 403 and answer.read()
    assert ask(path)[1] == b"0123456789"
    assert len(opened) == 1, "the connection was not kept"


@pytest.mark.parametrize(
    "path", ["../up", "a/../b", "/abs", "a//b", "a/./b", ".git/config", "a\\b", "C:/x", "a/\x00", "", "a/"]
)
def test_paths_that_escape_are_refused(path):
    with pytest.raises(HubError):
        check_path(path)


def test_hostile_names_reach_neither_store_nor_client(hub, run_client, tmp_path):
    hub.server.seed("models", f"{hub.user}/evil", {"../../../../escaped.txt": b"out", "ok.txt": b"in"})
    connection = connect(hub)
    for path in ("../x", "a/../../x"):
        lines = [{"key": "header", "value": {"summary": "s"}}, {"key": "file", "value": {"path": path, "content": ""}}]
        body = "\n".join(map(json.dumps, lines))
        headers = {"Authorization": f"Bearer {hub.token}"}
        connection.request("POST", f"/api/models/{hub.user}/evil/commit/main", body=body, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 400 and b"Invalid file path" in answer.read()
    connection.request("GET", f"/{hub.user}/evil/resolve/main/..%2F..%2F..%2Fetc%2Fpasswd")
    assert connection.getresponse().status == 404
    code = snippet('raises(Exception, lambda: snapshot_download(f"{USER}/evil"))')
    run_client(code, home=tmp_path / "a" / "b" / "home")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_faults_that_clients_survive(hub, run_client):
    """Each is retried by huggingface_hub; the waits (1 s each) run in parallel threads."""
    sizes = {"a": 11_000_000, "b": 100_000, "c": 100_000, "d": 100_000}
    hub.server.seed("models", f"{hub.user}/f", {f"{name}.bin": name.encode() * size for name, size in sizes.items()})
    at = f"/{hub.user}/f/resolve/main"
    cut = CutAnswer(path=f"{at}/a.bin", method="GET", after_bytes=10_900_000)
    late = Slow(path=f"{at}/c.bin", seconds=0.5)
    dropped = CutAnswer(path=f"{at}/b.bin", method="GET")
    drip = Slow(path=f"{at}/d.bin", method="GET", bytes_per_second=200_000)
    upload_500 = Refuse(path="/lfs-upload/", method="PUT")
    short = CutRequest(path="/lfs-upload/", after_bytes=70_000, skip=1)
    hub.fail(cut, dropped, late, drip, upload_500, short)
    run_client(
        snippet("""
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        def download(name):
            start = time.perf_counter()
            data = Path(hf_hub_download(f"{USER}/f", f"{name}.bin")).read_bytes()
            assert data == name.encode() * (11_000_000 if name == "a" else 100_000)
            return time.perf_counter() - start
        def upload():
            api.create_repo(f"{USER}/up")
            api.upload_file(repo_id=f"{USER}/up", path_or_fileobj=b"u" * 3_000_000, path_in_repo="u.bin")
        with ThreadPoolExecutor(5) as pool:
            push = pool.submit(upload)
            spent = dict(zip("abcd", pool.map(download, "abcd")))
            push.result()
        assert spent["c"] > 0.5 and spent["d"] > 0.4, spent
        assert open(hf_hub_download(f"{USER}/up", "u.bin"), "rb").read() == b"u" * 3_000_000
        """)
    )
    assert [fault.hits for fault in (cut, dropped, late, drip, upload_500, short)] == [1] * 6
    resumed = hub.log.select("resolve", method="GET", path="a.bin")
    assert [record.range for record in resumed] == [None, "bytes=10485760-"]  # it keeps what came in 10 MiB pieces
    assert resumed[0].sent == 10_900_000 and resumed[1].sent == 11_000_000 - 10_485_760
    uploads = hub.log.select("lfs_upload")
    assert [record.status for record in uploads] == [500, None, 200]
    assert 70_000 <= uploads[1].received < 3_000_000


def test_faults_that_clients_report(hub, run_client):
    hub.fail(
        Refuse(path="/api/models/[^/]+/full/commit", status=507, message="No space left on the server"),
        CutAnswer(path="/lost/commit/main"),
        RacingCommit(path="/raced/commit/main", times=1),
        Refuse(path="/limited$", status=429, headers={"Retry-After": "0"}),
    )
    hub.server.seed("models", f"{hub.user}/limited", {})
    run_client(
        snippet("""
        def push(name, **options):
            repo = f"{USER}/{name}"
            api.create_repo(repo, exist_ok=True)
            parent = api.model_info(repo).sha if options.pop("parent", False) else None
            return api.upload_file(repo_id=repo, path_or_fileobj=b"x", path_in_repo="x.txt", parent_commit=parent)
        assert "No space left" in str(raises(HfHubHTTPError, lambda: push("full"), 507))
        assert not api.file_exists(f"{USER}/full", "x.txt")
        push("full")
        raises(Exception, lambda: push("lost"))
        assert api.file_exists(f"{USER}/lost", "x.txt")  # it took effect though its answer was lost
        raises(HfHubHTTPError, lambda: push("raced", parent=True), 412)
        push("raced", parent=True)
        assert [c.title for c in api.list_repo_commits(f"{USER}/raced")][1] == "A commit that came first"
        raises(HfHubHTTPError, lambda: api.model_info(f"{USER}/limited"), 429)
        assert api.model_info(f"{USER}/limited").id
        """)
    )


def test_wrong_contents_and_forged_uploads_are_refused(hub):
    connection = connect(hub)
    headers = {"Authorization": f"Bearer {hub.token}", "Content-Type": "application/json"}

    def post(path: str, body: object, method: str = "POST") -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, body=data, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")

    oid = "ab" * 32
    post("/api/repos/create", {"name": "w", "visibility": "public"})
    status, batch = post(f"/{hub.user}/w.git/info/lfs/objects/batch", {"objects": [{"oid": oid, "size": 3}]})
    actions = batch["objects"][0]["actions"]
    assert post(actions["upload"]["href"], b"abc", "PUT")[0] == 400
    assert post(actions["verify"]["href"], {"oid": oid, "size": 3})[0] == 404
    lines = [
        {"key": "header", "value": {"summary": "s"}},
        {"key": "file", "value": {"path": "good.txt", "content": "", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": oid, "size": 3}},
    ]
    status, answer = post(f"/api/models/{hub.user}/w/commit/main", "\n".join(map(json.dumps, lines)).encode())
    assert status == 400 and "not uploaded" in answer["error"]
    assert list(hub.server.store.repos["models", f"{hub.user}/w"].resolve("main").files) == [".gitattributes"]


def test_commits_at_the_same_time_all_stand(hub):
    repo = hub.server.seed("models", f"{hub.user}/t", {})
    statuses = []

    def push(n: int) -> None:
        value = {"path": f"{n}.txt", "content": "eA==", "encoding": "base64"}
        lines = [{"key": "header", "value": {"summary": str(n)}}, {"key": "file", "value": value}]
        connection = connect(hub)
        headers = {"Authorization": f"Bearer {hub.token}"}
        path = f"/api/models/{hub.user}/t/commit/main"
        connection.request("POST", path, body="\n".join(map(json.dumps, lines)), headers=headers)
        statuses.append(connection.getresponse().status)

    threads = [threading.Thread(target=push, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 24
    assert len(repo.resolve("main").files) == 25 and len(list(repo.history(repo.resolve("main")))) == 26


def test_modules_can_be_hidden_from_a_client(hub, run_client):
    code = "import importlib.util, sys\nsys.exit(importlib.util.find_spec('json') is not None)"
    assert run_client(code, check=False).returncode == 1
    assert run_client(code, without=["json"], check=False).returncode == 0
    with pytest.raises(AssertionError, match="(?s)exit status 3.*said before.*create_repo 200"):
        run_client(snippet("print('said before'); api.create_repo(f'{USER}/q'); sys.exit(3)"))
