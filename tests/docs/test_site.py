"""The site is built without a broken link, has every page in its order, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.commands import ROOT


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_document_is_in_the_order_of_the_site(site: Path) -> None:
    order = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = set(re.findall(r"[\w-]+\.md", str(order)))
    assert listed == {document.name for document in ROOT.glob("docs/*.md")}
    assert all((site / name.replace(".md", ".html")).is_file() for name in listed)


def test_links_to_files_outside_lead_to_copies(site: Path) -> None:
    assert (site / "configs" / "slurm.sbatch").is_file()
    assert (site / "examples" / "first_look.ipynb").is_file()
    assert list((site / "benchmarks" / "results").glob("encoders_*.html"))
    for page in site.glob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#:]+)[^":]*"', page.read_text()):
            assert page.name == "404.html" or (page.parent / link).exists(), (page.name, link)


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert not re.findall(r'(?:src|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href)="https?:[^"]*"', text)


def test_a_broken_link_or_anchor_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    settings |= {"hooks": [], "nav": ["index.md"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    for text, wrong in (("[a](nothing.md)", "nothing.md"), ("[a](#nowhere)", "nowhere")):
        (tmp_path / "docs" / "index.md").write_text(text)
        done = build(tmp_path, tmp_path / "site")
        assert done.returncode != 0
        assert wrong in done.stderr
