"""The structure of the package: import directions, sizes of files, no cycles, public names."""

from __future__ import annotations

import ast
import graphlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import dali_aesthetic

PACKAGE = Path(dali_aesthetic.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
STAGES = ("shards", "decode", "score", "write")
FOREIGN = {
    "nvidia": {"decode"},
    "PIL": {"decode", "library", "demo", "doctor", "report", "integrations"},
    "torch": {
        "decode",
        "score",
        "embeddings",
        "integrations",
        "launch",
        "library",
        "demo",
        "types",
        "doctor",
        "verify",
    },
    "triton": {"score", "decode"},
    "open_clip": {"score"},
    "pyarrow": {"write", "shards", "embeddings", "integrations", "report", "verify", "compact", "predicate"},
    "duckdb": {"predicate"},
    "ray": {"launch", "integrations"},
    "nemo_curator": {"integrations"},
    "datasets": {"integrations"},
    "jinja2": {"report"},
    "plotly": {"report"},
    "typer": {"cli", "commands"},
    "rich": {"cli", "commands", "display", "demo", "doctor"},
    "threading": {"overlap", "decode"},
    "concurrent": {"overlap", "decode", "stores", "write"},
    "obstore": {"stores"},
    "boto3": {"stores"},
}
"""Libraries that only these parts of the package may import. `decode` holds futures; it makes no threads."""


MOST_LINES, FEWEST_LINES = 450, 60
SMALL = {
    "__main__.py": "what `python -m dali_aesthetic` runs",
    "cli.py": "the entry point of the command line, which only assembles the commands",
}
"""Modules below `FEWEST_LINES` with fewer than two importers, and the reason why each stands alone."""


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = (f"{module}.{alias.name}" for alias in node.names)
            yield from names if module == "dali_aesthetic" else (module,)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_parts_import_only_what_they_may(path: Path) -> None:
    here = part_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        allowed = FOREIGN.get(top)
        assert allowed is None or here in allowed, f"{here} must not import {top}"
        if top == "dali_aesthetic" and rest and here in STAGES:
            assert rest[0] in {here, "types", "config", "layout", "overlap", "stores"}, (
                f"{here} must not import {name}"
            )
        if top == "dali_aesthetic" and rest and here == "report":
            allowed = {"report", "types", "threshold", "timing", "config", "layout", "shards", "stores"}
            assert rest[0] in allowed | {"predicate"}, f"{name} in {here}"
        if top == "dali_aesthetic" and rest and here == "stores":
            assert rest[0] in {"stores", "types", "overlap"}, f"{name} in {here}"
        if top == "dali_aesthetic" and rest and here == "layout":
            assert rest[0] in {"types", "stores"}, f"{name} in {here}"
        if here in ("types", "overlap"):
            assert top != "dali_aesthetic" or name == "dali_aesthetic.types", f"{here} must not import {name}"


def test_only_overlap_makes_threads() -> None:
    makers = ("ThreadPoolExecutor(", "Thread(", "ProcessPoolExecutor(")
    for path in FILES:
        if path.name != "overlap.py":
            assert not any(maker in path.read_text() for maker in makers), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and path.name != "cli.py" and part_of(path) != "commands":
            assert node.end_lineno - node.lineno < 60, f"{path.name}:{node.name}"


def test_a_small_module_has_two_importers_or_a_reason() -> None:
    """A folder's `__init__.py` is not counted: it holds no code of a pipeline."""
    importers = Counter(module for imported in import_graph().values() for module in imported)
    alone = {
        str(path.relative_to(PACKAGE))
        for path, name in module_names().items()
        if path.name != "__init__.py"
        and len(path.read_text().splitlines()) < FEWEST_LINES
        and importers[name] < 2
    }
    assert alone == set(SMALL)


def test_no_modules_import_each_other() -> None:
    """Imports within functions and for type checkers count."""
    try:
        graphlib.TopologicalSorter(import_graph()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def module_names() -> dict[Path, str]:
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}
    return {path: name.removesuffix(".__init__") for path, name in names.items()}


def import_graph() -> dict[str, set[str]]:
    names = module_names()
    return {name: set(imported_modules(path, set(names.values()))) for path, name in names.items()}


def imported_modules(path: Path, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in modules else str(node.module)


def test_the_hot_loop_fits_on_a_screen() -> None:
    assert len((PACKAGE / "run_shard.py").read_text().splitlines()) <= 80


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_public_names_are_few_and_all_there() -> None:
    """Eleven, the other sections of `Config`, and the other names in the signature of `run`."""
    assert len(dali_aesthetic.__all__) <= 18
    for name in dali_aesthetic.__all__:
        assert getattr(dali_aesthetic, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dali_aesthetic.nothing
