"""Blocks and pages by theme: rates, and everything else that rows hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.results import Result
from benchmarks.tables import blocks, page
from tests.benchmarks import made_up

FIRST = {"storage": 0.1, "commit": 0.5}


def starts(folder: Path) -> Result:
    rows = [
        made_up.row("fused fp16, cold", 30.0, "s", pieces={"start": {"weights": 2.0}, "first": FIRST}),
        made_up.row(
            "fused fp8, warm", 20.0, "s", pieces={"start": {"before": 3.0, "weights": 1.0}, "first": FIRST}
        ),
        made_up.row(
            "eager fp16, warm", 9.0, "s", repeats=3, pieces={"start": {"weights": 1.0}, "first": FIRST}
        ),
        made_up.row("eager fp16, cold", 8.0, "s"),
    ]
    return made_up.result(folder, "cold-start", rows)


def peers(folder: Path) -> Result:
    rows = [
        made_up.row(
            "dali_aesthetic",
            3000.0,
            num_images=12_288,
            settings={"batch_size": 1019, "compiled": True},
            score_error_mean=0.001,
            score_error_p99=0.002,
            kept_images_compared=63,
            kept_images_with_other_bytes=0,
            kept_images_renamed=1,
            members_lost=2,
        ),
        made_up.row(
            "another",
            1000.0,
            settings={"stages": ["read", "embed"]},
            left_out={"png": 20, "gif": 1},
            images_in_a_tar=256,
        ),
    ]
    return made_up.result(folder, "peers", rows)


def test_a_start_is_shown_with_its_pieces_and_the_rest(tmp_path: Path) -> None:
    result = starts(tmp_path)
    for text in (page(result), blocks([result])["cold-start"]):
        assert "| whole | rest | weights | before | first storage | first commit |" in text
        assert "| fused fp16, cold | 30.0 | 27.5 | 2.00 |  | 0.10 | 0.50 |" in text
        assert "| fused fp8, warm | 20.0 | 15.5 | 1.00 | 3.00 | 0.10 | 0.50 |" in text


def test_medians_and_starts_without_pieces_have_no_rest(tmp_path: Path) -> None:
    text = page(starts(tmp_path))
    assert "| eager fp16, warm | 9.0 |  | 1.00 |" in text
    assert "| eager fp16, cold | 8.0 |  |  |  |  |  |" in text


def test_peers_are_shown_with_settings_and_their_changes_to_kept_samples(tmp_path: Path) -> None:
    result = peers(tmp_path)
    for text in (page(result), blocks([result])["peers-full"]):
        assert "| dali_aesthetic | 12,288 |  | batch size 1019; compiled on | 0.001 / 0.002 |" in text
        assert "| 0.001 / 0.002 | 0 of 63 | 1 of 63 | 2 |" in text
        assert "| another |  | 20 png, 1 gif of 256 | stages read, embed |  |  |  |  |" in text
    assert "batch size" not in blocks([result])["speed"]


def test_stages_ceilings_and_growth_show_the_figures_of_the_gpu(tmp_path: Path) -> None:
    gpu = {"watts": 690.0, "sm_mhz": 1400.0, "jpeg_percent": 0.0}
    growth = [
        made_up.row("batch 64", 9.0, peak_device_mib=828, gpu=gpu),
        made_up.row("100 shards", 9.0, peak_device_mib=828, peak_host_mib=3640, gpu=gpu),
    ]
    found = blocks(
        [
            made_up.result(tmp_path, "stages", [made_up.row("scan", 9.0, cpu_us_per_image=31.0, gpu=gpu)]),
            made_up.result(tmp_path, "ceilings", [made_up.row("GEMM", 633.0, "TFLOP/s", gpu=gpu)]),
            made_up.result(tmp_path, "growth", growth),
        ]
    )
    assert "| scan | 9 | 9 .. 9 | 31 | 690 | 0 |" in found["stages"]
    assert "| GEMM | 633 | TFLOP/s | 633 .. 633 | 690 | 1,400 |" in found["ceilings"]
    assert "| batch 64 | 9 |  | 690 | 828 |  |" in found["growth"]
    assert "| 100 shards | 9 |  | 690 | 828 | 3,640 |" in found["growth"]
    for name, plot in (("stages", "stages"), ("ceilings", "roofline")):
        assert f"(../benchmarks/results/{plot}_h100_2026-01-01.svg)" in found[name]


def test_a_page_has_every_verdict_of_the_gate_once_with_its_rows(tmp_path: Path) -> None:
    rows = [made_up.row(name, 1.0, gate="opened") for name in ("a", "b")]
    assert "a; b: gate opened." in page(made_up.result(tmp_path, "encoders", rows))


def test_several_gpus_are_shown_with_the_encoder_that_the_options_name(tmp_path: Path) -> None:
    result = made_up.result(tmp_path, "scaling", [made_up.row("1 GPU", 2500.0, limit=2500.0)])
    asked = {"encoder": "ViT-L-14", "backend": "torchscript", "precision": "fp16"}
    chosen = made_up.with_settings(result, asked)
    assert "ViT-L-14 torchscript fp16, the same work" in blocks([chosen])["scaling"]
    assert "ViT-L-14" not in blocks([result])["scaling"]


def test_the_host_has_a_table_for_each_kind_of_cores_not_for_each_gpu(tmp_path: Path) -> None:
    def host(slug: str, rate: float, date: str) -> Result:
        found = made_up.result(tmp_path, "host", [made_up.row("host loop", rate)], slug, date)
        return replace(found, machine={**found.machine, "cpu": "Xeon", "cpu_cores": 2})

    old, new = host("cpu", 8000.0, "2026-01-01"), host("h100", 9000.0, "2026-01-02")
    assert "8,000" in blocks([old])["host"]
    text = blocks([old, new])["host"]
    assert "9,000" in text
    assert "8,000" not in text
    other = replace(old, machine={**old.machine, "cpu_cores": 4})
    assert "8,000" in blocks([other, new])["host"]


def test_feed_shows_the_newest_result_its_skips_and_then_the_steps_before(tmp_path: Path) -> None:
    before = made_up.result(
        tmp_path, "queues", [made_up.row("end to end, torchscript", 2385.0, limit=2584.0)]
    )
    assert "| end to end, torchscript | 2,385 | 92% |" in blocks([before])["feed"]
    rows = [
        made_up.row("decode alone", 25_000.0),
        made_up.row("decode beside fused fp8", 9000.0, encoder_beside=5900.0, encoder_alone=6000.0),
    ]
    now = made_up.result(tmp_path, "feed", rows, date="2026-02-01")
    text = blocks([before, now])["feed"]
    assert "| decode beside fused fp8 | 9,000 | 5,900 | 6,000 |" in text
    assert "nothing: made up." in text
    assert text.index("decode beside") < text.index("The steps that led") < text.index("torchscript")
    assert "| decode alone | 25,000 |  |  |" in page(now)


def test_peers_are_shown_with_the_factor_and_what_was_skipped(tmp_path: Path) -> None:
    text = blocks(made_up.whole(tmp_path))["peers-full"]
    assert "| webdataset + DataLoader + open_clip | 1,000 | 4.0 | 0.002 | nothing |" in text
    assert "nothing: made up" in text


def test_a_page_has_every_row_and_every_skip(tmp_path: Path) -> None:
    rows = [made_up.row("a", 1234.0, limit=2468.0), made_up.row("b", 0.5, "GB/s", gpu={"watts": 700.0})]
    text = page(made_up.result(tmp_path, "ceilings", rows))
    assert "| a | 1,234 | images/s | 1,234 .. 1,234 | 1 | 50.0% |" in text
    assert "| b | 0.5 | GB/s |" in text
    assert "700" in text
    assert "nothing: skipped, made up" in text
