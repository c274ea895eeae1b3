"""The page in a real browser: the slider counts correctly, pictures show, and the console stays empty."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dali_aesthetic.report.page import write_report
from dali_aesthetic.types import Status
from tests.report.outputs import Item, make_output, scores_of

pytestmark = pytest.mark.timeout(180)
LAPTOP, PHONE = (1280, 800), (390, 800)
HOSTILE = "<img src=x onerror=document.title='pwned'>"


def _program(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no {names[0]} on this machine (Debian: apt-get install chromium chromium-driver)")
    return found


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(5)
    shards = {
        f"{s:03d}": [
            Item(f"{s}{i:03d}", float(rng.normal(5, 0.8)), json={"lang": ("en", "de", HOSTILE)[i % 3]})
            for i in range(150)
        ]
        + [Item(f"bad{s}{HOSTILE.replace('/', '')}", math.nan, Status.TRUNCATED, HOSTILE)]
        for s in range(6)
    }
    return make_output(tmp_path_factory.mktemp("run"), shards, heads=("laion-v2", "laion-v1"))


@pytest.fixture(scope="module")
def driver(output: Path) -> Iterator[Any]:
    chromium = _program("chromium", "chromium-browser", "google-chrome")
    service = _program("chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    write_report(output, by="lang")
    yield browser
    browser.quit()


def show(driver: Any, output: Path, size: tuple[int, int] = LAPTOP, scheme: str = "light") -> Any:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    driver.get((output / "report.html").as_uri())
    until(driver, "return document.documentElement.dataset.ready === 'yes'")
    return driver


def until(driver: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 30).until(lambda browser: browser.execute_script(script))


def shown(driver: Any) -> tuple[float, int]:
    """The threshold and the count that a reader sees."""
    cut, count = (driver.find_element("id", name).text for name in ("t-raw", "t-count"))
    return float(cut), int(count.replace(",", ""))


def kept(output: Path, cut: float) -> int:
    return int((scores_of(output) >= np.float32(cut)).sum())


def test_the_slider_counts_what_a_run_would_keep(driver: Any, output: Path) -> None:
    show(driver, output)
    assert shown(driver) == (5.0, kept(output, 5.0))
    edges = driver.execute_script(
        "return JSON.parse(document.getElementById('data').textContent).edges.length"
    )
    for place in (0, 1, edges // 3, edges // 2, edges - 2, edges - 1):
        driver.execute_script(
            "const s = document.getElementById('slider'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))",
            place,
        )
        cut, count = shown(driver)
        assert count == kept(output, cut), cut
    assert shown(driver)[1] == 0


def test_the_keyboard_moves_it_one_step(driver: Any, output: Path) -> None:
    show(driver, output)
    slider = driver.find_element("id", "slider")
    slider.send_keys("\ue014")  # the right arrow
    assert shown(driver) == (5.01, kept(output, 5.01))
    assert slider.get_attribute("aria-valuetext").startswith("raw 5.01, keeps ")
    assert "filter --raw-threshold 5.01 --input in" in driver.find_element("id", "command").text


def test_a_typed_number_and_a_preset_move_it(driver: Any, output: Path) -> None:
    show(driver, output)
    typed = driver.find_element("id", "typed")
    typed.send_keys("\ue009a\ue000", "5.5")  # Ctrl+A, then over it
    assert shown(driver) == (5.5, kept(output, 5.5))
    driver.execute_script("document.querySelector('.preset[data-raw=\"4.75\"]').click()")
    assert shown(driver) == (4.75, kept(output, 4.75))
    driver.execute_script("document.getElementById('reset').click()")
    assert shown(driver)[0] == 5.0


def test_an_upper_bound_counts_what_a_run_would_keep(driver: Any, output: Path) -> None:
    show(driver, output)
    move = (
        "const s = document.getElementById('upper'), edges = JSON.parse(document.getElementById('data')"
        ".textContent).edges; s.value = edges.indexOf(arguments[0]);"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    scores = scores_of(output)
    for upper in (5.8, 5.01, 6.0):
        driver.execute_script(move, upper)
        within = (scores >= np.float32(5)) & (scores <= np.float32(upper))
        assert shown(driver) == (5.0, int(within.sum()))
        assert driver.find_element("id", "t-upper").text == f"and ≤ {upper:g}"
        rows = driver.execute_script(
            "return [...document.querySelectorAll('#groups .kept')].map((cell) => Number(cell.textContent))"
        )
        assert sum(rows) == int(within.sum())
    command = driver.find_element("id", "command").text
    assert "filter --raw-threshold 5 --max-raw-threshold 6 --input in" in command
    outside = driver.execute_script(
        "const isOut = (score) => score < 5 || score > 6;"
        "return [...document.querySelectorAll('#look .band .shot')].filter((s) =>"
        " s.classList.contains('out') !== isOut(Number(s.dataset.score))).length"
    )
    assert outside == 0
    lines = "document.getElementById('histogram').layout.shapes.filter((s) => !s.line.dash).map((s) => s.x0)"
    until(driver, f"return String({lines}) === '5,6'")
    driver.execute_script(move, 4.0)  # below the lower bound, which it pushes along
    assert shown(driver) == (4.0, int((scores == np.float32(4)).sum()))
    driver.execute_script("document.getElementById('reset').click()")
    assert shown(driver) == (5.0, kept(output, 5.0))
    assert driver.find_element("id", "typed-upper").get_attribute("value") == ""
    typed = driver.find_element("id", "typed-upper")
    typed.send_keys("6.5")
    assert shown(driver)[1] == int(((scores >= np.float32(5)) & (scores <= np.float32(6.5))).sum())
    assert driver.get_log("browser") == []


def test_charts_and_groups_follow(driver: Any, output: Path) -> None:
    show(driver, output)
    driver.execute_script(
        'document.querySelector(\'.preset[data-raw="6"], .preset[data-raw="6.0"]\').click()'
    )
    lines = "document.getElementById('histogram').layout.shapes.filter((s) => !s.line.dash).map((s) => s.x0)"
    until(driver, f"return {lines}[0] === 6")
    rows = driver.execute_script(
        "return [...document.querySelectorAll('#groups .kept')].map((cell) => Number(cell.textContent))"
    )
    assert len(rows) == 3
    assert sum(rows) == shown(driver)[1] == kept(output, 6.0)
    dim = "[...document.querySelectorAll('#look .band .shot')].filter((s) => s.classList.contains('out') !== "
    assert driver.execute_script(f"return {dim} (Number(s.dataset.score) < 6)).length") == 0


def test_the_pictures_around_the_threshold_are_the_nearest(driver: Any, output: Path) -> None:
    show(driver, output)
    scores = np.sort(scores_of(output))
    for box, expected in (
        ("just-below", scores[scores < 5][-8:][::-1]),
        ("just-above", scores[scores >= 5][:8]),
    ):
        found = driver.execute_script(
            f"return [...document.querySelectorAll('#{box} .shot')].map((s) => Number(s.dataset.score))"
        )
        assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_pictures_around_the_cut_come_first_then_the_sliders_and_the_histogram(
    driver: Any, output: Path
) -> None:
    show(driver, output)
    names = ["cut", "threshold", "histogram", "look"]
    order = (
        "return arguments[0].map((name) => document.getElementById(name)).every((one, i, all) =>"
        " !i || all[i - 1].compareDocumentPosition(one) & Node.DOCUMENT_POSITION_FOLLOWING)"
    )
    assert driver.execute_script(order, names)
    on_screen = "const box = document.getElementById(arguments[0]).getBoundingClientRect();"
    on_screen += "return box.top >= 0 && box.bottom <= innerHeight"
    assert driver.execute_script(on_screen, "threshold"), "it sticks to the edge of the screen"
    driver.execute_script("document.getElementById('look').scrollIntoView()")
    assert driver.execute_script(on_screen, "threshold")


def test_scores_fall_down_the_page_and_within_a_band(driver: Any, output: Path) -> None:
    show(driver, output)
    scores = driver.execute_script(
        "return [...document.querySelectorAll('.band .shot')].map((shot) => Number(shot.dataset.score))"
    )
    assert len(scores) > 30
    assert scores == sorted(scores, reverse=True)


def test_a_button_copies_the_whole_command(driver: Any, output: Path) -> None:
    show(driver, output)
    driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    driver.execute_script("document.querySelector('.preset[data-raw=\"4.75\"]').click()")
    driver.find_element("id", "copy").click()
    until(driver, "return document.getElementById('copy').textContent === 'Copied'")
    copied = driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == (
        f"dali-aesthetic filter --raw-threshold 4.75 --input in --scores {output} --output {output}-cut"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_it_looks_right_everywhere(driver: Any, output: Path, size: tuple[int, int], scheme: str) -> None:
    driver.get_log("browser")
    show(driver, output, size, scheme)
    driver.execute_script("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
    until(driver, "return [...document.images].every((image) => image.complete)")
    widths = driver.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) > 50
    assert min(widths) > 0
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    plots = (
        "return [...document.querySelectorAll('.plot')].map((p) => p.querySelectorAll('svg.main-svg').length)"
    )
    assert min(driver.execute_script(plots)) > 0
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = max(int(part) for part in background.strip("rgba()").split(",")[:3]) < 128
    assert dark == (scheme == "dark")
    ink = driver.execute_script("return document.getElementById('histogram').layout.font.color")
    assert ink == driver.execute_script(
        "return getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()"
    )
    assert driver.get_log("browser") == []
    assert "aesthetic scores" in driver.title


@pytest.mark.parametrize(("size", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")])
def test_a_condition_shows_what_its_parts_remove(
    driver: Any, output: Path, size: tuple[int, int], scheme: str, tmp_path: Path
) -> None:
    driver.get_log("browser")
    condition = "lang = 'de' AND \"aesthetic_score_laion-v1\" < 600"
    write_report(output, html=tmp_path / "report.html", where=condition)
    show(driver, tmp_path, size, scheme)
    rows = driver.find_elements("css selector", "#where tbody tr")
    cells = [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in rows]
    assert [one[0] for one in cells][::2] == ["scored", "lang = 'de'"]
    assert (cells[0][-1], cells[2][1]) == ("900", "600")
    assert shown(driver)[1] == int(cells[-1][-1]) > 0
    until(driver, "return document.querySelector('#where .plot .main-svg') !== null")
    sides = driver.find_elements("css selector", "#where .pair .shots")
    values = [
        [float(one.text.split()[0]) for one in side.find_elements("tag name", "figcaption")] for side in sides
    ]
    assert values[0] == sorted(values[0])[:12]
    assert values[1] == sorted(values[1], reverse=True)[:12]
    assert values[0][0] >= 600 > values[1][0]
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert driver.get_log("browser") == []


def test_charts_change_with_the_colour_scheme(driver: Any, output: Path) -> None:
    show(driver, output)
    before = driver.execute_script("return document.getElementById('curve').layout.font.color")
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    until(driver, f"return document.getElementById('curve').layout.font.color !== '{before}'")


def test_the_logarithmic_share_can_be_chosen(driver: Any, output: Path) -> None:
    show(driver, output)
    driver.execute_script("document.getElementById('log').click()")
    until(driver, "return document.getElementById('curve').layout.yaxis.type === 'log'")
    assert driver.get_log("browser") == []


def test_every_control_has_a_name(driver: Any, output: Path) -> None:
    show(driver, output)
    controls = "input, button, [role=img], [role=group], section"
    nameless = driver.execute_script(
        f"return [...document.querySelectorAll('{controls}')].filter((one) => !one.labels?.length"
        " && !one.ariaLabel && !one.hasAttribute('aria-labelledby') && !one.textContent.trim())"
        ".map((one) => one.outerHTML.slice(0, 80))"
    )
    assert nameless == []
