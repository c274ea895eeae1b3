"""How S3 is reached: fsspec's configuration, environment, profiles; and what is said where it can't be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.shards.plan import InputError, plan_shards
from dali_aesthetic.stores import open
from dali_aesthetic.stores.access import read_bytes
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.settings import s3_options
from dali_aesthetic.stores.store import StoreUnusable
from tests.stores.s3 import ENVIRONMENT, Bucket


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    monkeypatch.setattr(fsspec.config, "conf", {})
    open._store.cache_clear()


def test_fsspecs_configuration_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://from-environment")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    conf = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "http://from-fsspec"}}
    monkeypatch.setattr(fsspec.config, "conf", {"s3": conf})
    options = s3_options()
    assert options.config == {
        "access_key_id": "k",
        "secret_access_key": "s",
        "endpoint": "http://from-fsspec",
        "region": "eu-west-1",
    }
    assert options.endpoint == "http://from-fsspec"


def test_fsspecs_environment_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    conf: dict[str, Any] = {}
    fsspec.config.set_conf_env(
        conf, {"FSSPEC_S3_ANON": "true", "FSSPEC_S3_ENDPOINT_URL": "http://minio:9000"}
    )
    monkeypatch.setattr(fsspec.config, "conf", conf)
    assert s3_options().config == {"skip_signature": True, "endpoint": "http://minio:9000"}


def test_a_setting_without_effect_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fsspec.config, "conf", {"s3": {"acl": "public-read", "client_kwargs": {"verify": "x"}}}
    )
    with pytest.raises(StoreUnusable, match=r"acl, client_kwargs\.verify, which would have no") as error:
        s3_options()
    assert "known are anon, endpoint_url, key, requester_pays" in str(error.value)


def test_a_profile_gives_credentials_region_and_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: Bucket
) -> None:
    bucket.put("a", b"content")
    config = tmp_path / "config"
    config.write_text(
        f"[profile cluster]\nregion = us-east-1\nendpoint_url = {bucket.endpoint}\n"
        "aws_access_key_id = test\naws_secret_access_key = test\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "cluster")
    open._store.cache_clear()
    assert read_bytes(f"{bucket.url}/a") == b"content"


def test_an_unknown_profile_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreUnusable, match="nobody"):
        s3_options()


@pytest.mark.parametrize("endpoint", ["minio:9000", "notaurl", "http://", "http://a b/", "ftp://x"])
def test_an_endpoint_that_is_no_url_is_an_error(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The client would end the process."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreUnusable, match=r"is no URL.*AWS_ENDPOINT_URL"):
        s3_options()


@pytest.mark.parametrize(
    "url", ["s3:///out", "s3://", "s3://a b/x", "s3://$BUCKET/x", "http:///a.tar", "http://h:99999/a.tar"]
)
def test_a_place_that_no_bucket_or_server_can_have_is_an_error(url: str) -> None:
    """`s3://$BUCKET/out` with an unset variable, for example. The client would end the process, or ask."""
    scheme = url.partition("://")[0]
    with pytest.raises(StoreUnusable, match=rf"{scheme}://.*(is no bucket or server|invalid port)"):
        store_of(url)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("s3://bucket/a/", "obstore", "s3"),
        ("https://host/a/", "obstore", "http"),
        ("gs://bucket/a/", "gcsfs", "gcs"),
        ("az://container/a/", "adlfs", "azure"),
    ],
)
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what `import` makes of it is an ImportError
    monkeypatch.delitem(sys.modules, "dali_aesthetic.stores.objects", raising=False)
    monkeypatch.delattr("dali_aesthetic.stores.objects", raising=False)
    for scheme in ("gs", "gcs", "az"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(InputError, match=rf"pip install '\.\[{extra}\]'"):
        plan_shards(url)


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(InputError, match="nowhere://"):
        plan_shards("nowhere://bucket/a/")


def test_an_output_is_a_place_that_can_be_written() -> None:
    with pytest.raises(ConfigError, match="a web server takes no output"):
        Config.build({"input": "a.tar", "output": "https://host/out"})
    # As a file system it commits by renaming, which fsspec's copy would not.
    assert Config.build({"input": "a.tar", "output": "file:///kept/out"}).output == "/kept/out"
