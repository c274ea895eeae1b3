from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset

from dali_aesthetic.layout import committed_names
from dali_aesthetic.shards import read_shards
from dali_aesthetic.types import ImageHeader, Route, Sample, Shard, ShardEnd, Status
from dali_aesthetic.write.files import OutsideOutput
from dali_aesthetic.write.output import clean_leftovers
from dali_aesthetic.write.sink import ShardSink
from tests.write.scored import GOOD, JPEG, at_least_5, batches, make_tar, run, scored, shard_of, tree


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    return [
        shard_of(make_tar(tmp_path / "in" / f"{n:05d}.tar", (f"{n}-{i:03d}" for i in range(11 + n))), n)
        for n in range(3)
    ]


def entries_of(shard: Shard, keys: list[str]) -> bytes:
    """The bytes of these samples in the input tar, by tarfile's offsets."""
    content = Path(shard.source).read_bytes()
    with tarfile.open(shard.source) as tar:
        infos = list(tar)
    ends = [info.offset for info in infos[1:]] + [infos[-1].offset_data + (infos[-1].size + 511 & -512)]
    return b"".join(
        content[info.offset : end]
        for info, end in zip(infos, ends, strict=True)
        if info.name.split(".")[0] in keys
    )


@pytest.mark.parametrize("size", [1, 5, 12, 1000])
def test_kept_entries_rows_and_reports_whatever_the_batch_size(
    tmp_path: Path, shards: list[Shard], size: int
) -> None:
    out = tmp_path / "out"
    reports = run(out, shards, size)
    assert [report.name for report in reports] == ["00000", "00001", "00002"]
    for n, (shard, report) in enumerate(zip(shards, reports, strict=True)):
        keys = [f"{n}-{i:03d}" for i in range(11 + n)]
        kept = [key for key in keys if int(key[-1]) >= 5]
        content = (out / "shards" / f"{shard.name}.tar").read_bytes()
        assert content == entries_of(shard, kept) + bytes(1024)
        rows = pq.read_table(out / "scores" / f"{shard.name}.parquet").to_pylist()
        assert [row["key"] for row in rows] == keys
        assert [row["kept"] for row in rows] == [key in kept for key in keys]
        assert [row["aesthetic_score"] for row in rows] == [float(key[-1]) for key in keys]
        assert (report.num_samples, report.num_kept) == (len(keys), len(kept))
        assert report.bytes_kept == len(content) - 1024
        assert report.statuses == {"ok": len(keys)}
        stats = json.loads((out / "stats" / f"{shard.name}.json").read_text())
        assert stats["num_kept"] == len(kept)
        assert set(stats) == set(type(report).__dataclass_fields__)
    assert committed_names(out) == {"00000", "00001", "00002"}


def test_output_is_read_by_tarfile_and_webdataset(tmp_path: Path, shards: list[Shard]) -> None:
    run(tmp_path / "out", shards)
    path = tmp_path / "out" / "shards" / "00002.tar"
    keys = [f"2-{i:03d}" for i in range(13) if i % 10 >= 5]
    found = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == keys
    assert [sample["jpg"] for sample in found] == [JPEG + key.encode() for key in keys]
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"{key}.{suffix}" for key in keys for suffix in ("jpg", "json", "txt")]


def test_bytes_do_not_depend_on_batches_or_on_the_run(tmp_path: Path, shards: list[Shard]) -> None:
    run(tmp_path / "one", shards, 3)
    run(tmp_path / "two", shards, 1000)
    run(tmp_path / "two", shards, 2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 9


def test_a_shard_that_keeps_nothing_and_an_empty_shard_have_all_three_files(tmp_path: Path) -> None:
    none = shard_of(make_tar(tmp_path / "none.tar", ["a1", "a2"]))
    empty = shard_of(make_tar(tmp_path / "empty.tar", []), 1)
    run(tmp_path / "out", [none, empty])
    assert sorted(tree(tmp_path / "out")) == [
        *("scores/empty.parquet", "scores/none.parquet"),
        *("shards/empty.tar", "shards/none.tar", "stats/empty.json", "stats/none.json"),
    ]
    for name, rows in (("none", 2), ("empty", 0)):
        with tarfile.open(tmp_path / "out" / "shards" / f"{name}.tar") as tar:
            assert tar.getnames() == []
        assert pq.read_table(tmp_path / "out" / "scores" / f"{name}.parquet").num_rows == rows


def test_a_failed_shard_leaves_nothing_and_the_others_stand(tmp_path: Path, shards: list[Shard]) -> None:
    with ShardSink(tmp_path / "out", ["v2"], at_least_5) as sink:
        reports = []
        for batch in batches(shards, 4):
            ended = tuple(
                ShardEnd(shard=end.shard, error="lost the disk") if end.shard.index == 1 else end
                for end in batch.encoded.ended
            )
            reports += sink.write(scored(batch.encoded.samples, ended, batch.scores_RH[:, 0].tolist()))
        reports += sink.flush()
    assert [(r.name, r.error) for r in reports] == [("00000", ""), ("00001", "lost the disk"), ("00002", "")]
    assert committed_names(tmp_path / "out") == {"00000", "00002"}
    assert not [name for name in tree(tmp_path / "out") if "00001" in name or ".tmp" in name]


def test_bad_samples_are_rows_with_a_reason_and_never_kept(tmp_path: Path) -> None:
    shard = shard_of(make_tar(tmp_path / "a.tar", ["a8", "b8", "c8", "d8"]))
    items = list(read_shards([shard]))
    samples = [item for item in items if isinstance(item, Sample)]
    ends = tuple(item for item in items if isinstance(item, ShardEnd))
    missing = Sample(
        shard=shard,
        key="b8",
        image=None,
        entries=samples[1].entries,
        source=shard.source,
        offset=9,
        status=Status.MISSING_IMAGE,
        message="no image",
    )
    bad = ImageHeader(
        format="png", width=0, height=0, route=Route.NOBODY, status=Status.UNDECODABLE, message="bad"
    )
    batch = scored(
        (samples[0], missing, samples[2], samples[3]),
        ends,
        [8, 8, 8, float("nan")],
        headers=(GOOD, GOOD, bad, GOOD),
    )
    with ShardSink(tmp_path / "out", ["v2"], at_least_5) as sink:
        (report,) = sink.write(batch) + sink.flush()
    assert report.statuses == {"ok": 2, "undecodable": 1, "missing_image": 1}
    assert report.num_kept == 1
    rows = pq.read_table(tmp_path / "out" / "scores" / "a.parquet").to_pylist()
    assert [(row["status"], row["error_message"], row["kept"]) for row in rows] == [
        ("ok", None, True),
        ("missing_image", "no image", False),
        ("undecodable", "bad", False),
        ("ok", "the model gave no number", False),
    ]
    assert rows[3]["aesthetic_score"] is None
    assert (rows[2]["width"], rows[2]["format"]) == (None, "png")
    assert [row["output_shard"] for row in rows] == ["shards/a.tar", None, None, None]


def test_scores_of_samples_that_are_not_ok_are_not_written(tmp_path: Path) -> None:
    shard = shard_of(make_tar(tmp_path / "a.tar", ["a8"]))
    (sample,) = [item for item in read_shards([shard]) if isinstance(item, Sample)]
    bad = ImageHeader(format="jpeg", width=9, height=9, route=Route.NOBODY, status=Status.TRUNCATED)
    batch = scored((sample,), (ShardEnd(shard=shard),), [8.0], headers=(bad,))
    with ShardSink(tmp_path / "out", ["v2"], at_least_5) as sink:
        sink.write(batch)
    (row,) = pq.read_table(tmp_path / "out" / "scores" / "a.parquet").to_pylist()
    assert row["aesthetic_score"] is None
    assert row["aesthetic_score_01"] is None


def test_damage_and_warnings_of_the_reader_are_committed(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", ["a8", "b8"])
    path.write_bytes(path.read_bytes()[:4800])
    (report,) = run(tmp_path / "out", [shard_of(path)])
    assert report.damage
    assert report.statuses == {"ok": 1, "truncated": 1}
    assert json.loads((tmp_path / "out" / "stats" / "a.json").read_text())["damage"] == report.damage


class Killed(BaseException):
    """Plays a kill: no handler catches it."""


@pytest.mark.parametrize("call", ["replace", "fsync", "writev", "open"])
def test_killed_at_any_step_the_same_command_gives_the_same_bytes(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run(tmp_path / "whole", shards)
    expected = tree(tmp_path / "whole")
    real: Callable[..., object] = getattr(os, call)
    steps = 0
    for stop in range(1000):
        output = tmp_path / f"out{stop}"
        count = 0

        def interrupted(*args: object, last: int = stop, **options: object) -> object:
            nonlocal count
            count += 1
            if count > last:
                raise Killed
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, interrupted)
            try:
                run(output, shards)
            except Killed:
                pass
            else:
                break
        steps += 1
        found = tree(output)
        for name in committed_names(output):
            for path in (f"shards/{name}.tar", f"scores/{name}.parquet", f"stats/{name}.json"):
                assert found[path] == expected[path]
        assert all(found[path] == expected.get(path) for path in found if ".tmp" not in path)
        done = committed_names(output)
        run(output, [shard for shard in shards if shard.name not in done])
        assert tree(output) == expected
    assert steps >= 9


DIE_AT_A_RENAME = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.write.scored import run, shard_of
replace, count = os.replace, 0
def dying(source, target):
    global count
    count += 1
    if count > int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    replace(source, target)
os.replace = dying
run(sys.argv[3], [shard_of(Path(path), n) for n, path in enumerate(sys.argv[4:])])
"""


@pytest.mark.parametrize("renames", [0, 2, 4])
def test_killed_for_good_the_rest_is_cleaned_and_done(
    tmp_path: Path, shards: list[Shard], renames: int
) -> None:
    run(tmp_path / "whole", shards)
    out = tmp_path / "out"
    sources = [shard.source for shard in shards]
    command = [sys.executable, "-c", DIE_AT_A_RENAME, str(Path(__file__).parents[2]), str(renames), str(out)]
    assert subprocess.run([*command, *sources], check=False).returncode == -9
    assert [name for name in tree(out) if ".tmp" in name]
    assert committed_names(out) == ({"00000"} if renames == 4 else set())
    assert clean_leftovers(out) >= 1
    run(out, [shard for shard in shards if shard.name not in committed_names(out)])
    assert tree(out) == tree(tmp_path / "whole")


def test_stats_are_published_last_and_everything_is_synced_first(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    replace, fsync = os.replace, os.fsync

    def note_replace(source: Path, target: Path) -> None:
        steps.append(f"publish {Path(target).suffix}")
        replace(source, target)

    def note_fsync(descriptor: int) -> None:
        steps.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "fsync", note_fsync)
    run(tmp_path / "out", shards[:1])
    assert steps == [
        *["sync folder"] * 4,  # the output and what is in it, as they are made
        *("sync file", "sync file"),
        *("publish .tar", "sync folder", "publish .parquet", "sync folder"),
        *("sync file", "publish .json", "sync folder"),
    ]


@pytest.mark.parametrize("kind", ["tar", "parquet", "json"])
def test_a_full_disk_names_the_file_and_leaves_no_part(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    writev = os.writev
    full = {"tar": "shards", "parquet": "scores", "json": "stats"}[kind]

    def fill(descriptor: int, buffers: list[memoryview]) -> int:
        sync(descriptor)
        return writev(descriptor, buffers)

    def sync(descriptor: int) -> None:
        if f"/{full}/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", fill)
    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="No space left") as error:
        run(tmp_path / "out", shards)
    assert error.value.errno == errno.ENOSPC
    assert str(error.value.filename) == str(tmp_path / "out" / full / f"{shards[0].name}.{kind}")
    assert committed_names(tmp_path / "out") == set()
    assert not [name for name in tree(tmp_path / "out") if ".tmp" in name]


def test_short_writes_are_continued(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", shards)
    monkeypatch.setattr(os, "writev", lambda descriptor, buffers: os.write(descriptor, buffers[0][:777]))
    run(tmp_path / "out", shards)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_nested_names_make_folders(tmp_path: Path) -> None:
    shard = shard_of(make_tar(tmp_path / "x.tar", ["a8"]), name="part-1/b/00000")
    run(tmp_path / "out", [shard])
    assert (tmp_path / "out/shards/part-1/b/00000.tar").is_file()
    assert committed_names(tmp_path / "out") == {"part-1/b/00000"}


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "a//x", "./x", "a/.", "x\n", "a\\x", "", ".."]
)
def test_no_name_leaves_the_output(tmp_path: Path, name: str) -> None:
    path = make_tar(tmp_path / "in/x.tar", ["a8"])
    shard = Shard(index=0, name=name, kind="tar", source=str(path))
    before = tree(tmp_path)
    with pytest.raises(OutsideOutput):
        run(tmp_path / "out", [shard])
    assert tree(tmp_path) == before


def test_a_linked_folder_in_the_output_is_not_followed_out(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in/x.tar", ["a8"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "shards").mkdir(parents=True)
    (tmp_path / "out" / "shards" / "part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutsideOutput, match="link"):
        run(tmp_path / "out", [shard_of(path, name="part/x")])
    assert tree(tmp_path / "elsewhere") == {}


def test_a_linked_shards_folder_is_the_users_choice(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in/x.tar", ["a8"])
    (tmp_path / "big_disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shards").symlink_to(tmp_path / "big_disk")
    run(tmp_path / "out", [shard_of(path)])
    assert (tmp_path / "big_disk" / "x.tar").is_file()


def test_a_sink_needs_heads_with_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head_names"):
        ShardSink(tmp_path / "out", [], at_least_5)
    with pytest.raises(ValueError, match="two heads"):
        ShardSink(tmp_path / "out", ["a", "b", "b"], at_least_5)
