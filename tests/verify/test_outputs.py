"""`verify OUT` finds every change after the commit, and reports nothing for an untouched output."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.layout import NotARun
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.types import Shard
from dali_aesthetic.verify.outputs import _compare, _read_limits, verify_output
from tests.write.scored import make_tar, run, shard_of


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two committed shards of 20 samples, half of them kept, and the record of their run."""
    folder = tmp_path_factory.mktemp("written")
    paths = [make_tar(folder / f"in/{s}.tar", [f"{s}{i:02d}" for i in range(20)]) for s in "ab"]
    run(folder / "out", [shard_of(path, index) for index, path in enumerate(paths)])
    record = {"identity": {"min_raw": 5.0}, "config": {"input": [str(folder / "in")]}}
    (folder / "out" / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def output(written: Path, tmp_path: Path) -> Path:
    """A copy of the output, to be damaged."""
    shutil.copytree(written / "out", tmp_path / "out")
    return tmp_path / "out"


def test_an_untouched_output_has_no_problems(output: Path) -> None:
    verdict = verify_output(output, against_input=True)
    assert verdict.problems == ()
    assert (verdict.num_shards, verdict.num_samples, verdict.num_kept) == (2, 40, 20)
    assert verdict.compared_with_input
    assert verdict.uncommitted == ()


def edit_stats(output: Path, **values: object) -> None:
    path = output / "stats" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def drop_last_row(output: Path) -> None:
    path = output / "scores" / "a.parquet"
    pq.write_table(pq.read_table(path)[:-1], path)


def test_the_runs_warnings_are_shown_and_are_no_problem(output: Path) -> None:
    edit_stats(output, warnings=["links left out: 2 (first: 'l.jpg')"])
    assert verify_output(output).warnings == (("a", "links left out: 2 (first: 'l.jpg')"),)
    result = CliRunner().invoke(app, ["verify", str(output)])
    assert result.exit_code == 0
    assert "warning links left out: 2 in 1 shard, first in a (first: 'l.jpg')" in result.output


def forget_one_kept(output: Path) -> None:
    path = output / "scores" / "a.parquet"
    table = pq.read_table(path)
    kept = table.column("kept").to_pylist()
    kept[kept.index(True)] = False
    pq.write_table(table.set_column(table.column_names.index("kept"), "kept", pa.array(kept)), path)


def change_score(output: Path, row: int, score: float | None) -> None:
    path = output / "scores" / "a.parquet"
    table = pq.read_table(path)
    scores = table.column("aesthetic_score").to_pylist()
    scores[row] = score
    column = pa.array(scores, pa.float32())
    pq.write_table(
        table.set_column(table.column_names.index("aesthetic_score"), "aesthetic_score", column), path
    )


def cut_tar(output: Path) -> None:
    path = output / "shards" / "a.tar"
    path.write_bytes(path.read_bytes()[:3000])


def empty_tar(output: Path) -> None:
    with tarfile.open(output / "shards" / "a.tar", "w"):
        pass


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "samples": (lambda output: edit_stats(output, num_samples=21), "state samples 21, its scores have 20"),
    "kept": (lambda output: edit_stats(output, num_kept=3), "state kept samples 3, its scores have 10"),
    "statuses": (lambda output: edit_stats(output, statuses={"ok": 19, "empty": 1}), "statuses"),
    "row": (drop_last_row, "state samples 20, its scores have 19"),
    "mark": (forget_one_kept, "1 are not kept"),
    "score": (lambda output: change_score(output, 1, 5.0), "1 samples (like 'a01') are marked"),
    "lower score": (lambda output: change_score(output, 9, 4.99), "1 samples (like 'a09') are marked"),
    "no score": (lambda output: change_score(output, 9, None), "1 samples (like 'a09') are marked"),
    "list": (lambda output: (output / "stats" / "a.json").write_text("[]"), "can't be read"),
    "null": (lambda output: edit_stats(output, bytes_kept=None), "can't be read"),
    "cut": (cut_tar, "3000 bytes"),
    "empty": (empty_tar, "10 are missing"),
    "no tar": (lambda output: (output / "shards" / "a.tar").unlink(), "can't be read"),
    "no scores": (lambda output: (output / "scores" / "a.parquet").unlink(), "can't be read"),
    "no parquet": (lambda output: (output / "scores" / "a.parquet").write_text("x"), "can't be read"),
    "no json": (lambda output: (output / "stats" / "a.json").write_text("{"), "can't be read"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_every_kind_of_damage_is_found_and_named(output: Path, what: str) -> None:
    spoil, words = SPOILED[what]
    spoil(output)
    verdict = verify_output(output)
    assert {name for name, _ in verdict.problems} == {"a"}
    assert any(words in text for _, text in verdict.problems), verdict.problems


def flip_byte(path: Path, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(content)] ^= 1
    path.write_bytes(data)


def test_a_changed_byte_is_found_against_the_input(output: Path) -> None:
    flip_byte(output / "shards" / "b.tar", bytes(range(256)) * 3)
    assert verify_output(output).problems == ()
    verdict = verify_output(output, against_input=True)
    assert [(name, "differs from its input" in text) for name, text in verdict.problems] == [("b", True)]


def test_the_input_is_read_under_the_runs_own_limits(written: Path, output: Path) -> None:
    """A member that the run read under a higher limit is missing under the default one."""
    shard = shard_of(written / "in" / "a.tar")
    assert _compare(output, shard, ReadLimits(max_member_bytes=100)) != ""
    assert _compare(output, shard, _read_limits({"max_member_mb": 1, "quarantine": True})) == ""
    assert _read_limits({"max_member_mb": 2000}) == ReadLimits(max_member_bytes=2000 << 20)
    assert _read_limits({}) == DEFAULT_LIMITS


def test_an_input_that_changed_or_went_is_found(written: Path, output: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    make_tar(tmp_path / "in" / "a.tar", [f"a{i:02d}" for i in range(19)])
    (output / "run.json").write_text(
        json.dumps({"identity": {}, "config": {"input": [str(tmp_path / "in")]}})
    )
    problems = dict(verify_output(output, against_input=True).problems)
    assert problems["b"] == "its input is gone"
    assert "a" in problems


def test_kept_rows_of_a_parquet_input_are_counted_and_compared(output: Path, tmp_path: Path) -> None:
    """A Parquet file with the same rows in place of the tar."""
    kept = pq.read_table(output / "scores" / "a.parquet", columns=["kept"]).column("kept")
    source = pa.table({"image": [bytes([i]) * 50 for i in range(20)]})
    file = output / "shards" / "a.parquet"
    pq.write_table(source, tmp_path / "a.parquet")
    pq.write_table(source.filter(kept), file)
    shard = Shard(index=0, name="a", kind="tar", source=str(tmp_path / "a.parquet"))
    assert verify_output(output).problems == ()
    assert _compare(output, shard) == ""
    pq.write_table(source.slice(0, 10), file)
    assert "its rows differ" in _compare(output, shard)
    pq.write_table(source, file)
    (problem,) = verify_output(output).problems
    assert problem == ("a", "its Parquet file has 20 rows, its stats state 10 kept samples")


def test_a_nan_of_a_parquet_input_is_equal_to_itself_and_to_no_other_value(
    output: Path, tmp_path: Path
) -> None:
    kept = pq.read_table(output / "scores" / "a.parquet", columns=["kept"]).column("kept")
    numbers = [float("nan"), 0.5, None, 1e300] * 5
    source = pa.table({"image": [b"x"] * 20, "n": numbers, "deep": [{"n": [one]} for one in numbers]})
    pq.write_table(source, tmp_path / "a.parquet")
    shard = Shard(index=0, name="a", kind="tar", source=str(tmp_path / "a.parquet"))
    for name in ("", "n", "deep"):
        rows = source.filter(kept)
        if name:
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows.column(name)[::-1])
        pq.write_table(rows, output / "shards" / "a.parquet")
        assert _compare(output, shard).partition(" of ")[0] == (
            "its rows differ from the kept ones" if name else ""
        )


def test_what_a_stopped_run_left_is_no_error(output: Path) -> None:
    (output / "stats" / "b.json").unlink()
    verdict = verify_output(output)
    assert (verdict.num_shards, verdict.problems, verdict.uncommitted) == (1, (), ("b",))


def test_what_is_no_output_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(NotARun, match="not the output of a run"):
        verify_output(tmp_path)
    (tmp_path / "00000.tar").write_bytes(b"")
    with pytest.raises(NotARun, match=r"00000\.tar is not the output of a run"):
        verify_output(tmp_path / "00000.tar")


def test_the_command_lists_problems_and_says_it_by_its_exit_code(output: Path) -> None:
    good = CliRunner().invoke(app, ["verify", str(output), "--against-input"])
    assert good.exit_code == 0
    edit_stats(output, num_kept=3)
    wrong = CliRunner().invoke(app, ["verify", str(output), "--json"])
    assert wrong.exit_code == 1
    assert json.loads(wrong.stdout)["problems"][0][0] == "a"
    assert CliRunner().invoke(app, ["verify"]).exit_code == 2
    assert CliRunner().invoke(app, ["verify", str(output), "--precision", "fp32"]).exit_code == 2


@pytest.mark.parametrize(
    "idle", [["--sample", "3"], ["--input", "photos"], ["--head", "a"], ["--model-dir", "models"]]
)
def test_an_option_that_would_do_nothing_is_refused(output: Path, idle: list[str]) -> None:
    called = CliRunner().invoke(app, ["verify", str(output), *idle])
    assert (called.exit_code, called.output.split()[:2]) == (2, ["error", f"{idle[0]}:"])
    measured = CliRunner().invoke(app, ["verify", "--precision", "fp32", "--against-input", "--input", "x"])
    assert (measured.exit_code, measured.output.split()[:2]) == (2, ["error", "--against-input"])
