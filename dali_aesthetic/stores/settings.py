"""How a command was told to reach its stores, for its workers on other machines.

A worker of a cluster has the environment in which its node was started, not that of the command.
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
"""AWS_CONFIG_FILE and others that name a file stay behind: it is not there elsewhere."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Environment variables and fsspec's configuration. Secrets: kept out of `repr`, and so of logs."""

    environment: dict[str, str] = field(default_factory=dict, repr=False)
    fsspec: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def here(cls) -> StoreSettings:
        """Those of this process."""
        names = [*_IDENTITY, *_NAMES, *(name for name in os.environ if name.startswith(_PREFIX))]
        return cls(
            {name: os.environ[name] for name in names if name in os.environ}, deepcopy(fsspec.config.conf)
        )

    def take_over(self) -> None:
        """Make them this process's own, before its first store is opened. What they don't name stays."""
        if _IDENTITY[0] in self.environment:  # half of one identity and half of another is none
            for name in _IDENTITY:
                os.environ.pop(name, None)
        os.environ.update(self.environment)
        for protocol, settings in self.fsspec.items():
            fsspec.config.conf[protocol] = deepcopy(settings)
