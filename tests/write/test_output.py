from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dali_aesthetic.layout import committed_names
from dali_aesthetic.shards import plan_shards
from dali_aesthetic.types import Shard
from dali_aesthetic.write import output as output_module
from dali_aesthetic.write.files import temporary_path
from dali_aesthetic.write.output import (
    OutputMismatch,
    RunMismatch,
    check_run_record,
    clean_leftovers,
    earlier_reports,
    open_output,
    write_run_record,
)
from tests.write.scored import JPEG, make_tar, run, shard_of, tree

RECORD = {
    "identity": {"threshold": 5.0, "weights": {"name": "a", "sha256": "1"}, "heads": ["v2"]},
    "gpu": "H100",
}


def test_the_first_record_is_written_and_the_same_run_goes_on(tmp_path: Path) -> None:
    write_run_record(tmp_path / "out", RECORD)
    before = tree(tmp_path / "out")
    write_run_record(tmp_path / "out", {**RECORD, "gpu": "A100"})
    assert tree(tmp_path / "out") == before
    assert list(before) == ["run.json"]
    assert check_run_record(tmp_path / "out", RECORD) == []


def test_another_run_is_refused_with_each_field_and_both_values(tmp_path: Path) -> None:
    write_run_record(tmp_path, RECORD)
    other = {
        "identity": {"threshold": 6.0, "weights": {"name": "a", "sha256": "2"}, "extra": 1, "heads": ["v2"]}
    }
    before = tree(tmp_path)
    with pytest.raises(RunMismatch) as error:
        write_run_record(tmp_path, other)
    assert tree(tmp_path) == before
    assert check_run_record(tmp_path, other) == [
        "extra: '(not set)' there, 1 now",
        "threshold: 5.0 there, 6.0 now",
        "weights.sha256: '1' there, '2' now",
    ]
    for line in check_run_record(tmp_path, other):
        assert line in str(error.value)


def test_another_cut_is_refused_with_the_command_that_makes_it_from_the_scores(tmp_path: Path) -> None:
    identity: dict[str, Any] = {"input": ["in/*.tar", "more"], "min_raw": 5.0, "encoder": "x"}
    out = tmp_path / "my out"
    write_run_record(out, {"identity": identity})
    for cut, flags in (
        ({"min_raw": 6.25}, "--raw-threshold 6.25"),
        ({"max_raw": 7.5}, "--raw-threshold 5 --max-raw-threshold 7.5"),
        ({"min_raw": 4.599999904632568}, "--raw-threshold 4.6"),  # the float32 nearest to 4.6
    ):
        with pytest.raises(RunMismatch) as error:
            write_run_record(out, {"identity": {**identity, **cut}})
        command = (
            f"dali-aesthetic filter --input 'in/*.tar' --input more --scores '{out}' --output '{out}-cut'"
        )
        assert str(error.value).endswith(f": {command} {flags}")
    assert "min_raw: 5 there, 4.6 now" in str(error.value)
    with pytest.raises(RunMismatch) as error:
        write_run_record(out, {"identity": {**identity, "min_raw": 6.0, "encoder": "y"}})
    assert "filter" not in str(error.value)


def test_an_output_of_another_kind_is_refused_in_a_line(tmp_path: Path) -> None:
    run = {"input": ["x"], "encoder": "y"}
    cut, packed = {"scored_by": run, "min_raw": 5.0}, {"run": run}
    for name, there, here, told in (
        ("a", run, cut, "the results of a run; the samples that `filter` cut need"),
        ("b", cut, run, "the samples that `filter` cut; the results of a run need"),
        ("c", run, packed, "the results of a run; the shards that `compact` packed need"),
    ):
        out = tmp_path / name
        write_run_record(out, {"identity": there})
        with pytest.raises(RunMismatch) as error:
            write_run_record(out, {"identity": here})
        assert str(error.value) == f"{out} holds {told} an output of their own: give --output {out}-2"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"no json"])
def test_an_unreadable_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunMismatch, match=r"run\.json"):
        write_run_record(tmp_path, RECORD)


def test_of_two_first_runs_one_wins_and_the_other_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def raced(source: Path, target: Path) -> None:
        Path(target).write_text('{"identity": {"threshold": 4}}')
        link(source, target)

    monkeypatch.setattr(os, "link", raced)
    with pytest.raises(RunMismatch, match="threshold: 4 there"):
        write_run_record(tmp_path, {"identity": {"threshold": 5}})
    assert list(tree(tmp_path)) == ["run.json"]


def test_without_hard_links_the_record_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_run_record(tmp_path, RECORD)
    assert list(tree(tmp_path)) == ["run.json"]


def test_committed_shards_are_skipped_in_order(tmp_path: Path) -> None:
    shards = [shard_of(make_tar(tmp_path / "in" / f"{n}.tar", ["a8"]), n) for n in range(4)]
    out = tmp_path / "out"
    assert committed_names(out) == set()
    assert open_output(out, RECORD, shards) == shards
    run(out, [shards[1], shards[3]])
    (out / "stats" / ".tmp-x.json").write_text("{}")
    assert open_output(out, RECORD, shards) == [shards[0], shards[2]]
    run(out, [shards[0], shards[2]])
    assert open_output(out, RECORD, shards) == []


def images(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(JPEG)
    return folder


def test_a_changed_folder_is_refused_and_says_what_changed(tmp_path: Path) -> None:
    folder = images(tmp_path / "in", [f"{n}8.jpg" for n in range(6)])
    out = tmp_path / "out"
    run(out, plan_shards(str(folder), samples_per_shard=3))
    assert open_output(out, RECORD, plan_shards(str(folder), samples_per_shard=3)) == []

    images(folder, ["00.jpg"])
    with pytest.raises(
        OutputMismatch, match=r"shard 00000 .* 1 images are no longer in it \(like .*/28\.jpg"
    ):
        open_output(out, RECORD, plan_shards(str(folder), samples_per_shard=3))
    (folder / "00.jpg").unlink()

    (folder / "48.jpg").write_bytes(JPEG + b"longer")
    with pytest.raises(OutputMismatch, match=r"shard 00001 .* another size"):
        open_output(out, RECORD, plan_shards(str(folder), samples_per_shard=3))

    for name in ("38.jpg", "48.jpg", "58.jpg"):
        (folder / name).unlink()
    with pytest.raises(OutputMismatch, match="1 shards that the input no longer has"):
        open_output(out, RECORD, plan_shards(str(folder), samples_per_shard=3))


def test_a_list_that_names_other_shards_than_are_done_is_refused(tmp_path: Path) -> None:
    """Shards are named below the common parent of all files of the list."""
    for text in ("a/0", "a/1", "b/0"):
        make_tar(tmp_path / f"{text}.tar", ["a8"])
    listed, out = tmp_path / "list.txt", tmp_path / "out"

    def pending(*texts: str) -> list[str]:
        listed.write_text("".join(f"{tmp_path}/{text}.tar\n" for text in texts))
        return [shard.name for shard in open_output(out, RECORD, plan_shards(f"@{listed}", output=out))]

    assert pending("a/0") == ["0"]
    run(out, plan_shards(f"@{listed}"))
    assert pending("a/0", "a/1") == ["1"]
    assert pending("a/1") == ["1"], "what is gone from the list stays done"
    with pytest.raises(OutputMismatch, match=r"holds 0, made of .*a/0\.tar, but .*b/0\.tar is to be 0 now"):
        pending("b/0")
    with pytest.raises(OutputMismatch, match=r"holds 0, made of .*a/0\.tar is to be a/0 now"):
        pending("a/0", "b/0")


def test_a_list_of_the_same_files_by_other_paths_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("in/0", "in/1"):
        make_tar(tmp_path / f"{text}.tar", ["a8"])
    (tmp_path / "link").symlink_to("in")
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("in/0.tar\n")
    shards = plan_shards(f"@{listed}")
    open_output(out, RECORD, shards)
    run(out, shards)
    for folder in ("in", "./in", str(tmp_path / "in"), "link"):
        listed.write_text(f"{folder}/0.tar\n{folder}/1.tar\n")
        assert [shard.name for shard in open_output(out, RECORD, plan_shards(f"@{listed}"))] == ["1"]


@pytest.mark.parametrize("folder", ["shards", "shards/deeper", "scores", "stats", "quarantine"])
def test_an_input_where_the_outputs_files_go_is_refused_and_stays(tmp_path: Path, folder: str) -> None:
    """`data/shards/00000.tar` with `--output data` would be replaced by its own kept samples."""
    make_tar(tmp_path / folder / "00000.tar", ["a1", "a8"])
    before = tree(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / folder)
    for given in (tmp_path / folder, tmp_path / "link"):
        with pytest.raises(OutputMismatch, match="puts its own files, which would replace it"):
            open_output(tmp_path, RECORD, plan_shards(str(given), output=tmp_path))
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == before


def test_scores_beside_their_shards_replace_nothing_but_a_cut_there_would(tmp_path: Path) -> None:
    """`score --input data/shards --output data` goes on; --keep-top there is refused before it scores."""
    make_tar(tmp_path / "shards" / "00000.tar", ["a1", "a8"])
    shards = plan_shards(str(tmp_path / "shards"), output=tmp_path)
    scores = {**RECORD, "config": {"scores_only": True}}
    assert open_output(tmp_path, scores, shards) == shards
    half = {**RECORD, "config": {"scores_only": True, "part_of": str(tmp_path)}}
    with pytest.raises(OutputMismatch, match="puts its own files, which would replace it"):
        open_output(tmp_path / "scored", half, shards)
    with pytest.raises(OutputMismatch, match="puts its own files, which would replace it"):
        open_output(tmp_path, RECORD, shards)


def test_an_input_beside_the_outputs_folders_is_none_of_them(tmp_path: Path) -> None:
    make_tar(tmp_path / "shards-raw" / "00000.tar", ["a8"])
    (tmp_path / "shards").mkdir()
    shards = plan_shards(str(tmp_path / "shards-raw"), output=tmp_path)
    assert open_output(tmp_path, RECORD, shards) == shards


LEAVE_A_TEMPORARY = """
import os, sys
from pathlib import Path
from dali_aesthetic.write.files import temporary_path
path = temporary_path(Path(sys.argv[1]))
path.write_text("half")
print(path, flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
os._exit(9)
"""


def test_temporary_files_of_dead_processes_are_removed_and_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder in ("shards/nested", "scores", "stats"):
        (out / folder).mkdir(parents=True)
    command = [sys.executable, "-c", LEAVE_A_TEMPORARY]
    dead = []
    for place in ("shards/nested/a.tar", "stats/a.json", "run.json"):
        made = subprocess.run([*command, str(out / place), "die"], capture_output=True, text=True)
        dead.append(Path(made.stdout.strip()))
    with subprocess.Popen(
        [*command, str(out / "scores/b.parquet"), "wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        living = Path(process.stdout.readline().strip())
        own = temporary_path(out / "shards/c.tar")
        own.write_text("half")
        user = out / "shards" / ".tmp-mine"
        user.write_text("not ours")
        assert all(path.exists() for path in [*dead, living, own])
        assert clean_leftovers(out) == 3
        assert [path.exists() for path in dead] == [False] * 3
        assert [path.exists() for path in (living, own, user)] == [True] * 3
        process.communicate("")
    assert clean_leftovers(out) == 1
    assert not living.exists()


def test_temporary_files_of_another_host_are_removed_after_a_day(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    own = temporary_path(tmp_path / "shards/a.tar").name.split("-")
    other = tmp_path / "shards" / "-".join([own[0], "elsewhere.1", *own[2:]])
    other.write_text("half")
    assert clean_leftovers(tmp_path) == 0
    long_ago = time.time() - 25 * 3600
    os.utime(other, (long_ago, long_ago))
    assert clean_leftovers(tmp_path) == 1


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    name = temporary_path(tmp_path / "shards/a.tar").name
    parts = name.split("-")
    before = tmp_path / "shards" / "-".join([*parts[:3], "1", *parts[4:]])
    before.write_text("half")
    assert clean_leftovers(tmp_path) == 1


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="/out'"):
        open_output(tmp_path / "out", RECORD, [])


def test_warnings_and_damage_of_shards_done_before_are_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [Shard(index=n, name=f"{n}", kind="tar", source=f"{n}.tar") for n in range(9)]
    (tmp_path / "stats").mkdir()
    for n in (0, 3, 4, 8):
        stats = {
            "warnings": ["odd: 2 (first: 'a')"] if n else [],
            "damage": "byte 512: cut" if n == 8 else "",
        }
        (tmp_path / "stats" / f"{n}.json").write_text(json.dumps(stats))
    (tmp_path / "stats" / "5.json").write_text("torn")
    left = [shard for shard in shards if shard.index in (1, 2, 6, 7)]

    def told_of(left: Sequence[Shard]) -> list[tuple[str, list[str]]]:
        reports = earlier_reports(tmp_path, shards, left)
        return [(report.source, list(report.warnings)) for report in reports]

    told = told_of(left)
    odd = ["odd: 2 (first: 'a')"]
    assert told == [
        *(("0.tar", []), ("3.tar", odd), ("4.tar", odd), ("5.tar", [])),
        ("8.tar", [*odd, "damaged: byte 512: cut"]),
    ]
    assert told_of(shards) == []
    monkeypatch.setattr(output_module, "_MOST_STATS", 2)
    more = ["shards done before whose warnings `verify` shows: 3"]
    assert told_of(left) == [*told[:2], (str(tmp_path), more)]
