"""`score-embeddings`, and `score` given embeddings, from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner, Result

from dali_aesthetic.cli import app


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    np.save(tmp_path / "e.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    np.save(tmp_path / "raw.npy", rows)
    return tmp_path


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_both_commands_write_the_same_scores(embeddings: Path) -> None:
    given = ["--input", embeddings / "e.npy", "--head", "random:1"]
    assert _call("score-embeddings", *given, "--output", embeddings / "a").exit_code == 0
    assert _call("score", *given, "--output", embeddings / "b").exit_code == 0
    first, second = (pq.read_table(embeddings / name / "scores/e.parquet") for name in "ab")
    assert first.num_rows == 50
    assert first.equals(second)


def test_score_takes_a_list_of_embeddings_and_refuses_a_mixture(embeddings: Path) -> None:
    (embeddings / "list.txt").write_text(f"\ufeff# embeddings\n{embeddings}/e.npy\n")
    given = ["--output", embeddings / "out", "--head", "random:1"]
    assert _call("score", "--input", f"@{embeddings}/list.txt", *given).exit_code == 0
    assert pq.read_table(embeddings / "out/scores/e.parquet").num_rows == 50
    (embeddings / "a.tar").write_bytes(b"x")
    for texts in (("e.npy", "a.tar"), ("a.tar", "e.npy")):
        inputs = [part for text in texts for part in ("--input", embeddings / text)]
        refused = _call("score", *inputs, *given)
        assert refused.exit_code == 2
        assert "of one kind" in " ".join(refused.output.split())


def test_the_stored_scores_are_cut_by_select(embeddings: Path) -> None:
    _call("score-embeddings", "-i", embeddings / "e.npy", "-o", embeddings / "out", "--head", "random:1")
    scores = pq.read_table(embeddings / "out/scores/e.parquet")["aesthetic_score"].to_numpy()
    cut = _call("select", "--scores", embeddings / "out", "--keep-top", "20%")
    assert cut.exit_code == 0
    assert [int(key) for key in cut.stdout.split()] == sorted(np.argsort(-scores)[:10].tolist())
    half = _call("select", "--scores", embeddings / "out", "--where", "source_offset < 25 AND width IS NULL")
    assert [int(key) for key in half.stdout.split()] == list(range(25))


def test_score_is_as_quiet_as_asked_and_gives_json(embeddings: Path) -> None:
    given = ["score", "-i", embeddings / "e.npy", "--head", "random:1"]
    assert _call(*given, "-o", embeddings / "q", "--quiet").output == ""
    summary = json.loads(_call(*given, "-o", embeddings / "j", "--json").output)
    assert (summary["samples"], summary["committed"], summary["bad"]) == (50, 1, 0)


def test_options_without_effect_on_stored_embeddings_are_refused(embeddings: Path) -> None:
    given = ["score", "-i", embeddings / "e.npy", "-o", embeddings / "c", "--config", embeddings / "run.yaml"]
    refused = _call(*given)
    assert refused.exit_code == 2
    assert "--config is not read for stored embeddings" in refused.output
    for flag, value in (("--weights", "openai"), ("--device", "cpu"), ("--workers", "2")):
        refused = _call("score", "-i", embeddings / "e.npy", "-o", embeddings / "c", flag, value)
        assert refused.exit_code == 2
        assert f"{flag} is not read for stored embeddings" in refused.output


def test_a_wrong_threshold_has_the_message_of_run(embeddings: Path) -> None:
    given = ["score-embeddings", "-i", embeddings / "e.npy", "-o", embeddings / "out", "--head", "random:1"]
    wrong = _call(*given, "--threshold", 5)
    assert wrong.exit_code == 2
    assert wrong.output.startswith("error --threshold 5 is outside 0..1: did you mean --raw-threshold 5")
    assert "pydantic" not in wrong.output


def test_verify_checks_the_scores(embeddings: Path) -> None:
    _call("score-embeddings", "-i", embeddings / "e.npy", "-o", embeddings / "out", "--head", "random:1")
    right = _call("verify", embeddings / "out")
    assert right.exit_code == 0, right.output
    assert "1 shards, 50 samples" in right.output
    (embeddings / "out/scores/e.parquet").unlink()
    assert _call("verify", embeddings / "out").exit_code == 1


def test_wrong_norms_are_exit_2_and_say_what_to_do(embeddings: Path) -> None:
    given = ["-i", embeddings / "raw.npy", "-o", embeddings / "out", "--head", "random:1"]
    refused = _call("score-embeddings", *given)
    assert refused.exit_code == 2
    assert "--normalize" in refused.output
    assert _call("score-embeddings", *given, "--normalize").exit_code == 2  # another run is recorded there
    assert (
        _call("score-embeddings", *given[:2], *given[4:], "-o", embeddings / "n", "--normalize").exit_code
        == 0
    )


def test_punsafe_is_a_column_beside_the_first_head(embeddings: Path) -> None:
    torch.save({"w": torch.ones(8), "b": torch.zeros(1)}, embeddings / "nsfw.pth")
    punsafe = f"punsafe={embeddings / 'nsfw.pth'}"
    given = ["score-embeddings", "-i", embeddings / "e.npy", "-o", embeddings / "out"]
    assert "put it second" in _call(*given, "--head", punsafe).output
    given[-1] = embeddings / "both"
    assert _call(*given, "--head", "random:1", "--head", punsafe).exit_code == 0
    table = pq.read_table(embeddings / "both/scores/e.parquet")
    sums = np.load(embeddings / "e.npy").sum(axis=1)
    np.testing.assert_allclose(table["punsafe"].to_numpy(), sums, atol=1e-6)
