"""The report page: one self-contained HTML file that loads nothing. Its script gets counts, never scores."""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dali_aesthetic import layout
from dali_aesthetic.predicate import Bound
from dali_aesthetic.report.distribution import Distribution, decimal
from dali_aesthetic.report.pictures import Picks, Thumbnail, Thumbnails
from dali_aesthetic.report.rows import FIRST_HEAD, recorded_heads
from dali_aesthetic.report.survey import FEWEST_SHARDS, Outlier, ShardFigures, Survey, find_outliers, survey
from dali_aesthetic.stores.access import Uploader, mirrored
from dali_aesthetic.stores.location import is_url, join
from dali_aesthetic.threshold import PRESETS, RAW_PER_UNIT
from dali_aesthetic.timing import Speed, clock, read_speed

NONE = "-"
LAION_HEAD = "laion-v2"
MOST_POINTS = 1500
_WRITTEN_WITHIN = 3600
"""Seconds within which a page that is being written is complete."""
FEWEST_BINS = 3
"""With fewer, the speed over time is no chart."""


def write_report(
    output: str | Path,
    *,
    html: str | Path | None = None,
    by: str | None = None,
    where: str | None = None,
    title: str | None = None,
    location: str | None = None,
) -> Path:
    """Writes a page about the run in the folder `output` and returns its path.

    `html` is the file to write (default: report.html in `output`), `by` a column of the scores for which keep
    rates are broken down, `where` a condition on the samples (default: the run's own), `title` the page's
    title (default: the name of the folder), `location` where the scores are for a command, if `output` is a
    copy. Pictures come from the kept shards and, if still there, from the sources. Raises `NothingToReport`,
    a ValueError, where `output` has no committed shard or no such column.
    """
    root = Path(output)
    target = Path(html) if html is not None else root / layout.REPORT
    page = render(root, survey(root, by, where), title or root.resolve().name, location or str(output))
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):  # by a report that was killed
        if time.time() - left.stat().st_mtime > _WRITTEN_WITHIN:
            left.unlink(missing_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def report_at(
    output: str | Path, html: Path | None = None, by: str | None = None, where: str | None = None
) -> str:
    """As `write_report`, for a folder or a URL; returns the location of the page.

    At a URL it is made from a local copy of stats and scores, with pictures from the sources alone.
    """
    if isinstance(output, Path) or not is_url(output):
        return str(write_report(output, html=html, by=by, where=where))
    kinds = (layout.stats_file, layout.scores_file)
    files = (file(name) for name in sorted(layout.committed_names(output)) for file in kinds)
    with mirrored(output, [layout.RECORD, *files]) as root:
        # The name of the copy is a random one.
        title = output.rstrip("/").rpartition("/")[2]
        page = write_report(root, html=html, by=by, where=where, title=title, location=output)
        if html is not None:
            return str(page)
        Uploader(output).put(layout.REPORT, page)
        return join(output, layout.REPORT)


def render(output: Path, found: Survey, title: str, location: str) -> str:
    scripts = [Markup(get_plotlyjs()), Markup(_asset("page.js"))]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(percent=percent, number=number, shortest=shortest, clock=clock)
    template = environment.from_string(_asset("page.html.j2"))
    return template.render(
        style=Markup(_asset("page.css")),
        scripts=scripts,
        script_hashes=[_hash(script) for script in scripts],
        title=title,
        **_values(output, found, location),
    )


def _values(output: Path, found: Survey, location: str) -> dict[str, Any]:
    heads = _heads(found)
    outliers = find_outliers(found.shards)
    speed = read_speed(output)
    data: dict[str, Any] = threshold_data(found, heads)
    data["shards"] = shard_points(found.shards, outliers)
    data["speed"] = speed_points(speed) if speed else None
    data["command"] = recut_command(found.record, location, found.where)
    data["otherHeads"] = [bars(one) for column, one in found.heads.items() if column != FIRST_HEAD]
    bounds = [one for one in (found.funnel.bounds if found.funnel else ()) if one[1].total]
    data["otherHeads"] += [{**bars(values), "axis": bound.value} for bound, values, _ in bounds]
    return {
        "data": embedded(data),
        "command": data["command"],
        "survey": found,
        "head": heads[0],
        "heads": list(zip(heads, found.heads.values(), strict=True)),
        "presets": data["presets"],
        "upper_start": upper_start(found),
        "outliers": outliers,
        "has_shard_chart": len(found.shards) >= FEWEST_SHARDS,
        "has_rate_chart": speed is not None and len(speed.rates) >= FEWEST_BINS,
        "warnings": found.warnings.lines(),
        "damaged": [shard for shard in found.shards if shard.damage],
        "speed": speed,
        "random_weights": _random_weights(found.record),
        "facts": run_facts(found.record),
        "config": yaml.safe_dump(found.record.get(layout.CONFIG, {}), sort_keys=False, allow_unicode=True),
        **_pictures(output, found, [(bound, picks) for bound, _, picks in bounds]),
    }


def _pictures(output: Path, found: Survey, bounds: Sequence[tuple[Bound, Picks]]) -> dict[str, Any]:
    upright = bool(layout.scored_by(found.record).get("apply_exif"))
    pictures = Thumbnails(output, upright=upright)
    bands, at_cut = found.picks.bands(), found.picks.at_cut()
    # Samples at the cut first: they matter most if the size limit is reached.
    pictures.make([*at_cut, *(pick for _, _, picks in bands for pick in picks)])
    pictures.make(pick for _, picks in bounds for side in picks.sides() for pick in side)
    counts = found.first.between(found.first.grid.bands)[::-1]
    return {
        "bands": [
            (low, high, count, pictures.of(picks))
            for (low, high, picks), count in zip(bands, (c for c in counts if c), strict=True)
        ],
        "at_cut": pictures.of(at_cut),
        "bounds": [(bound, _sides(bound, picks, pictures)) for bound, picks in bounds],
        "missing": pictures.missing.most_common(6),
        "num_missing": pictures.missing.total(),
    }


def _sides(bound: Bound, picks: Picks, pictures: Thumbnails) -> list[list[tuple[Thumbnail, float]]]:
    """Pictures with their values: those just inside of the bound, and those just outside."""
    below, above = (
        [(thumbnail, pick.value) for pick in side for thumbnail in pictures.of([pick])]
        for side in picks.sides()
    )
    return [above, below] if bound.keeps_above else [below, above]


def recut_command(record: dict[str, Any], location: str, where: str = "") -> list[str]:
    """The command that cuts these scores again, in two parts: the bounds belong between them."""
    words = layout.recut_words(record, location) if record else []
    words += ["--where", where] if words and where else []
    end = " > keys.txt" if words[1:2] == ["select"] else ""
    return [shlex.join(words[:2]), shlex.join(words[2:]) + end] if words else []


def run_facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader may ask of a run, as (what, answer) pairs, without what the record doesn't tell."""
    by, environment = layout.scored_by(record), record.get("environment", {})
    weights = [
        f"{file.get('name', '')} (sha256 {file['sha256']})" if file.get("sha256") else file.get("name", "")
        for file in record.get("weights") or by.get("weights", [])
    ]
    how = ", ".join(str(by[name]) for name in ("precision", "backend") if by.get(name))
    packages = {"dali_aesthetic": environment.get("dali_aesthetic"), "Python": environment.get("python")}
    packages |= environment.get("packages", {})
    facts = {
        "input": "\n".join(map(str, by.get("input", []))),
        "encoder": str(by.get("encoder", "")),
        "heads": ", ".join(map(str, by.get("heads", []))),
        "weights": "\n".join(map(str, weights)),
        "computed on": str(environment.get("gpu") or ("the CPU" if by.get("device") == "cpu" else "")),
        "computed in": how,
        "EXIF orientation": {True: "applied", False: "ignored"}.get(by.get("apply_exif", ""), ""),
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    }
    return [(what, answer) for what, answer in facts.items() if answer]


def _heads(found: Survey) -> list[str]:
    """The names of the heads, from the record or else from the columns."""
    names = recorded_heads(found.record)
    if len(names) == len(found.heads):
        return names
    return [column.removeprefix(f"{FIRST_HEAD}_") for column in found.heads]


def _random_weights(record: dict[str, Any]) -> bool:
    """Whether a part of the model had random weights, so that the scores mean nothing."""
    model = record.get(layout.CONFIG, {}).get("model", {})
    files = [file.get("name") for file in layout.scored_by(record).get("weights", [])]
    used = [model.get("weights"), *(model.get("heads") or []), *files]
    return any(str(name).partition(":")[0] == "random" for name in used)


def embedded(data: Any) -> Markup:
    """`data` as JSON that is safe inside a script element, whatever strings it holds."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _hash(script: str) -> str:
    """The hash of a script for the content security policy, under which no other script runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


def percent(share: float | None) -> str:
    """A share as a percentage with two or three significant digits; a dash for None."""
    if share is None or share != share:
        return NONE
    value = 100 * share
    if value == 0 or value >= 99.995:
        return f"{value:.0f}%"
    return f"{value:.1f}%" if value >= 10 else f"{value:.2g}%"


def number(value: float | None) -> str:
    """An integer with separators, a float with three decimals, a dash for None."""
    if value is None or value != value:
        return NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def shortest(value: float) -> str:
    """A threshold in the fewest digits that parse to the same float32."""
    return str(decimal(value)).removesuffix(".0")


def threshold_data(survey: Survey, heads: Sequence[str]) -> dict[str, Any]:
    """Edges, cumulative counts, bars, presets and groups of the deciding head."""
    first = survey.first
    return {
        "edges": [decimal(edge) for edge in first.grid.edges_E],
        "atLeast": first.at_least().tolist(),
        "above": first.above().tolist(),
        "total": first.total,
        "start": first.grid.index(survey.cut),
        "startUpper": upper_start(survey),
        "cut": decimal(survey.cut),
        "bars": bars(first),
        "presets": preset_rows(first, heads[0]),
        "groups": [
            {
                "name": name,
                "total": one.total,
                "atLeast": one.at_least().tolist(),
                "above": one.above().tolist(),
            }
            for name, one in (survey.groups.distributions() if survey.groups else [])
        ],
    }


def upper_start(survey: Survey) -> int:
    """The edge of the run's upper bound; without one the last edge, which excludes nothing."""
    grid = survey.first.grid
    last = len(grid.edges_E) - 1
    return last if survey.upper is None or survey.upper >= grid.edges_E[-1] else grid.index(survey.upper)


def bars(distribution: Distribution) -> dict[str, Any]:
    """The histogram: edges (one more than counts) and counts, without empty ends."""
    edges = distribution.grid.bars
    counts = distribution.between(edges)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return {"edges": [], "counts": []}
    low, high = int(filled[0]), int(filled[-1]) + 1
    return {"edges": [decimal(edge) for edge in edges[low : high + 1]], "counts": counts[low:high]}


def preset_rows(distribution: Distribution, head: str) -> list[dict[str, Any]]:
    """Every preset in rising order with its share here and of LAION-2B-en; none for another head than theirs,
    whose scale they don't fit."""
    if head != LAION_HEAD:
        return []
    rows = []
    for name, preset in sorted(PRESETS.items(), key=lambda one: one[1].raw):
        kept = distribution.kept_at(preset.raw)
        share = kept / distribution.total if kept is not None and distribution.total else None
        rows.append(
            {
                "name": name,
                "raw": preset.raw,
                "unit": preset.raw / RAW_PER_UNIT,
                "kept": kept,
                "share": share,
                "laion": preset.laion_share,
            }
        )
    return rows


def shard_points(shards: Sequence[ShardFigures], outliers: Sequence[Outlier]) -> dict[str, Any]:
    """The mean score of each shard in name order; of very many only every n-th, and all outliers."""
    every = max(1, math.ceil(len(shards) / MOST_POINTS))
    odd = {outlier.shard.name for outlier in outliers}
    chosen = [
        (i, shard)
        for i, shard in enumerate(shards)
        if not math.isnan(shard.mean) and (i % every == 0 or shard.name in odd)
    ]
    return {
        "every": every,
        "index": [i for i, _ in chosen],
        "name": [shard.name for _, shard in chosen],
        "mean": [round(shard.mean, 4) for _, shard in chosen],
        "keep": [round(shard.keep_rate, 5) for _, shard in chosen],
        "bad": [round(shard.bad_share, 5) for _, shard in chosen],
        "odd": [shard.name in odd for _, shard in chosen],
    }


def speed_points(speed: Speed) -> dict[str, Any]:
    """Images per second by time bin, and the stage that bound each."""
    middles = [(i + 0.5) * speed.bin_seconds for i in range(len(speed.rates))]
    return {
        "seconds": [round(middle, 2) for middle in middles],
        "width": speed.bin_seconds,
        "rate": [round(rate, 2) for rate in speed.rates],
        "bound": speed.bound_by,
    }
