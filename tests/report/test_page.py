"""The report page: complete, self-contained, safe against its data, at a URL and by the command."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.report.page import (
    embedded,
    number,
    percent,
    recut_command,
    report_at,
    shortest,
    write_report,
)
from dali_aesthetic.types import Status
from tests.docs.commands import Command, check
from tests.report.outputs import Item, default_record, make_output
from tests.stores.fixtures import bucket, s3_server
from tests.stores.s3 import Bucket

__all__ = ["bucket", "s3_server"]

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    found: dict[str, Any] = json.loads(match[1])
    return found


def test_a_condition_is_on_the_page_and_in_its_command(tmp_path: Path) -> None:
    shards = {"0": [Item(f"k{i}", i / 2, json={"lang": "<b>" if i % 2 else "de"}) for i in range(20)]}
    output = make_output(tmp_path, shards)
    words = ["report", str(output), "--where", "lang = '<b>' AND width > 5"]
    assert CliRunner().invoke(app, words).exit_code == 0
    page = (output / "report.html").read_text()
    text = " ".join(Elements(page).text.split())
    assert "20 scored by laion-v2, 10 of them where lang = '<b>' AND width > 5" in text
    rows = (
        ("aesthetic_score>=5", 10, "50.0%", 10, 10),
        ("lang='<b>'", 10, "50.0%", 5, 5),
        ("width>5", 0, "0%", 0, 5),
    )
    assert "".join(str(cell) for row in rows for cell in row) in text.replace(" ", "")
    assert shlex.split(data_of(page)["command"][1])[-2:] == ["--where", "lang = '<b>' AND width > 5"]
    assert data_of(page)["total"] == 10
    assert CliRunner().invoke(app, [*words[:3], "width > 5000"]).exit_code == 0
    assert CliRunner().invoke(app, [*words[:3], "hight > 5"]).exit_code == 2


@pytest.fixture
def nasty(tmp_path: Path) -> str:
    """A page of an output in which every text is hostile markup."""
    items = [Item(f"k{i}", 4.0 + i / 8, json={"lang": NASTY}) for i in range(9)]
    items += [Item(f"{NASTY.replace('/', '')}", NAN, Status.UNDECODABLE, NASTY)]
    items += [Item("<b>shown", 6.5)]
    record = default_record(5.0, ["laion-v2", NASTY])
    record["config"]["model"]["encoder"] = NASTY
    record["environment"]["gpu"] = NASTY
    output = make_output(tmp_path, {"<i>0": items}, heads=("laion-v2", "<u>"), record=record)
    return write_report(output, by="lang").read_text()


NAN = math.nan


def test_nothing_in_the_data_becomes_markup(nasty: str) -> None:
    elements = Elements(nasty)
    assert len(elements.of("script")) == 3
    assert not [a for _, a in elements.found if any(name.startswith("on") for name in a)]
    assert not [tag for tag, _ in elements.found if tag == "i" or tag == "u"]
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in elements.of("img"))
    assert elements.text.count("<script>alert(1)</script>") >= 3
    assert data_of(nasty)["groups"][0]["name"].startswith("</script>")


def test_it_loads_nothing_and_only_its_own_scripts_may_run(nasty: str) -> None:
    elements = Elements(nasty)
    assert not [
        a for tag, a in elements.found if tag in ("script", "img", "iframe") and "http" in str(a.get("src"))
    ]
    assert [link["href"] for link in elements.of("link")] == ["data:,"]
    policy = next(meta["content"] for meta in elements.of("meta") if "http-equiv" in meta)
    assert policy is not None
    assert "default-src 'none'" in policy
    script = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert script.count("'sha256-") == 2
    assert "unsafe" not in script


def test_every_section_is_there(tmp_path: Path) -> None:
    items = [Item(f"k{i}", 4.0 + i / 8) for i in range(16)] + [Item("bad", NAN, Status.EMPTY, "no bytes")]
    output = make_output(tmp_path, {"0": items})
    line = {"run": 1.0, "process": 1, "samples": 17, "seconds": 2.0, "work": {"decode": 1.0}}
    (output / "timing.jsonl").write_text(json.dumps(line) + "\n")
    text = " ".join(Elements(write_report(output).read_text()).text.split())
    for part in (
        "17 samples in 1 shard ", "16 scored by laion-v2", "1 not scored", "Presets", "Quantiles",
        "Pictures by score", "no bytes", "8.5 images/s", "What the score is not", "It bunches around 5",
        "The Algorithmic Gaze", "clip (sha256 abab", "weights: openai",
    ):  # fmt: skip
        assert part in text, part


def test_the_runs_warnings_are_listed(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": [Item("k", 4.0)], "1": [Item("l", 4.0)]})
    for name in "01":
        path = output / "stats" / f"{name}.json"
        stats = json.loads(path.read_bytes()) | {"warnings": ["links left out: 2 (first: '<b>.jpg')"]}
        path.write_text(json.dumps(stats))
    text = " ".join(Elements(write_report(output).read_text()).text.split())
    assert "links left out: 4 in 2 shards, first in 0 (first: '<b>.jpg')" in text


def test_what_a_killed_report_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": [Item("a", 5.0)]})
    for name, age in ((".report.html.1.tmp", 7200), (".report.html.2.tmp", 0)):
        (output / name).touch()
        os.utime(output / name, (time.time() - age,) * 2)
    write_report(output)
    assert [path.name for path in output.glob(".*.tmp")] == [".report.html.2.tmp"]


def test_speed_is_left_out_where_no_times_were_written(tmp_path: Path) -> None:
    page = write_report(make_output(tmp_path, {"0": [Item("a", 5.0)]})).read_text()
    assert 'id="speed"' not in page


def test_presets_are_shown_for_their_own_head_only(tmp_path: Path) -> None:
    items = [Item("a", 5.0), Item("b", 6.0)]
    own = write_report(make_output(tmp_path / "v2", {"0": items})).read_text()
    other = write_report(make_output(tmp_path / "v1", {"0": items}, heads=("laion-v1",))).read_text()
    assert "25.3%" in own
    assert "25.3%" not in other
    assert len(data_of(own)["presets"]) == 10
    assert data_of(other)["presets"] == []
    assert "Presets" not in Elements(other).text


def test_nothing_is_shown_that_means_nothing(tmp_path: Path) -> None:
    record = default_record(5.0, ["random:0"])
    record["weights"] = record["identity"]["weights"] = [{"name": "random:0", "sha256": ""}]
    items = [Item(f"k{i}", 4.0 + i / 8) for i in range(16)]
    output = make_output(tmp_path, {"0": items}, heads=("random:0",), record=record)
    line = {"run": 1.0, "process": 1, "samples": 16, "seconds": 2.0, "work": {"decode": 1.0}}
    (output / "timing.jsonl").write_text(json.dumps(line) + "\n")
    page = Elements(write_report(output).read_text())
    run = page.text.partition("The run")[2].partition("All options")[0]
    assert "encoderViT-L-14" in run
    for nothing in ("sha256", "min_raw", "_"):
        assert nothing not in run, nothing
    ids = {attributes.get("id") for _, attributes in page.found}
    assert "histogram" in ids
    assert not ids & {"shards", "shard-means", "bad", "rate"}, "of one shard, no bad sample, two seconds"
    assert "LAION" not in page.text, "another head"


def test_a_run_of_many_shards_has_a_chart_of_them(tmp_path: Path) -> None:
    output = make_output(tmp_path, {str(s): [Item(f"k{s}", 4.0 + s / 8)] for s in range(5)})
    assert 'id="shard-means"' in write_report(output).read_text()


def test_each_picture_links_to_its_file(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": [Item("a", 4.5), Item("b #1", 5.5)]})
    tar = tmp_path / "in" / "0.tar"
    page = Elements(write_report(output).read_text())
    links = {link["href"] for link in page.of("a") if str(link["href"]).startswith("file:")}
    assert links == {tar.as_uri()}
    assert "0.tar" in page.text
    assert "byte 0" in page.text
    tar.unlink()
    page = Elements(write_report(output).read_text())
    links = {link["href"] for link in page.of("a") if str(link["href"]).startswith("file:")}
    assert links == {(output / "shards" / "0.tar").as_uri()}, "of the kept shard, where the source is gone"


def test_scores_alone_of_another_head_are_cut_in_their_middle(tmp_path: Path) -> None:
    record = default_record(5.0, ["nsfw"])
    record["identity"] |= {"min_raw": None}
    output = make_output(
        tmp_path, {"0": [Item(f"k{i}", i / 10) for i in range(11)]}, heads=("nsfw",), record=record
    )
    data = data_of(write_report(output).read_text())
    assert data["edges"][data["start"]] == 0.5
    assert data["atLeast"][data["start"]] == 6


@pytest.mark.parametrize(
    ("identity", "config", "expected"),
    [
        ({"input": ["a b"]}, {}, "dali-aesthetic filter | --input 'a b' --scores O --output O-cut"),
        (
            {"input": ["a"]},
            {"image_column": "im", "columns": ["n:int", "m"], "follow_links": True},
            "dali-aesthetic filter | --input a --scores O --output O-cut --image-column im --columns n:int,m"
            " --follow-links",
        ),
        (
            {"packed": {}, "run": {"input": ["a"]}},
            {"packed_from": "runs/x/"},
            "dali-aesthetic filter | --input a --scores runs/x --output runs/x-cut",
        ),
        (
            {"input": ["e"], "input_kind": "embeddings"},
            {},
            "dali-aesthetic select | --scores O > keys.txt",
        ),
    ],
    ids=["run", "options", "packed", "embeddings"],
)
def test_the_command_cuts_what_the_page_shows(
    identity: dict[str, Any], config: dict[str, Any], expected: str
) -> None:
    record = {"identity": identity, "config": config}
    assert " | ".join(recut_command(record, "O")) == expected
    words = [*shlex.split(expected.partition(" > ")[0].replace(" | ", " "))[1:], "--raw-threshold", "5"]
    check(Command(("dali-aesthetic", *words), 0))


def test_random_weights_are_called_so(tmp_path: Path) -> None:
    record = default_record(5.0, ["laion-v2"])
    record["config"]["model"]["weights"] = "random:1"
    page = write_report(make_output(tmp_path, {"0": [Item("a", 5.0)]}, record=record)).read_text()
    assert "mean nothing" in page


def test_what_scored_is_told_after_filter_and_compact_too(tmp_path: Path) -> None:
    scored_by = {"heads": ["laion-v2"], "weights": [{"name": "random:1", "sha256": ""}]}
    filtered = {"min_raw": 5.0, "scored_by": scored_by}
    for which, identity in enumerate((filtered, {"packed": {}, "run": filtered})):
        record = default_record(5.0, ["laion-v2"]) | {"identity": identity}
        output = make_output(tmp_path / str(which), {"0": [Item("a", 5.0)]}, record=record)
        page = write_report(output).read_text()
        assert "scored by <b>laion-v2</b>" in page
        assert "Random weights." in page
        assert '<th class="n">of LAION-2B-en</th>' in page


@pytest.mark.parametrize(
    "items",
    [
        [Item("a", NAN, Status.EMPTY, "no bytes")],
        [Item("a", 1.0)],
        [Item("a", 5.0), Item("b", 5.0)],
        [],
    ],
    ids=["bad only", "none kept", "one value", "no sample"],
)
def test_a_page_is_written_for_every_shape_of_run(tmp_path: Path, items: list[Item]) -> None:
    page = write_report(make_output(tmp_path, {"0": items})).read_text()
    scored = sum(item.score == item.score for item in items)
    assert data_of(page)["total"] == scored
    assert ('id="slider"' in page) == (scored > 0)


def test_the_page_goes_where_it_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": [Item("a", 5.0)]})
    before = set(output.rglob("*"))
    target = write_report(output, html=tmp_path / "new" / "page.html")
    assert target.read_text().startswith("<!doctype html>")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert set(output.rglob("*")) == before


def test_the_page_does_not_grow_with_the_data(tmp_path: Path) -> None:
    small = make_output(tmp_path / "a", {"0": [Item(f"k{i}", 4 + i % 90 / 30) for i in range(200)]})
    large = make_output(tmp_path / "b", {"0": [Item(f"k{i}", 4 + i % 90 / 30) for i in range(2000)]})
    sizes = [len(write_report(output).read_bytes()) for output in (small, large)]
    assert sizes[1] < sizes[0] + 20_000


def test_no_odd_text_ends_the_embedded_data() -> None:
    text = str(embedded({"a": "</script>&\u2028"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script>&\u2028"}


def test_numbers_are_written_for_people() -> None:
    assert [percent(s) for s in (None, 0.0, 1.0, 0.253, 0.0051, 0.00026)] == [
        "-", "0%", "100%", "25.3%", "0.51%", "0.026%",
    ]  # fmt: skip
    assert [number(n) for n in (None, math.nan, 1234, 1.5)] == ["-", "-", "1,234", "1.500"]
    assert [shortest(cut) for cut in (5.0, 5.123)] == ["5", "5.123"]


def test_at_a_url_the_page_is_titled_after_the_folder(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put_folder(make_output(tmp_path, {"0": [Item("a", 5.0)]}), "runs/kept")
    assert report_at(f"{bucket.url}/runs/kept/") == f"{bucket.url}/runs/kept/report.html"
    page = bucket.snapshot("runs/kept")["report.html"].decode()
    assert "<title>kept · aesthetic scores</title>" in page
    assert report_at(f"{bucket.url}/runs/kept") == f"{bucket.url}/runs/kept/report.html"
    assert bucket.snapshot("runs/kept")["report.html"].decode() == page, "the same scores give the same page"


def test_the_command_prints_the_path_of_the_page(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": [Item("a", 5.0, json={"lang": "en"})]})
    done = CliRunner().invoke(app, ["report", str(output), "--by", "lang"])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(output / "report.html")
    assert "Keep rate by lang" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--by", "nothing"], "no such column"), (["--by", "key"], None)],
)
def test_a_column_must_be_there(tmp_path: Path, arguments: list[str], message: str | None) -> None:
    output = make_output(tmp_path, {"0": [Item("a", 5.0)]})
    done = CliRunner().invoke(app, ["report", str(output), *arguments])
    assert done.exit_code == (2 if message else 0)
    assert (message or "") in done.output
    assert (output / "report.html").exists() == (message is None)


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "no committed shard" in done.output
