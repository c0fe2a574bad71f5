"""The clients' errors: their own words stay, one sentence on what to do is added, tokens go."""

from __future__ import annotations

import errno
import traceback

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from hf_mmbalance.hub.errors import HubError, explain_hub_errors

from .faults import Refuse


TOKEN = "hf_" + "aBcD3fGh" * 4 + "xy"


def test_a_full_disk_is_told_through_what_wraps_it():
    with (
        pytest.raises(HubError, match="(?s)loading me/x: could not load.*HF_HOME") as caught,
        explain_hub_errors("loading me/x"),
    ):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as full:
            raise OSError("could not load") from full
    assert isinstance(caught.value.__cause__, OSError)


def test_errors_of_others_pass_as_they_are():
    for error in (ValueError("labels are wrong"), KeyError("x"), ZeroDivisionError()):
        with pytest.raises(type(error)) as caught, explain_hub_errors("loading"):
            raise error
        assert caught.value is error
    with pytest.raises(HubError, match="^ours$"), explain_hub_errors("loading"):
        raise HubError("ours")


def test_no_traceback_shows_a_token():
    for error in (ConnectionError(f"for {TOKEN}"), ValueError(f"about {TOKEN}")):
        with pytest.raises(RuntimeError) as caught, explain_hub_errors("loading"):
            raise RuntimeError("outer") from error
        assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "auth login"), (403, "write access"), (409, "same time"), (429, "wait"), (500, "later"), (507, "no space")],
)
def test_statuses(status: int, advice: str):
    request = httpx2.Request("GET", "https://hub.example/api/models/me/x")
    answer = httpx2.Response(status, request=request)
    with pytest.raises(HubError, match=f"(?s)^pushing: refused\n.*{advice}"), explain_hub_errors("pushing"):
        raise HfHubHTTPError("refused", response=answer)


MODELS = """
import os, sys
from hf_mmbalance.hub import HubError, explain_hub_errors
from transformers import AutoConfig, AutoModel
USER = os.environ["USER"]

def told(call, *words):
    try:
        with explain_hub_errors("loading"):
            call()
    except HubError as error:
        assert all(word in str(error) for word in words), str(error)
        assert str(error).startswith("loading: ") and len(str(error)) > len(str(error.__cause__))
        return
    raise AssertionError(words)

def load(name, **options):
    return lambda: AutoModel.from_pretrained(f"{USER}/{name}", **options)

told(load("absent"), "not a valid model identifier", "user/name")
told(load("weightless", revision="v9"), "not a valid git identifier", "Give a branch, tag or commit that exists")
told(load("weightless"), "does not appear to have", "push again")
told(load("private", token=False), "hf auth login")
told(load("codeless"), "does not recognize this architecture", "its code")
told(load("nothing"), "Unrecognized model", "its code")
told(load("coded", trust_remote_code=False), "trust_remote_code=True", "Read the code")
told(load("broken-code", trust_remote_code=True), "modeling_x.py", "push again")
told(load("newer"), "hidden_size", "pip install -U")
told(load("halved"), "push again")
told(load("closed"), "Not for you", "ask the owner")
"""


@pytest.mark.slow
def test_transformers_errors(hub, run_client):
    vit = b'{"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}'
    code = b'{"model_type": "own", "auto_map": {"AutoConfig": "modeling_x.C", "AutoModel": "modeling_x.M"}}'
    seed = hub.server.seed
    seed("models", f"{hub.user}/weightless", {"config.json": vit})
    seed("models", f"{hub.user}/private", {"config.json": vit}, private=True)
    seed("models", f"{hub.user}/codeless", {"config.json": b'{"model_type": "mmbalance-next"}'})
    seed("models", f"{hub.user}/nothing", {"config.json": b"{}"})
    seed("models", f"{hub.user}/coded", {"config.json": code, "modeling_x.py": b"class C: ...\nclass M: ...\n"})
    seed("models", f"{hub.user}/broken-code", {"config.json": code})
    seed("models", f"{hub.user}/newer", {"config.json": b'{"model_type": "vit", "hidden_size": "wide"}'})
    seed("models", f"{hub.user}/halved", {"config.json": vit, "model.safetensors": b"\x90\x01\0\0\0\0\0\0{"})
    seed("models", f"{hub.user}/closed", {"config.json": vit})
    hub.fail(Refuse(path="/closed/resolve/", times=None, status=403, message="Not for you"))
    done = run_client(MODELS)
    assert hub.token not in done.stdout + done.stderr


DATASETS = """
import os, sys
from hf_mmbalance.hub import HubError, explain_hub_errors
from datasets import load_dataset
USER = os.environ["USER"]

def told(call, *words):
    try:
        with explain_hub_errors("loading"):
            call()
    except HubError as error:
        assert all(word in str(error) for word in words), str(error)
        return
    raise AssertionError(words)

def load(name, *config, **options):
    return lambda: load_dataset(f"{USER}/{name}", *config, **options)

told(load("absent"), "doesn't exist on the Hub", "user/name")
told(load("some", revision="v9"), "Revision 'v9'", "Give a branch, tag or commit that exists")
told(load("private", token=False), "hf auth login")
told(load("some"), "Give one of the configurations")

import errno, huggingface_hub.file_download
def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")
whole, huggingface_hub.file_download.http_get = huggingface_hub.file_download.http_get, full
told(load("some", "a"), "No space left on device", "HF_HOME")
huggingface_hub.file_download.http_get = whole
told(load("gone", "b"), "b.csv", "push again")
told(load("some", "fold9"), "fold9", "Give one of the configurations")
"""


def test_datasets_errors(hub, run_client):
    seed = hub.server.seed
    card = b"---\nconfigs:\n- config_name: a\n  data_files: a.csv\n- config_name: b\n  data_files: b.csv\n---\n"
    seed("datasets", f"{hub.user}/some", {"README.md": card, "a.csv": b"x\n1\n", "b.csv": b"x\n1\n"})
    seed("datasets", f"{hub.user}/private", {"a.csv": b"x\n1\n"}, private=True)
    seed("datasets", f"{hub.user}/gone", {"README.md": card, "a.csv": b"x\n1\n"})
    run_client(DATASETS)
