"""The numbers read from an output, whatever shape the run had, and the shards that are outliers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.predicate import Bound
from dali_aesthetic.report.distribution import MOST_VALUES, NOTHING, OTHERS, decimal
from dali_aesthetic.report.pictures import AT_CUT
from dali_aesthetic.report.rows import NothingToReport
from dali_aesthetic.report.survey import (
    EXAMPLES,
    FEWEST_SHARDS,
    NO_NUMBER,
    ShardFigures,
    find_outliers,
    survey,
)
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import Status
from tests.report.outputs import Item, default_record, make_output, scores_of

NAN = math.nan


def items(scores: list[float], start: int = 0) -> list[Item]:
    return [Item(f"k{start + i:03d}", score) for i, score in enumerate(scores)]


def test_counts_agree_with_the_parquet_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = {f"{s}": items(rng.normal(5, 1, 30).round(3).tolist()) for s in range(3)}
    output = make_output(tmp_path, shards, cut=5.123)
    found = survey(output)
    scores = scores_of(output)
    assert found.first.total == 90
    assert found.num_kept == int(Threshold(raw=5.123).keep(scores).sum())
    assert found.first.kept_at(5.123) == found.num_kept
    assert found.first.mean == pytest.approx(float(scores.mean()), abs=1e-6)
    by_name = {shard.name: shard for shard in found.shards}
    assert by_name["1"].mean == pytest.approx(float(scores[30:60].mean()), abs=1e-5)
    assert sum(shard.num_kept for shard in found.shards) == found.num_kept


WHERE = "aesthetic_score_laion_v1 < 560 AND (lang = 'en' OR key LIKE '%7')"


def test_a_condition_leaves_its_samples_and_counts_what_each_part_removes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shards = {
        f"{s}": [
            Item(f"k{i:03d}", score, json={"lang": ("en", "de")[i % 2]} if i % 5 else None)
            for i, score in enumerate([*rng.normal(5, 1, 40).round(3).tolist(), NAN])
        ]
        for s in range(3)
    }
    for shard in shards.values():
        shard[-1] = Item("bad", NAN, Status.TRUNCATED, "cut")
    output = make_output(tmp_path, shards, cut=4.5, heads=("laion-v2", "laion_v1"))
    found = survey(output, by="lang", where=WHERE)
    rows = [row for path in sorted((output / "scores").iterdir()) for row in pq.read_table(path).to_pylist()]
    scored = [row for row in rows if row["aesthetic_score"] is not None]
    parts = [
        [row["aesthetic_score"] >= 4.5 for row in scored],
        [row["aesthetic_score_laion_v1"] < 560 for row in scored],
        [row["lang"] == "en" or row["key"].endswith("7") for row in scored],
    ]
    held = [row["aesthetic_score"] for row, *marks in zip(scored, *parts[1:], strict=True) if all(marks)]
    assert 0 < len(held) < len(scored) == 120
    assert (found.first.total, found.first.low, found.bad.total) == (len(held), min(held), 3)
    assert found.first.kept_at(4.5) == sum(score >= 4.5 for score in held)
    assert found.groups is not None
    assert sum(one.total for _, one in found.groups.distributions()) == len(held)
    shown = {pick.score for _, _, picks in found.picks.bands() for pick in picks}
    assert shown <= {decimal(score) for score in held}
    assert found.funnel is not None
    left = 120
    for number, (part, alone, in_order, still) in enumerate(found.funnel.rows()):
        assert alone == parts[number].count(False)
        after = sum(map(all, zip(*parts[: number + 1], strict=True)))
        assert (in_order, still) == (left - after, after), part
        left = after
    assert found.funnel.parts[0] == "aesthetic_score >= 4.5"
    ((bound, values, picks),) = found.funnel.bounds
    assert bound == Bound("aesthetic_score_laion_v1 < 560", "aesthetic_score_laion_v1", 560.0, False)
    others = sorted(row["aesthetic_score_laion_v1"] for row in scored)
    assert (values.total, values.low, values.high) == (120, others[0], others[-1])
    assert values.kept_at(560) == sum(other >= 560 for other in others)
    below, above = picks.sides()
    assert [pick.value for pick in below] == [decimal(one) for one in others if one < 560][: -AT_CUT - 1 : -1]
    assert [pick.value for pick in above] == [decimal(one) for one in others if one >= 560][:AT_CUT]
    assert below[0].score == pytest.approx(below[0].value / 100)
    assert [shard.num_samples for shard in found.shards] == [41] * 3
    assert survey(output).funnel is None
    with pytest.raises(ValueError, match=r"no column lnag: did you mean lang\?"):
        survey(output, where="lnag = 'en'")


def test_the_condition_of_a_run_is_the_pages_own(tmp_path: Path) -> None:
    record = default_record(5.0, ["laion-v2"])
    record["identity"] |= {"min_raw": None, "where": "width > 5"}
    output = make_output(tmp_path, {"0": items([3.17, 6.0])}, cut=5.0, record=record)
    found = survey(output)
    assert (found.cut, found.where, found.first.kept_at(found.cut)) == (3.1, "width > 5", 2)
    assert found.funnel is not None
    assert found.funnel.rows() == [("width > 5", 0, 0, 2)]
    assert survey(output, where="width > 5000").first.total == 0
    assert survey(output, where="").funnel is None


def test_samples_that_were_filtered_are_not_bad(tmp_path: Path) -> None:
    filtered = [Item(f"f{i}", NAN, Status.FILTERED) for i in range(5)]
    shard = [Item("a", 5.0), *filtered, Item("b", NAN, Status.TRUNCATED, "cut")]
    found = survey(make_output(tmp_path, {"0": shard}))
    assert (found.num_samples, found.bad.num_filtered, dict(found.bad.counts)) == (7, 5, {"truncated": 1})
    assert found.shards[0].bad_share == 0.5


def test_nested_shard_names(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"a/00": items([4.0, 6.0]), "b/c/00": items([7.0])})
    assert [shard.name for shard in survey(output).shards] == ["a/00", "b/c/00"]
    assert survey(output).num_kept == 2


def test_a_run_that_kept_nothing(tmp_path: Path) -> None:
    found = survey(make_output(tmp_path, {"0": items([1.0, 2.0])}, cut=9.5))
    assert (found.num_kept, found.first.total, found.first.kept_at(9.5)) == (0, 2, 0)


def test_a_run_in_which_nothing_could_be_scored(tmp_path: Path) -> None:
    bad = [Item(f"b{i}", NAN, Status.TRUNCATED, f"cut {i}") for i in range(9)]
    found = survey(make_output(tmp_path, {"0": bad}))
    assert found.first.total == 0
    assert found.bad.counts == {"truncated": 9}
    assert found.picks.bands() == []


def test_bad_samples_come_with_their_first_examples(tmp_path: Path) -> None:
    shards = {
        f"{s}": [
            *[Item(f"t{s}{i}", NAN, Status.TRUNCATED, f"cut at {i}") for i in range(4)],
            Item(f"e{s}", NAN, Status.EMPTY, "no bytes"),
            Item(f"n{s}", NAN),
            Item(f"g{s}", 5.0),
        ]
        for s in range(2)
    }
    bad = survey(make_output(tmp_path, shards)).bad
    assert bad.counts == {"truncated": 8, "empty": 2, NO_NUMBER: 2}
    assert [e.key for e in bad.examples["truncated"]] == ["t00", "t01", "t02", "t03", "t10"]
    assert len(bad.examples["truncated"]) == EXAMPLES
    assert bad.examples["truncated"][1].message == "cut at 1"
    assert bad.examples["empty"][1].source.endswith("1.tar")


def test_several_heads(tmp_path: Path) -> None:
    output = make_output(
        tmp_path, {"0": items([4.0, 5.0, 6.0])}, heads=("laion-v2", "nsfw"), other_head=lambda s: s / 100
    )
    found = survey(output)
    assert list(found.heads) == ["aesthetic_score", "aesthetic_score_nsfw"]
    assert found.heads["aesthetic_score_nsfw"].high == pytest.approx(0.06)
    assert found.heads["aesthetic_score_nsfw"].total == 3


@pytest.mark.parametrize("recorded", [True, False])
def test_a_json_field_named_like_a_score_is_not_taken_for_one(tmp_path: Path, recorded: bool) -> None:
    fields = {"aesthetic_score_by": "somebody else", "aesthetic_score_old": 7.5}
    heads = ("laion-v2", "nsfw", "punsafe")
    columns = ("aesthetic_score_by", "aesthetic_score_old:float")
    output = make_output(tmp_path, {"0": [Item("a", 5.0, json=fields)]}, heads=heads, columns=columns)
    if not recorded:
        (output / "run.json").unlink()
    expected = ["aesthetic_score", "aesthetic_score_nsfw", *(["punsafe"] if recorded else [])]
    assert list(survey(output).heads) == expected
    assert survey(output, by="aesthetic_score_by").groups is not None


def test_scores_without_a_cut_take_the_default_presets(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": items([4.0, 6.0])}, record={"identity": {"min_raw": None}})
    assert survey(output).cut == 5.0


def test_an_unreadable_record_is_no_record(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": items([4.0, 6.0])})
    for content in ("{", "[]"):
        (output / "run.json").write_text(content)
        assert survey(output).record == {}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingToReport, match="no committed shard"):
        survey(tmp_path)


def test_lost_score_files_are_named(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": items([4.0]), "1": items([5.0])})
    (output / "scores" / "1.parquet").unlink()
    with pytest.raises(NothingToReport, match=r"1\.parquet"):
        survey(output)


def test_keep_rate_by_a_json_field_that_some_shards_lack_or_type_otherwise(tmp_path: Path) -> None:
    shards = {
        "0": [Item("a", 4.0, json={"lang": "en"}), Item("b", 6.0, json={"lang": "en"})],
        "1": [Item("c", 7.0, json={"lang": 7})],
        "2": [Item("d", 3.0)],
    }
    output = make_output(tmp_path, shards)
    groups = survey(output, by="lang").groups
    assert groups is not None
    kept = {name: (one.total, one.kept_at(5.0)) for name, one in groups.distributions()}
    assert kept == {"en": (2, 1), "7": (1, 1), NOTHING: (1, 0)}


def test_rare_values_are_counted_together(tmp_path: Path) -> None:
    rows = [
        Item(f"k{i:03d}", 5.5, json={"lang": f"often{i % MOST_VALUES:02d}"}) for i in range(2 * MOST_VALUES)
    ]
    rows += [Item(f"r{i}", 4.5, json={"lang": f"rare{i}"}) for i in range(3)]
    groups = survey(make_output(tmp_path, {"0": rows}), by="lang").groups
    assert groups is not None
    names = [name for name, _ in groups.distributions()]
    assert names == [*(f"often{i:02d}" for i in range(MOST_VALUES)), OTHERS]
    assert groups.distributions()[-1][1].total == 3


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": items([4.0])})
    with pytest.raises(NothingToReport, match="no such column; there are key, status"):
        survey(output, by="nothing")


def test_a_column_that_groups_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dali_aesthetic.report.distribution.MOST_DISTINCT", 3)
    output = make_output(tmp_path, {"0": items([4.0] * 5)})
    with pytest.raises(NothingToReport, match="different values"):
        survey(output, by="key")


def test_what_is_picked_does_not_depend_on_the_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = {f"{s}": items(rng.normal(5, 1, 60).tolist()) for s in range(3)}
    output = make_output(tmp_path, shards)
    first, again = survey(output).picks, survey(output).picks
    assert first.bands() == again.bands()
    scores = np.sort(scores_of(output))
    nearest = sorted(scores.tolist(), key=lambda s: abs(s - 5.0))
    at_cut = [pick.score for pick in first.at_cut()]
    assert min(at_cut, key=lambda s: abs(s - 5)) == pytest.approx(nearest[0], abs=1e-6)
    below = scores[scores < 5][-12:]
    assert at_cut[:12] == pytest.approx(below.tolist(), abs=1e-6)
    for low, high, picks in first.bands():
        assert all(np.float32(low) <= np.float32(pick.score) < np.float32(high) for pick in picks)


def test_the_record_decides_the_cut(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": items([4.0])}, record=default_record(4.25, ["laion-v2"]))
    assert json.loads((output / "run.json").read_text())["identity"]["min_raw"] == survey(output).cut == 4.25


def shard(name: str, mean: float = 5.0, kept: int = 500, bad: int = 10, size: int = 1000) -> ShardFigures:
    return ShardFigures(
        name=name, source="", num_samples=size, num_scored=size - bad, num_kept=min(kept, size - bad),
        mean=mean if size > bad else math.nan, spread=0.8,
    )  # fmt: skip


def crowd(number: int = 30) -> list[ShardFigures]:
    rng = np.random.default_rng(0)
    return [
        shard(f"{i}", 5 + rng.normal(0, 0.03), int(500 + rng.normal(0, 15)), int(rng.poisson(10)))
        for i in range(number)
    ]


def test_similar_shards_have_no_outliers() -> None:
    assert find_outliers(crowd()) == []


def test_each_kind_is_found_and_the_oddest_comes_first() -> None:
    odd = [shard("high", mean=6.0), shard("greedy", kept=900), shard("rotten", bad=400, kept=250)]
    found = {outlier.shard.name: outlier.what for outlier in find_outliers([*crowd(), *odd])}
    assert found["high"] == "mean score"
    assert found["greedy"] == "keep rate"
    assert found["rotten"] == "bad share"
    sizes = [abs(outlier.sigmas) for outlier in find_outliers([*crowd(), *odd])]
    assert sizes == sorted(sizes, reverse=True)


def test_a_small_shard_may_differ_by_chance() -> None:
    small = ShardFigures(name="s", source="", num_samples=4, num_scored=4, num_kept=4, mean=5.6, spread=0.8)
    assert find_outliers([*crowd(), small]) == []


def test_one_bad_sample_among_clean_shards_is_no_outlier() -> None:
    clean = [shard(f"{i}", bad=0) for i in range(10)]
    assert find_outliers([*clean, shard("one", bad=1)]) == []


def test_a_few_shards_have_no_outliers() -> None:
    few = [shard(f"{i}") for i in range(FEWEST_SHARDS - 2)]
    assert find_outliers([*few, shard("odd", mean=9.0)]) == []


def test_shards_without_scores_are_judged_by_their_other_figures() -> None:
    lost = shard("lost", bad=1000)
    assert [(o.shard.name, o.what) for o in find_outliers([*crowd(), lost])] == [("lost", "bad share")]
    assert find_outliers([lost] * 6) == []


def test_the_number_of_outliers_is_bounded() -> None:
    assert len(find_outliers([*crowd(60), *(shard(f"odd{i}", mean=7.0 + i) for i in range(9))], most=4)) == 4
