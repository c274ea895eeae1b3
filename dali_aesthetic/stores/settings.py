"""Settings of stores: those of a process, carried to its workers on other machines; S3's from all sources.

A worker of a cluster has the environment of its node, not that of the command. S3's settings come from
fsspec's configuration and FSSPEC_S3_…, then AWS_…, then boto3's files and providers."""

from __future__ import annotations

import configparser
import os
import re
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from dali_aesthetic.stores.store import StoreUnusable

_IDENTITY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_NAMES = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    *("AWS_ALLOW_HTTP", "AWS_EC2_METADATA_DISABLED", "AWS_REQUEST_PAYER", "HF_ENDPOINT", "HF_TOKEN"),
    *("GOOGLE_CLOUD_PROJECT", "STORAGE_EMULATOR_HOST"),
)
_ENDPOINT = re.compile(r"https?://[\w.\[\]:-]+(/\S*)?")
_PREFIX = "AZURE_STORAGE_"
"""Variables that name a file, such as AWS_CONFIG_FILE, are not carried: the file is not there."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Environment variables and fsspec's configuration. They hold secrets, so `repr` leaves them out."""

    environment: dict[str, str] = field(default_factory=dict, repr=False)
    fsspec: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def here(cls) -> StoreSettings:
        """The settings of this process."""
        names = [*_IDENTITY, *_NAMES, *(name for name in os.environ if name.startswith(_PREFIX))]
        return cls(
            {name: os.environ[name] for name in names if name in os.environ}, deepcopy(fsspec.config.conf)
        )

    def take_over(self) -> None:
        """Apply them to this process, before its first store is opened. Other settings stay."""
        if _IDENTITY[0] in self.environment:  # never mix parts of two identities
            for name in _IDENTITY:
                os.environ.pop(name, None)
        os.environ.update(self.environment)
        for protocol, settings in self.fsspec.items():
            fsspec.config.conf[protocol] = deepcopy(settings)


_S3FS_NAMES = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "endpoint_url": "endpoint",
    "anon": "skip_signature",
    "requester_pays": "request_payer",
}
_S3FS_CLIENT_NAMES = {
    "endpoint_url": "endpoint",
    "region_name": "region",
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_S3FS_IGNORED = frozenset(
    (
        *("default_block_size", "default_fill_cache", "default_cache_type", "version_aware", "use_ssl"),
        *("cache_regions", "max_concurrency", "fixed_upload_size", "use_listings_cache", "profile"),
        *("client_kwargs", "config_kwargs", "skip_instance_cache", "asynchronous", "protocol"),
    )
)
"""Settings of s3fs without effect on endpoint and identity, and settings that are read elsewhere."""


@dataclass(frozen=True, slots=True)
class S3Options:
    """obstore's settings; `credentials` provides credentials that expire, `source` names their origin."""

    config: dict[str, Any]
    endpoint: str = ""
    credentials: Any = None
    source: str = ""


def s3_options() -> S3Options:
    """The current settings. Raises StoreUnusable for an fsspec setting that would have no effect."""
    given = {**fsspec.config.conf.get("s3a", {}), **fsspec.config.conf.get("s3", {})}
    config = _from_fsspec(given)
    config.setdefault("endpoint", _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    config.setdefault("region", _environment("AWS_REGION", "AWS_DEFAULT_REGION"))
    source, credentials = "FSSPEC_S3_… or fsspec's files", None
    if config.get("skip_signature"):
        source = "nobody (anon)"
    elif "access_key_id" not in config:
        source, credentials = _from_aws(config, str(given.get("profile", "")))
    config = {name: value for name, value in config.items() if value != ""}
    endpoint = str(config.get("endpoint", ""))
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise StoreUnusable(
            f"the endpoint of S3 is {endpoint!r}, which is no URL such as https://HOST:PORT: correct "
            "AWS_ENDPOINT_URL, or endpoint_url in the file that sets it"
        )
    return S3Options(config, endpoint, credentials, source)


def _from_fsspec(given: dict[str, Any]) -> dict[str, Any]:
    client = dict(given.get("client_kwargs", {}))
    s3 = dict(given.get("config_kwargs", {})).get("s3", {})
    unknown = {*given} - {*_S3FS_NAMES} - _S3FS_IGNORED | {
        f"client_kwargs.{x}" for x in {*client} - {*_S3FS_CLIENT_NAMES}
    }
    if unknown:
        raise StoreUnusable(
            f"fsspec's configuration for s3 sets {', '.join(sorted(unknown))}, which would have no effect "
            f"here; known are {', '.join(sorted(_S3FS_NAMES))}, profile, and in client_kwargs "
            f"{', '.join(_S3FS_CLIENT_NAMES)}"
        )
    config = {_S3FS_CLIENT_NAMES[name]: value for name, value in client.items()}
    config |= {_S3FS_NAMES[name]: value for name, value in given.items() if name in _S3FS_NAMES}
    for flag in ("skip_signature", "request_payer"):
        if flag in config:
            config[flag] = str(config[flag]).lower() in ("1", "true", "yes", "on")
    if s3.get("addressing_style") == "virtual":
        config["virtual_hosted_style_request"] = True
    return config


def _from_aws(config: dict[str, Any], profile: str) -> tuple[str, Any]:
    """Fills in what the AWS tools would take; the credentials' source and provider (None: obstore's own)."""
    if os.environ.get("AWS_ACCESS_KEY_ID") and not profile:
        return "AWS_ACCESS_KEY_ID", None
    files = [os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")]
    files += [os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")]
    there = [path for path in files if Path(path).expanduser().is_file()]
    try:
        return _from_boto3(config, profile, there)
    except ImportError as error:
        if profile or os.environ.get("AWS_PROFILE"):
            raise StoreUnusable(
                f"an AWS profile needs boto3 ({error}): in the clone, pip install '.[s3]'"
            ) from error
        return "the machine's role", None


def _from_boto3(config: dict[str, Any], profile: str, files: list[str]) -> tuple[str, Any]:
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session(profile_name=profile or None)
        found = session.get_credentials()
    except BotoCoreError as error:
        raise StoreUnusable(f"the AWS configuration can't be used: {error}") from error
    config["region"] = config.get("region") or session.region_name or ""
    config["endpoint"] = config.get("endpoint") or _endpoint_of(session.profile_name, files)
    if found is None:
        config["skip_signature"] = True
        return "nobody (no AWS credentials were found)", None
    return f"boto3 ({found.method})", Boto3CredentialProvider(session)


def _endpoint_of(profile: str, files: list[str]) -> str:
    """`endpoint_url` of the profile in the AWS configuration file."""
    parser = configparser.RawConfigParser()
    parser.read([Path(path).expanduser() for path in files])
    for section in (f"profile {profile}", profile):
        if parser.has_option(section, "endpoint_url"):
            return parser.get(section, "endpoint_url").strip()
    return ""


def _environment(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
