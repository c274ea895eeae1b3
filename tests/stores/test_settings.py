"""What a command knows of its stores reaches a process that was started without it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import fsspec
import pytest

from dali_aesthetic.stores.settings import StoreSettings
from tests.stores.s3 import ENVIRONMENT, Bucket

ELSEWHERE = """
import pickle, sys
settings = pickle.load(sys.stdin.buffer)
settings.take_over()
from dali_aesthetic.shards.plan import plan_shards
print([shard.source for shard in plan_shards(sys.argv[1])])
"""
SECRETS = {"key": "a-user", "secret": "a-secret"}


def test_a_process_without_any_reads_the_bucket_that_the_command_means(bucket: Bucket) -> None:
    bucket.put("d/a.tar", b"")
    given = pickle.dumps(StoreSettings.here())
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, f"{bucket.url}/d/"],
        input=given,
        env=bare,
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().strip() == str([f"{bucket.url}/d/a.tar"])


def test_an_identity_is_taken_over_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "of another identity")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    StoreSettings({"AWS_ACCESS_KEY_ID": "new", "AWS_SECRET_ACCESS_KEY": "newer"}).take_over()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "new"
    assert "AWS_SESSION_TOKEN" not in os.environ
    assert os.environ["AWS_REGION"] == "eu-west-3", "what isn't named stays"


def test_fsspecs_configuration_comes_along_and_files_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.config, "conf", {"s3": SECRETS})
    for name, value in {**ENVIRONMENT, "AZURE_STORAGE_ACCOUNT_KEY": "hidden"}.items():
        monkeypatch.setenv(name, value)
    settings = StoreSettings.here()
    other: dict[str, Any] = {"s3": {"key": "old"}, "gs": {"project": "p"}}
    monkeypatch.setattr(fsspec.config, "conf", other)
    settings.take_over()
    assert other == {"s3": SECRETS, "gs": {"project": "p"}}
    assert "AWS_CONFIG_FILE" not in settings.environment
    assert settings.environment["AZURE_STORAGE_ACCOUNT_KEY"] == "hidden"


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setattr(fsspec.config, "conf", {"s3": SECRETS})
    assert "a-secret" not in repr(StoreSettings.here())
