"""Secrets are removed from text whatever their format, and nothing else is."""

from __future__ import annotations

import pytest

from hf_mmbalance.scrubbing import REMOVED, find_secret, scrub, scrub_all


HUB = "hf_" + "aBcD3fGh" * 4 + "xy"
GITHUB = "ghp_" + "aBcD3fGh" * 4 + "wxyz"
AWS = "AKIA" + "IOSFODNN7EXAMPLE"


@pytest.fixture(autouse=True)
def no_secret_variables(monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"401 for {HUB}", HUB),
        (f"Authorization: Bearer {HUB}", HUB),
        ("header Bearer something-else'", "something-else"),
        (f"https://me:{HUB}@hub.example/me/x", HUB),
        ("https://user:passw0rd@hub.example/me/x", "passw0rd"),
        ("api_org_" + "x" * 30, "x" * 30),
        ("hf_oauth_eyJhbGciOiJF.eyJhdWQi-_Ol.x", "eyJhdWQi"),
        (f"git clone with {GITHUB}", GITHUB),
        ("github_pat_" + "1aB" * 10, "1aB" * 10),
        ("glpat-" + "abcDEF12_-" * 2, "abcDEF12"),
        (f"key {AWS}.", AWS),
        ("aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
        ("AIza" + "Sy0_-" * 7, "Sy0_-Sy0"),
        ("xoxb-123456789012-abcdef", "123456789012"),
        ("sk-proj-" + "a1B2" * 10, "a1B2"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP", "dBjftJeZ4CVP"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "MIIE"),
    ],
)
def test_every_format_is_found_and_removed(text: str, secret: str) -> None:
    assert secret in text
    assert REMOVED in scrub(text) and secret not in scrub(text)
    found = find_secret(f"line one\n{text}")
    assert found is not None and found[0] >= len("line one\n")


@pytest.mark.parametrize(
    "text",
    [
        "hf_mmbalance.hub.dataset_push at https://hub.example:80/me/hf_mmbalance-model, mail me@x.example",
        "sha256 68d0d3fd253830328fc92c68f3cf2e215db8c5b86757ad9c5112d2c76ba68bde",
        "token: str | bool | None = None, password=None, sk-learn, task-specific-words-in-a-long-hyphenated-name",
        "accelerate launch train.py --data_dir /data/key --max_tokens 8 --hub_model_id me/model",
        "def f(token): return Bearer",
    ],
)
def test_what_is_not_secret_stays(text: str) -> None:
    assert scrub(text) == text and find_secret(text) is None


def test_options_that_name_a_secret_lose_their_value() -> None:
    line = "train.py --hub_token abcdefgh --api-key=12345678 --password 'a b' --epochs 3"
    assert scrub(line) == (f"train.py --hub_token {REMOVED} --api-key={REMOVED} --password {REMOVED} --epochs 3")


def test_values_of_secret_environment_variables_go_whatever_they_look_like(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "my-own-secret")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "train")
    assert scrub("sent my-own-secret, 0123456789abcdef to train") == f"sent {REMOVED}, {REMOVED} to train"
    assert find_secret("x my-own-secret") == (2, "value of a secret environment variable")


def test_a_whole_report_is_scrubbed() -> None:
    report = {
        "arguments": {"data_dir": "https://user:passw0rd@host/x", "hub_token": "anything", "push_to_hub_token": None},
        "list": [HUB, 1.5, None, {"api_key": "<API_KEY>", "seed": 0}],
    }
    assert scrub_all(report) == {
        "arguments": {"data_dir": f"https://{REMOVED}@host/x", "hub_token": REMOVED, "push_to_hub_token": None},
        "list": [REMOVED, 1.5, None, {"api_key": "<API_KEY>", "seed": 0}],
    }


def test_nothing_is_left_of_a_secret_that_contains_another(monkeypatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "correct-horse")
    monkeypatch.setenv("LONG_TOKEN", "correct-horse-battery")
    assert scrub("say correct-horse-battery") == f"say {REMOVED}"
