"""Many shards in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from dali_aesthetic.shards import InputError, plan_shards
from dali_aesthetic.shards.plan import FileShards
from dali_aesthetic.types import Shard
from dali_aesthetic.write.output import pending_shards

NUM = 20_000


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("list") / "list.txt"
    path.write_text("".join(f"s3://bucket/part-{i // 100:03d}/{i:06d}.tar\n" for i in range(NUM)))
    return path


def test_sources_of_any_bytes_come_back_unchanged() -> None:
    texts = ["", "a", "grün/\u4e2d.tar", "\udcff broken", "a"]
    shards = FileShards(texts, str)
    assert [shard.source for shard in shards] == texts
    assert [shards[index].source for index in range(-5, 5)] == texts * 2
    assert [shard.source for shard in shards[1:4]] == texts[1:4]
    with pytest.raises(IndexError):
        shards[5]


def test_shards_behave_like_a_list_of_shards() -> None:
    shards = FileShards(["x/a.tar", "x/b.tar", "x/c.tar"], lambda source: source[2:-4])
    expected = [
        Shard(index=index, name=name, kind="tar", source=f"x/{name}.tar") for index, name in enumerate("abc")
    ]
    assert list(shards) == expected
    assert shards == expected
    assert shards[-1] == expected[2]
    assert shards[::2] == expected[::2]
    assert shards != expected[:2]
    assert expected[1] in shards


def test_many_shards_take_little_memory(listed: Path) -> None:
    plan_shards(f"@{listed}")  # imports what it needs
    tracemalloc.start()
    shards = plan_shards(f"@{listed}")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 80 * NUM, "a string and a Shard of each would be 400 bytes"
    assert len(shards) == NUM
    assert shards[NUM - 1] == Shard(
        index=NUM - 1,
        name=f"part-{(NUM - 1) // 100:03d}/{NUM - 1:06d}",
        kind="tar",
        source=f"s3://bucket/part-{(NUM - 1) // 100:03d}/{NUM - 1:06d}.tar",
    )


def test_committed_shards_are_left_out_and_the_others_keep_their_index(listed: Path, tmp_path: Path) -> None:
    shards = plan_shards(f"@{listed}")
    (tmp_path / "stats/part-000").mkdir(parents=True)
    for index in (0, 7, 99):
        (tmp_path / f"stats/part-000/{index:06d}.json").touch()
    left = pending_shards(tmp_path, shards)
    assert len(left) == NUM - 3
    assert [shard.index for shard in left[:8]] == [1, 2, 3, 4, 5, 6, 8, 9]
    assert left[0] == shards[1]
    assert left[-1] == shards[-1]


def test_a_repeated_name_among_many_is_found(listed: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(listed.read_text() + "s3://bucket/part-050/005000.tar\n")
    with pytest.raises(InputError, match=r"part-050/005000\.tar is given twice"):
        plan_shards(f"@{tmp_path / 'list.txt'}")
