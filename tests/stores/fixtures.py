"""An S3 server, and the environment that points to it; imported by the conftests that use them."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from dali_aesthetic.stores import open, store
from tests.stores.s3 import ENVIRONMENT, Bucket


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server on loopback."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket, to which this process's S3 settings point."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setattr(store.BACK_OFF, "first", 0.01)
    open._store.cache_clear()
    return Bucket.create(s3_server, f"bucket-{uuid4().hex[:12]}")
