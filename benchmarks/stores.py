"""The cost of reading from a store on loopback: S3 clients, the package's reader, and the host's whole loop.

The server is `benchmarks.object_server`; its time isn't counted. The figure is the client's CPU time, as
loopback is no network. Rounds go through all rows in turn, so that other load on the machine affects them
alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median

from benchmarks.bench import fresh
from benchmarks.host import NUM_CORES, TARGET, limited_to, loop_work
from benchmarks.measure import Clock, Work, cpu_seconds
from benchmarks.results import Measured, Record
from benchmarks.settings import Settings
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.types import Shard, ShardEnd

PART = 8 << 20
THREADS = 8
SAMPLE_BYTES = 100_000
"""Bytes of a sample; the target for a GPU is `host.TARGET` of them a second."""
PER_GB, PER_SAMPLE = "CPU s/GB", "CPU us/sample"
NOTE = (
    "Plain HTTP on loopback; CPU time of the reading process, user and system, medians of interleaved "
    "rounds. of_first: the median over the rounds of the ratio to the first row of the same unit. Other work "
    "on the machine (load_average_before) raises CPU time, that of many threads most: the least of the "
    "rounds is nearest to a quiet machine's, and under a high load even ratios differ from run to run by a "
    "third and more. The rate of a network or of a real store is not in it, nor is TLS."
)
Read = Callable[[tuple[int, int]], object]


def obstore_client(endpoint: str) -> Read:
    """obstore, the package's client."""
    import obstore
    from obstore.store import S3Store

    store = S3Store("bucket", endpoint=endpoint, client_options={"allow_http": True})
    return lambda part: obstore.get(store, "a.bin", options={"range": part}).bytes()


def s3fs_client(endpoint: str) -> Read:
    """s3fs, fsspec's client."""
    import s3fs

    system = s3fs.S3FileSystem(endpoint_url=endpoint)
    return lambda part: system.cat_file("bucket/a.bin", start=part[0], end=part[1])


def boto3_client(endpoint: str) -> Read:
    """boto3, Amazon's client."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)

    def read(part: tuple[int, int]) -> object:
        asked = f"bytes={part[0]}-{part[1] - 1}"
        return client.get_object(Bucket="bucket", Key="a.bin", Range=asked)["Body"].read()

    return read


CLIENTS: dict[str, Callable[[str], Read]] = {
    "obstore": obstore_client,
    "boto3": boto3_client,
    "s3fs": s3fs_client,
}


def measure(settings: Settings) -> None:
    """The cost of reading from a store, against a server on loopback."""
    record = settings.record("stores")
    measure_stores(record, settings)
    record.note("complete", True)


def measure_stores(record: Record, settings: Settings) -> None:
    """Rounds over all ways to read, then rounds over the host's loop from a disk and from a store."""
    megabytes, rounds = (60, 2) if settings.quick else (200, 5)
    rounds = settings.repeats or rounds
    record.note("note", NOTE)
    folder = fresh(settings.data / "stores")
    os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_REGION="us-east-1")
    spec, pattern = settings.host_shards()
    (folder / "host").symlink_to(Path(pattern).parent.resolve())
    with server(folder) as url:
        os.environ["AWS_ENDPOINT_URL"] = url
        works = reading_works(record, folder, url, megabytes)
        _add(record, works, rounds, PER_GB)
        links = f"s3://host/bench-{{00000..{spec.num_shards - 1:05d}}}.tar"
        loops = {
            f"host loop, 25% kept, {place}": loop_work(source, folder, 512, 0.25)
            for place, source in (("local disk", pattern), ("s3://", links))
        }
        with limited_to(NUM_CORES) as cores:
            record.note("cores_of_the_loop", cores)
            _add(record, loops, rounds, PER_SAMPLE)
    size = (Path(pattern).parent / "bench-00000.tar").stat().st_size
    record.note("bytes_per_sample_of_the_loop", round(size / spec.distinct))


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server for `folder` in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "benchmarks.object_server", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


def reading_works(record: Record, folder: Path, url: str, megabytes: int) -> dict[str, Work]:
    """All ways to read, by name; their work counts bytes. Clients that aren't installed are skipped."""
    bucket = folder / "bucket"
    bucket.mkdir()
    size = megabytes * 1_000_000
    (bucket / "a.bin").write_bytes(os.urandom(size))
    tar_size = _write_tar(bucket / "a.tar", size // SAMPLE_BYTES)
    works: dict[str, Work] = {}
    for name, make in CLIENTS.items():
        try:
            works[f"{name}, in parts of 8 MiB"] = by_client(make, url, size)
        except ImportError as error:
            record.skip(name, f"not installed ({error})")
    local = str((bucket / "a.tar").resolve())
    for name, source in (
        ("the package: a tar at s3://, read into samples", "s3://bucket/a.tar"),
        ("the package: a local tar as file:///, read in parts", f"file://{local}"),
        ("the package: a local tar", local),
    ):
        works[name] = by_package(source, tar_size)
    return works


def by_client(make: Callable[[str], Read], url: str, size: int) -> Work:
    """Reads the whole object in parts of `PART` bytes, `THREADS` at a time."""
    read = make(url)
    parts = [(start, min(start + PART, size)) for start in range(0, size, PART)]

    def work() -> int:
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(read, parts):
                pass
        return size

    return work


def by_package(source: str, num_bytes: int) -> Work:
    """The package's reader over a tar four times: parts, scan, samples."""
    shards = [Shard(index=index, name=f"{index}", kind="tar", source=source) for index in range(4)]

    def work() -> int:
        for item in read_shards(shards):
            assert not isinstance(item, ShardEnd) or not item.error, item
        return num_bytes * len(shards)

    return work


def _add(record: Record, works: dict[str, Work], rounds: int, unit: str) -> None:
    """Add a row for each work: CPU time by what it counts, bytes or samples."""
    clocks = {name: Clock() for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            cpu, start = cpu_seconds(), time.perf_counter()
            count = work()
            if number:  # the first round warms up
                clocks[name].add(count, time.perf_counter() - start, cpu_seconds() - cpu)
    first = next(iter(clocks.values()))
    for name, clock in clocks.items():
        # Microseconds a byte are 1000 times seconds a gigabyte.
        costs = [1000 * cpu_us for cpu_us in clock.cpu_us] if unit == PER_GB else clock.cpu_us
        ratio = median(own / other for own, other in zip(clock.cpu_us, first.cpu_us, strict=True))
        per_sample_us = median(clock.cpu_us) * (SAMPLE_BYTES if unit == PER_GB else 1)
        detail = {
            "of_first": round(ratio, 3),
            "cores_at_target": round(TARGET * per_sample_us / 1e6, 2),
            "megabytes_per_second" if unit == PER_GB else "samples_per_second": round(
                median(clock.rates) / (1e6 if unit == PER_GB else 1)
            ),
        }
        record.add(Measured(name=name, values=costs, unit=unit, detail=detail))


def _write_tar(path: Path, num_samples: int) -> int:
    image = b"\xff\xd8\xff" + os.urandom(97_000)
    with tarfile.open(path, "w") as tar:
        for index in range(num_samples):
            for suffix, content in (("jpg", image), ("txt", b"caption"), ("json", b'{"caption": "c"}')):
                info = tarfile.TarInfo(f"{index:09d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    return path.stat().st_size
