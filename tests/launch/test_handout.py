"""Who does which shard: as asked, alone where a worker died over it, given up at the third time."""

from __future__ import annotations

from dali_aesthetic.launch.node.crew import Handout
from dali_aesthetic.types import Shard, ShardReport


def shards(count: int) -> list[Shard]:
    return [Shard(index=i, name=f"{i}", kind="tar", source=f"{i}.tar") for i in range(count)]


def name(shard: Shard | None) -> str | None:
    return shard and shard.name


def done(handout: Handout, worker: str, shard: str) -> None:
    handout.done(worker, ShardReport(name=shard, source=""))


def test_shards_go_to_whoever_asks_and_end() -> None:
    handout = Handout(shards(3))
    assert (name(handout.first("a")), name(handout.first("b")), name(handout.next("a"))) == ("0", "1", "2")
    assert handout.next("b") is None
    for worker, shard in (("a", "0"), ("b", "1")):
        done(handout, worker, shard)
    assert not handout.finished
    done(handout, "a", "2")
    assert handout.finished
    assert handout.first("a") is None


def test_what_was_open_in_a_dead_worker_is_done_again_each_alone() -> None:
    handout = Handout(shards(4))
    handout.first("a")
    handout.next("a")
    assert handout.died("a", "by SIGKILL") == ([], 2)
    assert name(handout.first("a")) == "0"
    assert handout.next("a") is None, "a suspect has a stream of its own"
    done(handout, "a", "0")
    assert name(handout.first("a")) == "1"
    done(handout, "a", "1")
    assert [name(handout.first("a")), name(handout.next("a")), name(handout.next("a"))] == ["2", "3", None]


def test_a_shard_that_three_workers_died_over_is_given_up_and_no_other() -> None:
    handout = Handout(shards(3))
    handout.first("a")
    handout.next("a")
    handout.died("a", "by SIGSEGV")
    for _ in range(1):
        assert name(handout.first("a")) == "0"
        assert handout.died("a", "by SIGSEGV") == ([], 1)
    assert name(handout.first("a")) == "1", "the other suspect comes first now"
    done(handout, "a", "1")
    assert name(handout.first("a")) == "0"
    (report,), again = handout.died("a", "by SIGSEGV")
    assert (report.name, report.source, again) == ("0", "0.tar", 0)
    assert "died over it 3 times; the last one by SIGSEGV" in report.error
    assert name(handout.first("a")) == "2"
    done(handout, "a", "2")
    assert handout.finished


def test_another_worker_does_it_again_where_there_is_one() -> None:
    handout = Handout(shards(2))
    handout.first("a")
    handout.died("a", "")
    assert name(handout.first("a", is_only=False)) == "1"
    assert name(handout.first("b", is_only=False)) == "0"
