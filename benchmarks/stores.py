"""What reading from a store costs, on loopback: clients of S3 side by side, the package's own reader, lists.

`python -m benchmarks.stores [--megabytes 400] [--repeats 3]`. The server is `benchmarks.object_server`, whose
time isn't counted: the figure to look at is the client's CPU time, since the network is no network. A client
that isn't installed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

PART = 8 << 20
THREADS = 8
TARGET_BYTES_PER_SECOND = 6600 * 100_000
"""A GPU's 6,600 samples/s of 100 KB."""
Read = Callable[[tuple[int, int]], object]


def obstore_client(endpoint: str) -> Read:
    """The client in use."""
    import obstore
    from obstore.store import S3Store

    store = S3Store("bucket", endpoint=endpoint, client_options={"allow_http": True})
    return lambda part: obstore.get(store, "a.bin", options={"range": part}).bytes()


def s3fs_client(endpoint: str) -> Read:
    """fsspec's own."""
    import s3fs

    system = s3fs.S3FileSystem(endpoint_url=endpoint)
    return lambda part: system.cat_file("bucket/a.bin", start=part[0], end=part[1])


def boto3_client(endpoint: str) -> Read:
    """Amazon's own."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)

    def read(part: tuple[int, int]) -> object:
        asked = f"bytes={part[0]}-{part[1] - 1}"
        return client.get_object(Bucket="bucket", Key="a.bin", Range=asked)["Body"].read()

    return read


CLIENTS: dict[str, Callable[[str], Read]] = {
    "obstore": obstore_client,
    "s3fs": s3fs_client,
    "boto3": boto3_client,
}


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The loopback store in a process of its own; its URL."""
    command = [sys.executable, "-m", "benchmarks.object_server", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


def measure(read: Callable[[], int]) -> dict[str, float]:
    """Megabytes per second, and CPU seconds of this process for a gigabyte (10^9)."""
    start, cpu = time.perf_counter(), time.process_time()
    num_bytes = read()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {"MB/s": num_bytes / seconds / 1e6, "cpu_s/GB": cpu_seconds / num_bytes * 1e9}


def by_client(make: Callable[[str], Read], url: str, size: int) -> Callable[[], int]:
    """The whole object in parts, several at a time."""
    read = make(url)
    parts = [(start, min(start + PART, size)) for start in range(0, size, PART)]

    def work() -> int:
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(read, parts):
                pass
        return size

    return work


def by_package(source: str, num_bytes: int) -> Callable[[], int]:
    """The package's reader over a tar: parts, scan, samples."""
    from dali_aesthetic.shards.read import read_shards
    from dali_aesthetic.types import Shard, ShardEnd

    shards = [Shard(index=index, name=f"{index}", kind="tar", source=source) for index in range(4)]

    def work() -> int:
        for item in read_shards(shards):
            assert not isinstance(item, ShardEnd) or not item.error, item
        return num_bytes * len(shards)

    return work


def measure_reading(megabytes: int, repeats: int) -> dict[str, dict[str, float]]:
    """Each client in turn, `repeats` times over; medians."""
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as url:
        bucket = Path(name) / "bucket"
        bucket.mkdir()
        (bucket / "a.bin").write_bytes(os.urandom(megabytes * 1_000_000))
        size = _write_tar(bucket / "a.tar", megabytes * 10)
        works: dict[str, Callable[[], int]] = {}
        for client, make in CLIENTS.items():
            try:
                works[client] = by_client(make, url, megabytes * 1_000_000)
            except ImportError:
                continue
        works["package, tar at s3://"] = by_package("s3://bucket/a.tar", size)
        works["package, local tar"] = by_package(str(bucket / "a.tar"), size)
        os.environ["AWS_ENDPOINT_URL"] = url
        found: dict[str, list[dict[str, float]]] = {name: [] for name in works}
        for _ in range(repeats + 1):
            for name, work in works.items():
                found[name].append(measure(work))
    return {name: _summary(runs[1:]) for name, runs in found.items()}


def _summary(runs: list[dict[str, float]]) -> dict[str, float]:
    found = {unit: round(median(run[unit] for run in runs), 3) for unit in runs[0]}
    return found | {"cores_at_target": round(TARGET_BYTES_PER_SECOND / 1e9 * found["cpu_s/GB"], 2)}


def _write_tar(path: Path, num_samples: int) -> int:
    import tarfile
    from io import BytesIO

    image = b"\xff\xd8\xff" + os.urandom(97_000)
    with tarfile.open(path, "w") as tar:
        for index in range(num_samples):
            for suffix, content in (("jpg", image), ("txt", b"caption"), ("json", b'{"caption": "c"}')):
                info = tarfile.TarInfo(f"{index:09d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    return path.stat().st_size


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_REGION="us-east-1")
    print(json.dumps(measure_reading(arguments.megabytes, arguments.repeats), indent=2))


if __name__ == "__main__":
    main()
