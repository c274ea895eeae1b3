"""The S3 server of every test here."""

from tests.stores.fixtures import bucket, s3_server

__all__ = ["bucket", "s3_server"]
