"""Packed shards: the run's bytes in its order, matching rows, and readable by other tools."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.compact.job import Options, Result, compact
from dali_aesthetic.compact.kept import RunDamaged
from dali_aesthetic.compact.pack import Size
from dali_aesthetic.config import ConfigError
from dali_aesthetic.layout import NotARun
from dali_aesthetic.verify.outputs import verify_output
from dali_aesthetic.write.output import RunMismatch
from tests.compact.runs import entries, make_run, many, uid
from tests.conftest import add_member
from tests.write.scored import JPEG, run, shard_of, tree


@pytest.fixture(scope="module")
def run_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven shards of 23 samples with 10 or 13 kept, and one with none."""
    shards = many(7, 23)
    shards["b/00001"] = [(key[:-1] + "0", fields) for key, fields in shards["b/00001"][::10]]
    return make_run(tmp_path_factory.mktemp("compact"), shards)


def pack(run: Path, output: Path, **options: Any) -> Result:
    return compact(Options(run=run, output=output, **options))


def kept_tars(run: Path) -> list[Path]:
    return sorted((run / "shards").rglob("*.tar"))


def names(output: Path) -> list[str]:
    return sorted(path.stem for path in (output / "stats").iterdir())


@pytest.mark.parametrize(
    "size", [Size(samples=1), Size(samples=7), Size(samples=1000), Size(bytes=1), Size(bytes=20_000)], ids=str
)
def test_tars_are_the_runs_entries_in_its_order(run_output: Path, tmp_path: Path, size: Size) -> None:
    result = pack(run_output, tmp_path, size=size)
    tars = [tmp_path / "shards" / f"{name}.tar" for name in names(tmp_path)]
    assert b"".join(map(entries, tars)) == b"".join(map(entries, kept_tars(run_output)))
    assert (result.num_shards, result.num_source_shards) == (len(tars), 7)
    counts = json.loads((tmp_path / "shards" / "sizes.json").read_text())
    assert list(counts) == [tar.name for tar in tars]
    if size.samples:
        assert set(list(counts.values())[:-1]) <= {size.samples}, "all but the last are full"
    elif size.bytes == 20_000:
        assert all(tar.stat().st_size <= 20_000 for tar in tars)
        biggest = max(tar.stat().st_size for tar in tars)
        assert biggest > 20_000 - 3 * 1536, "a shard is filled as far as the next sample lets it"
    else:
        assert set(counts.values()) == {1}, "one sample is let in, however large"


def test_rows_are_those_of_the_kept_samples_and_say_where_they_are(run_output: Path, tmp_path: Path) -> None:
    pack(run_output, tmp_path, size=Size(samples=7))
    before = [
        row
        for tar in kept_tars(run_output)
        for row in pq.read_table(
            run_output / "scores" / tar.relative_to(run_output / "shards").with_suffix(".parquet")
        ).to_pylist()
        if row["kept"]
    ]
    after = []
    for name in names(tmp_path):
        rows = pq.read_table(tmp_path / "scores" / f"{name}.parquet").to_pylist()
        assert {row["output_shard"] for row in rows} == {f"shards/{name}.tar"}
        after += rows
    where = {"output_shard": None}
    assert [row | where for row in after] == [row | where for row in before]
    assert list(after[0]) == list(before[0]), "the columns keep their order"


def test_wids_reads_any_sample_by_its_number(run_output: Path, tmp_path: Path) -> None:
    import wids

    compact(Options(run=run_output, output=tmp_path, size=Size(samples=12)))
    index = tmp_path / "shards" / "wids.json"
    data = wids.ShardListDataset(str(index), base=str(index.parent), transformations=[], keep=True)
    keys = pq.read_table(tmp_path / "scores", columns=["key"]).column("key").to_pylist()
    assert len(data) == len(keys)
    for place in (0, 11, 12, len(keys) - 1):
        assert data[place]["__key__"] == keys[place]


def test_webdataset_reads_them_with_the_counts_of_sizes_json(run_output: Path, tmp_path: Path) -> None:
    pack(run_output, tmp_path, size=Size(samples=20))
    keys = []
    for name, count in json.loads((tmp_path / "shards" / "sizes.json").read_text()).items():
        url = str(tmp_path / "shards" / name)
        samples = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
        assert len(samples) == count
        keys += [sample["__key__"] for sample in samples]
        assert all(sample["jpg"].endswith(sample["__key__"].encode()) for sample in samples)
    rows = pq.read_table(tmp_path / "scores", columns=["key"])
    assert keys == rows.column("key").to_pylist()


def test_a_second_call_finds_everything_there(run_output: Path, tmp_path: Path) -> None:
    first = pack(run_output, tmp_path, size=Size(samples=7))
    before = tree(tmp_path)
    again = pack(run_output, tmp_path, size=Size(samples=7))
    assert (again.num_shards, again.num_there) == (first.num_shards, first.num_shards)
    assert tree(tmp_path) == before


def test_a_lost_shard_is_made_again(run_output: Path, tmp_path: Path) -> None:
    pack(run_output, tmp_path, size=Size(samples=7))
    before = tree(tmp_path)
    for folder, suffix in (("stats", "json"), ("shards", "tar")):
        (tmp_path / folder / f"00003.{suffix}").unlink()
    assert pack(run_output, tmp_path, size=Size(samples=7)).num_there == len(names(tmp_path)) - 1
    assert tree(tmp_path) == before


def test_another_size_or_another_run_is_refused(run_output: Path, tmp_path: Path) -> None:
    pack(run_output, tmp_path, size=Size(samples=7))
    with pytest.raises(RunMismatch, match=r"samples_per_shard: 7 there, 8 now"):
        pack(run_output, tmp_path, size=Size(samples=8))
    with pytest.raises(ConfigError, match="is the run itself"):
        pack(run_output, run_output)
    other = make_run(tmp_path / "other", many(2, 9))
    with pytest.raises(RunMismatch, match="kept"):
        pack(other, tmp_path, size=Size(samples=7))


def test_an_unfinished_run_is_refused_unless_allowed(run_output: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run_output, copied)
    (copied / "stats" / "a" / "00002.json").unlink()
    with pytest.raises(ConfigError, match=r"1 of 7 shards are not committed \(like a/00002\)"):
        pack(copied, tmp_path / "packed")
    result = pack(copied, tmp_path / "packed", allow_unfinished=True)
    assert (result.num_source_shards, result.num_samples) == (6, 5 * 10)
    (copied / "run.json").write_text(
        (copied / "run.json").read_text().replace(str(run_output.parent / "in"), "gone")
    )
    with pytest.raises(ConfigError, match="can't be told"):
        pack(copied, tmp_path / "again")


def test_samples_of_one_key_side_by_side_stay_apart_in_shards_of_their_own(tmp_path: Path) -> None:
    """Two shards that both number their samples from the start: `5` ends one and begins the next."""
    shards = {"a": [("15", {}), ("25", {})], "b": [("25", {}), ("35", {})]}
    run = make_run(tmp_path, shards)
    pack(run, tmp_path / "packed")
    keys = [
        [row["key"] for row in pq.read_table(tmp_path / "packed" / "scores" / f"{name}.parquet").to_pylist()]
        for name in names(tmp_path / "packed")
    ]
    assert keys == [["15", "25"], ["25", "35"]]


def test_what_readers_take_for_one_sample_is_never_split(tmp_path: Path) -> None:
    """`5` comes twice with a dropped sample between: side by side in the kept tar."""
    run = make_run(tmp_path, {"a": [("5", {}), ("0", {}), ("5", {}), ("6", {})]})
    pack(run, tmp_path / "packed", size=Size(samples=1))
    assert json.loads((tmp_path / "packed" / "shards" / "sizes.json").read_text()) == {
        "00000.tar": 2,
        "00001.tar": 1,
    }
    assert verify_output(tmp_path / "packed", against_input=True).problems == ()


def test_packed_scores_have_the_schema_of_the_runs(tmp_path: Path) -> None:
    shards = {
        "a": [("5", {"similarity": 1, "tags": "here"})],
        "b": [("6", {"similarity": 2.5, "caption": "word"}), ("7", {})],
        "c": [("8", {"caption": True, "only_c": [1]})],
    }
    output = make_run(tmp_path, shards)
    pack(output, tmp_path / "packed", size=Size(samples=2))
    files = [*(output / "scores").iterdir(), *(tmp_path / "packed" / "scores").iterdir()]
    assert len(files) == 5
    assert len({str(pq.read_schema(file)) for file in files}) == 1
    rows = pq.read_table(tmp_path / "packed" / "scores").to_pylist()
    assert [[row[name] for name in ("similarity", "caption", "json")] for row in rows] == [
        [1.0, None, '{"tags":"here"}'],
        [2.5, "word", None],
        [None, None, None],
        [None, "true", '{"only_c":[1]}'],
    ]


def test_scores_with_other_columns_are_not_packed(tmp_path: Path) -> None:
    """As they were before all of a run's files had one schema."""
    output = make_run(tmp_path, {name: [(f"{name}5", {})] for name in "ab"})
    file = output / "scores" / "b.parquet"
    pq.write_table(pq.read_table(file).drop_columns("json"), file)
    with pytest.raises(RunDamaged, match=r"different columns.*filter --scores"):
        pack(output, tmp_path / "packed")


def test_verify_takes_what_webdataset_refuses_or_leaves_out(tmp_path: Path) -> None:
    """The input's own doubled members, and names that it takes for its own."""
    output = make_run(tmp_path, {"a": [("5", {}), ("__x__/6", {}), ("7", {})]})
    for name in ("5.JPG", "5.jpg"):
        with tarfile.open(tmp_path / "in" / "a.tar", "a") as tar:
            add_member(tar, name, JPEG)
    run(output, [shard_of(tmp_path / "in" / "a.tar")])
    pack(output, tmp_path / "packed")
    assert verify_output(output, against_input=True).problems == ()
    assert verify_output(tmp_path / "packed", against_input=True).problems == ()


def test_verify_checks_a_packed_folder_and_compares_it_with_its_run(run_output: Path, tmp_path: Path) -> None:
    pack(run_output, tmp_path, size=Size(samples=7), index=True)
    verdict = verify_output(tmp_path, against_input=True)
    assert verdict.problems == ()
    assert verdict.compared_with_input
    assert verdict.uncommitted == ()
    assert verdict.num_kept == verdict.num_samples == 6 * 10
    tar = tmp_path / "shards" / "00002.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    assert verify_output(tmp_path).problems == (), "a flipped pixel still is a tar"
    (problem,) = verify_output(tmp_path, against_input=True).problems
    assert "differs from" in problem[1]


def test_a_damaged_run_is_not_packed(run_output: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run_output, copied)
    rows = copied / "scores" / "a" / "00002.parquet"
    pq.write_table(pq.read_table(rows)[8:], rows)
    with pytest.raises(RunDamaged, match=r"00002.tar holds other samples .* verify"):
        pack(copied, tmp_path / "packed")


def test_a_shard_that_can_have_no_index_is_named_and_the_others_have_one(tmp_path: Path) -> None:
    output = make_run(tmp_path, {"a": [(key, {}) for key in ("5", "6", "a 7", "8", "9")]})
    arguments = ["compact", str(output), "--output", str(tmp_path / "packed"), "--samples-per-shard", "2"]
    for _ in range(2):
        done = CliRunner().invoke(app, [*arguments, "--index"])
        assert done.exit_code == 1
        assert "00001.tar has a member 'a 7.jpg'; DALI's index has no names with spaces" in done.stderr
        assert "1 of 3 shards have no index" in done.stderr
        assert sorted(path.stem for path in (tmp_path / "packed" / "shards").glob("*.idx")) == [
            "00000",
            "00002",
        ]
        assert names(tmp_path / "packed") == ["00000", "00001", "00002"]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--index", "--json"]).stdout)["without_index"]
    assert len(found) == 1
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_the_subset_file_is_datacomps(run_output: Path, tmp_path: Path) -> None:
    pack(run_output, tmp_path / "packed", size=Size(samples=7), subset_file=tmp_path / "kept.npy")
    subset = np.load(tmp_path / "kept.npy", mmap_mode="r")
    uids = pq.read_table(tmp_path / "packed" / "scores", columns=["uid"]).column(0).to_pylist()
    # As its baselines write it, and as its resharder looks uids up.
    expected = np.array([(int(u[:16], 16), int(u[16:32], 16)) for u in uids], np.dtype("u8,u8"))
    expected.sort()
    assert subset.dtype == np.dtype("u8,u8")
    np.testing.assert_array_equal(subset, expected)
    for u, there in ((uids[0], 1), (uid(999_999), 0)):
        wanted = np.array([divmod(int(u, 16), 2**64)], np.dtype("u8,u8"))[0]
        found = np.searchsorted(subset, wanted, "right") - np.searchsorted(subset, wanted, "left")
        assert found == there


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([{}, {}], "2 kept samples of .* have no field 'uid'"),
        ([{"uid": "ab"}, {}], "1 kept samples of .* have no field 'uid'"),
        ([{"uid": "ab"}, {"uid": "xyz"}], "no hexadecimal number"),
        ([{"uid": "ab"}, {"uid": "1" * 33}], "no hexadecimal number"),
        ([{"uid": "ab"}, {"uid": "1 1"}], "no hexadecimal number"),
    ],
)
def test_invalid_uids_are_refused(tmp_path: Path, fields: list[dict[str, Any]], message: str) -> None:
    shards = {"0": [("5", {"uid": "cd"})], "a": [(str(i + 5), one) for i, one in enumerate(fields)]}
    run = make_run(tmp_path, shards)
    with pytest.raises(ConfigError, match=message):
        pack(run, tmp_path / "packed", subset_file=tmp_path / "kept.npy")
    assert not (tmp_path / "kept.npy").exists()
    assert not (tmp_path / "packed").exists(), "it is said before anything is packed"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, r"it has no run.json"),
        ({"config": {"scores_only": True}, "identity": {}}, "holds scores only"),
        ({"identity": {"input_kind": "embeddings"}}, "no image to pack"),
        ({"config": 3}, "can't be read"),
        ({"identity": {}, "config": 3}, "can't be read"),
    ],
)
def test_a_folder_without_a_run_that_wrote_tars_is_refused(tmp_path: Path, record: Any, message: str) -> None:
    if record is not None:
        (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises((ConfigError, NotARun), match=message):
        pack(tmp_path, tmp_path / "packed")


@pytest.mark.parametrize(("run", "output"), [("s3://bucket/kept", "packed"), ("kept", "gs://bucket/packed")])
def test_urls_are_refused(run: str, output: str) -> None:
    with pytest.raises(ConfigError, match=r"bucket/.*only folders on a local or mounted file system"):
        pack(Path(run), Path(output))


def test_parquet_shards_are_refused(run_output: Path, tmp_path: Path) -> None:
    shutil.copytree(run_output, tmp_path / "run")
    (tmp_path / "run" / "shards" / "a" / "00002.parquet").touch()
    with pytest.raises(ConfigError, match="only tars are packed"):
        pack(tmp_path / "run", tmp_path / "packed")


def test_the_command(run_output: Path, tmp_path: Path) -> None:
    arguments = ["compact", str(run_output), "--output", str(tmp_path), "--bytes-per-shard", "20KB", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["num_samples"], result["num_shards"]) == (60, len(names(tmp_path)))
    assert "60 kept samples" in CliRunner().invoke(app, arguments[:-1]).stderr
    for size in ("many", "0"):
        wrong = CliRunner().invoke(app, [*arguments[:5], size])
        assert (wrong.exit_code, "--bytes-per-shard" in wrong.stderr) == (2, True)
