"""Store settings of a command's process, carried to its workers on other machines.

A worker of a cluster has the environment of its node, not that of the command.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import fsspec

_IDENTITY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_NAMES = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    *("AWS_ALLOW_HTTP", "AWS_EC2_METADATA_DISABLED", "AWS_REQUEST_PAYER", "HF_ENDPOINT", "HF_TOKEN"),
    *("GOOGLE_CLOUD_PROJECT", "STORAGE_EMULATOR_HOST"),
)
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
