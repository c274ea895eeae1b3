"""Random conditions on random samples: what the sink keeps is what pandas finds in the rows that it wrote."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.commands.filter import selected
from dali_aesthetic.predicate import Predicate
from dali_aesthetic.types import (
    EncodedBatch,
    ImageHeader,
    Route,
    Sample,
    ScoredBatch,
    Shard,
    ShardEnd,
    Status,
)
from dali_aesthetic.write import json_fields
from dali_aesthetic.write import rows as rows_module
from dali_aesthetic.write.rows import condition_columns
from dali_aesthetic.write.sink import ShardSink
from tests.test_predicate import frame, random_condition

HEADS, COLUMNS = ["v2", "punsafe"], ["seed:int", "nice:bool"]
KINDS = condition_columns(HEADS, COLUMNS)


def random_json(draw: random.Random) -> bytes | None:
    """Fields of the right kind, of another, NaN, missing, and now and then no json at all."""
    anything = [None, float("nan"), 5, 0.25, "5", "a photo", True, [1], {"x": 1}]
    fields = {
        "caption": draw.choice(["a photo", "5", *anything]),
        draw.choice(["similarity", "Similarity"]): draw.choice([0.25, 0.5, 5, *anything]),
        "seed": draw.choice([1, 2, 5.0, *anything]),
        "nice": draw.choice([True, False, *anything]),
        "NSFW": draw.choice(["5", "jpeg", *anything]),
        "width": 7,
        "other": 1,
    }
    kept = {name: value for name, value in fields.items() if draw.random() < 0.8}
    return draw.choice([None, b"{no json", json.dumps(kept).encode(), json.dumps(kept).encode()])


def random_batches(draw: random.Random, shards: list[Shard]) -> list[ScoredBatch]:
    """Samples of several shards in batches of any size, a few of them bad or without a number."""
    samples = [
        Sample(
            shard=shard,
            key=f"k{number}",
            image=b"x" * draw.randint(1, 9),
            entries=(bytes(512),),
            source=shard.source,
            offset=number,
            sidecar=random_json(draw),
        )
        for shard in shards
        for number in range(draw.randint(0, 60))
    ]
    batches = []
    while samples:
        size = draw.randint(1, 40)
        part, samples = samples[:size], samples[size:]
        headers = tuple(
            ImageHeader(
                format=draw.choice(["jpeg", "png"]),
                width=draw.choice([0, 1, 2, 5, 8]),
                height=draw.choice([0, 1, 2, 5, 8]),
                route=Route.DALI,
                status=draw.choice([Status.OK] * 8 + [Status.TRUNCATED, Status.FILTERED]),
            )
            for _ in part
        )
        scores = [[draw.choice([0, 0.25, 5, 5.5, np.nan, np.inf]) for _ in HEADS] for _ in part]
        encoded = EncodedBatch(samples=tuple(part), headers=headers)
        batches.append(ScoredBatch(encoded=encoded, headers=headers, scores_RH=np.array(scores, np.float32)))
    ended = tuple(ShardEnd(shard=shard) for shard in shards)
    last = EncodedBatch(samples=(), headers=(), ended=ended)
    return [*batches, ScoredBatch(encoded=last, headers=(), scores_RH=np.empty((0, 2), np.float32))]


@pytest.mark.parametrize("pieces", [1024, 7])
def test_any_condition_keeps_what_pandas_finds_in_the_scores(
    tmp_path: Path, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches end within shards, row groups within batches, and pieces of json within both."""
    monkeypatch.setattr(json_fields, "_PIECE_ROWS", pieces)
    monkeypatch.setattr(rows_module, "_GROUP_ROWS", 3 * pieces)
    kept_any = 0
    for seed in range(12):
        draw = random.Random(seed)
        text, judge = random_condition(draw)
        cut = draw.choice([-np.inf, 5.0])
        output = tmp_path / str(seed)
        shards = [Shard(index=i, name=f"s{i}", kind="tar", source=f"s{i}.tar") for i in range(3)]
        where = Predicate(text, KINDS)
        with ShardSink(
            output, HEADS, lambda raw_R, cut=cut: raw_R >= np.float32(cut), columns=COLUMNS, where=where
        ) as sink:
            num_kept = 0
            for batch in random_batches(draw, shards):
                sink.write(batch)
                num_kept += sink.num_kept
        tables = [pq.read_table(output / "scores" / f"s{i}.parquet") for i in range(3)]
        table = pa.concat_tables(tables)
        score = pd.Series(table.column("aesthetic_score").to_pylist(), dtype="Float64")
        kept = judge(frame(table)).fillna(False) & (score >= cut).fillna(False)
        assert table.column("kept").to_pylist() == kept.tolist(), text
        assert num_kept == kept.sum()
        stats = [json.loads((output / "stats" / f"s{i}.json").read_text()) for i in range(3)]
        assert [one["num_kept"] for one in stats] == [sum(one.column("kept").to_pylist()) for one in tables]
        lost = sum(one["removed"][part][2] for one in stats for part in range(len(one["removed"])))
        assert lost + num_kept == score.notna().sum()
        (output / "run.json").write_text('{"identity": {}}')
        fields = {"where": text} | ({"raw": cut} if cut > 0 else {})
        found = [pair for pairs in selected(str(output), fields) for pair in zip(*pairs, strict=True)]
        wanted = table.filter(pa.array(kept.tolist(), pa.bool_()))
        assert found == list(
            zip(wanted.column("source_shard").to_pylist(), wanted.column("key").to_pylist(), strict=True)
        )
        kept_any += num_kept
    assert kept_any > 50
