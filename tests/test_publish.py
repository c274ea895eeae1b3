"""An output goes to the Hub whole, in as many calls as it takes, and loaders open it from there."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.publish import CARD, MARK, PushFailed, make_card, push
from dali_aesthetic.types import Status
from tests.hub import Hub, serving
from tests.report.outputs import Item, default_record, make_output

NAN = float("nan")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        # Its protocol is a service of its own; the Hub takes both.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", found.token)
        yield found


@pytest.fixture
def output(tmp_path: Path) -> Path:
    shards = {
        f"{s}": [Item(f"{s}{i:03d}", 4.0 + i / 8, json={"lang": "en"}) for i in range(16)]
        + [Item(f"bad{s}", NAN, Status.EMPTY, "no bytes")]
        for s in range(3)
    }
    record = default_record(5.0, ["laion-v2"])
    record["config"]["input"] = [str(tmp_path / "in")]
    return make_output(tmp_path, shards, record=record)


def test_kept_samples_scores_and_a_card_are_pushed_and_nothing_that_tells_of_the_machine(
    hub: Hub, output: Path
) -> None:
    (output / "shards" / ".tmp-left").write_bytes(b"x")
    assert push(output, "me/good") == f"{hub.url}/datasets/me/good"
    files = hub.repos["me/good"]
    wanted = {
        f"{folder}/{s}.{kind}" for folder, kind in (("shards", "tar"), ("scores", "parquet")) for s in "012"
    }
    assert set(files) == {CARD, *wanted}
    assert all(files[name] == (output / name).read_bytes() for name in wanted)
    assert str(output.parent) not in files[CARD].decode()


def test_an_upload_that_stops_goes_on_where_it_stopped(hub: Hub, output: Path) -> None:
    hub.room = 2
    with pytest.raises(PushFailed, match="the same command goes on"):
        push(output, "me/good")
    assert hub.repos["me/good"] == {}
    hub.room = 1000
    push(output, "me/good")
    assert len(hub.puts) == len(set(hub.puts)) == 6, "nothing twice"
    before = dict(hub.repos["me/good"])
    push(output, "me/good")
    assert len(hub.puts) == 6
    assert hub.repos["me/good"] == before


def test_the_card_has_counts_cut_and_histogram(output: Path) -> None:
    card = make_card(output, "me/good")
    for part in (
        "| samples | 51 |", "| scored | 48 |", "| empty | 3 |", "| cut (raw score) | >= 5 |",
        "| kept | 24 (50.0%) |", "| encoder | ViT-L-14 |", "sha256 abab",
        'load_dataset("me/good", split="train"', "█",
    ):  # fmt: skip
        assert part in card, part
    counts = [int(number) for number in re.findall(r"^ *[\d.]+  █* +(\d+)$", card, re.MULTILINE)]
    assert sum(counts) == 48
    front = yaml.safe_load(card.split("---")[1])
    assert front["size_categories"] == ["n<1K"]


def test_the_card_counts_all_samples_beside_a_condition(output: Path) -> None:
    record = json.loads((output / "run.json").read_text())
    record["identity"] |= {"min_raw": None, "where": "key LIKE '0%'\n OR text = 'a|`'"}
    (output / "run.json").write_text(json.dumps(record))
    card = make_card(output, "me/good")
    for part in (
        "| scored | 48 |",
        "| kept | 24 (50.0%) |",
        r"| where | `` key LIKE '0%' OR text = 'a\|`' `` |",
    ):
        assert part in card, part
    assert "cut (raw score)" not in card, "there was none"
    counts = [int(number) for number in re.findall(r"^ *[\d.]+  █* +(\d+)$", card, re.MULTILINE)]
    assert sum(counts) == 48


def test_a_card_that_someone_wrote_stays(hub: Hub, output: Path) -> None:
    push(output, "me/good")
    made = (output / CARD).read_text()
    assert MARK in made
    (output / CARD).write_text("mine")
    push(output, "me/good")
    assert hub.repos["me/good"][CARD] == b"mine"


def test_datasets_opens_what_was_pushed(hub: Hub, output: Path, tmp_path: Path) -> None:
    import datasets

    push(output, "me/good")
    folder = str(hub.download("me/good", tmp_path / "down"))
    kept = list(datasets.load_dataset(folder, split="train", streaming=True))
    with tarfile.open(output / "shards" / "0.tar") as tar:
        names = [name.removesuffix(".jpg") for name in tar.getnames() if name.endswith(".jpg")]
    assert [row["__key__"] for row in kept][: len(names)] == names
    assert len(kept) == 24
    assert kept[0]["jpg"].size == (64, 48)
    (files,) = re.findall(r'data_files="hf://datasets/me/good/(.*?)"', (Path(folder) / CARD).read_text())
    scores = datasets.load_dataset(
        "parquet", data_files=f"{folder}/{files}", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert scores.num_rows == 51
    assert sum(scores["kept"]) == 24


def test_scores_alone_are_a_data_set_of_rows(hub: Hub, tmp_path: Path) -> None:
    record = default_record(5.0, ["laion-v2"])
    record["identity"]["min_raw"] = None
    record["config"] |= {"input": [str(tmp_path / "in")], "scores_only": True}
    output = make_output(tmp_path, {"0": [Item("a", 4.0)]}, record=record)
    (output / "shards" / "0.tar").unlink()
    assert "cut (raw" not in make_card(output, "me/scores")
    push(output, "me/scores")
    assert set(hub.repos["me/scores"]) == {CARD, "scores/0.parquet"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repo": "good"}, "USER/NAME"),
        ({"repo": "me/good/er"}, "USER/NAME"),
        ({"repo": "me/go od"}, "--repo 'me/go od': Repo id must use"),
        ({"output": "s3://bucket/kept"}, "no URL"),
        ({"output": "nothing"}, "not the output of a run"),
    ],
)
def test_what_cannot_be_pushed_is_an_error_at_once(
    output: Path, change: dict[str, str], message: str
) -> None:
    given: dict[str, Any] = {"output": str(output), "repo": "me/good"} | change
    done = CliRunner().invoke(app, ["push", given["output"], "--repo", given["repo"]])
    assert done.exit_code == 2
    assert message in done.output


def test_an_unfinished_run_is_pushed_only_if_asked(hub: Hub, output: Path) -> None:
    (output / "stats" / "1.json").unlink()
    done = CliRunner().invoke(app, ["push", str(output), "--repo", "me/good"])
    assert done.exit_code == 2
    assert "not finished" in done.output
    words = ["push", str(output), "--repo", "me/good", "--allow-unfinished", "--private", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"url": f"{hub.url}/datasets/me/good"}
    assert hub.private == {"me/good": True}


def test_a_wrong_token_is_told(hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    done = CliRunner().invoke(app, ["push", str(output), "--repo", "me/good"])
    assert done.exit_code == 1
    assert "HF_TOKEN" in done.output
