"""Hooks of mkdocs: files outside of docs/ that a page links to become part of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+?)/?(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds what the pages link to: result pages with their plots, examples, configurations."""
    documents = [file for file in files.documentation_pages() if not file.generated_by]
    texts = [Path(str(file.abs_src_path)).read_text() for file in documents]
    for target in sorted({match[2] for text in texts for match in _OUTSIDE.finditer(text)}):
        if (ROOT / target).is_file():
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links to those files within the site. Of a folder, which has no page there, the name stays."""
    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(_within, markdown)


def _within(match: re.Match[str]) -> str:
    text, target, anchor = match.groups()
    return text if (ROOT / target).is_dir() else f"[{text}]({target}{anchor or ''})"
