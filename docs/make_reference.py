"""Makes what documents repeat of the code: the Python API, the fields of the configuration and their defaults.

`python docs/make_reference.py` writes docs/library.md, the tables of docs/configuration.md and
configs/default.yaml.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import dali_aesthetic
from dali_aesthetic.commands.options import as_yaml
from dali_aesthetic.config import Config
from dali_aesthetic.fields import Option, options_of

ROOT = Path(__file__).parents[1]
DEFAULT_YAML = """\
# Every field with its default, made by `python docs/make_reference.py`; docs/configuration.md says what each is.
# Flags win over this file: dali-aesthetic run --config configs/default.yaml --output kept
"""
BEGIN, END = "<!-- options:begin", "<!-- options:end"
HEADER = """\
# The Python API

<!-- Made by `python docs/make_reference.py` from the docstrings; edit those. -->

Everything below is imported from `dali_aesthetic`. What is not listed here may change between versions.

```python
from dali_aesthetic import ImageScorer

scorer = ImageScorer()
print(scorer.score(["a.jpg", "b.webp"]))  # float32, NaN where unreadable

for score in scorer.score_stream(open(name, "rb").read() for name in ["a.jpg", "b.webp"]):
    print(score)  # one by one, in order, from any number of images
```

```python
from dali_aesthetic import Config, run

result = run(Config.build({"input": "photos", "output": "kept", "threshold": {"preset": "high"}}))
print(result.stats.num_kept, "of", result.stats.num_samples)
```
"""


def pages() -> dict[Path, str]:
    """The whole content of each file that is made here."""
    tables = ROOT / "docs" / "configuration.md"
    before, begin, rest = tables.read_text().partition(BEGIN)
    mark, (_, end, after) = rest.partition("\n")[0], rest.partition(END)
    return {
        ROOT / "docs" / "library.md": library(),
        tables: f"{before}{begin}{mark}\n{options()}{end}{after}",
        ROOT / "configs" / "default.yaml": DEFAULT_YAML + default_yaml(),
    }


def options() -> str:
    """A table of the fields of each section of a configuration."""
    sections: dict[str, list[Option]] = {}
    for option in options_of(Config):
        sections.setdefault(option.path.rpartition(".")[0], []).append(option)
    return "\n".join(line for name, listed in sections.items() for line in _section(name, listed)) + "\n"


def default_yaml() -> str:
    """Every field with its default, but the one that `--keep-top` sets for itself."""
    config = Config.build({"input": "data/shards", "output": "kept", "threshold": {"preset": "standard"}})
    return as_yaml(config, but={"part_of"})


def library() -> str:
    """The whole document on the Python API."""
    parts = [HEADER]
    for name in sorted(dali_aesthetic.__all__, key=str.lower):
        parts += _entry(name, getattr(dali_aesthetic, name))
    return "\n".join(parts)


def _section(name: str, listed: list[Option]) -> Iterator[str]:
    owner = Config.model_fields[name].annotation if name else None
    yield f"### `{name}`" if name else "### At the top"
    yield f"\n{inspect.getdoc(owner)}" if owner else ""
    yield "\n| field | flag | value | default | meaning |\n|---|---|---|---|---|"
    for option in listed:
        flag = ", ".join(f"`{flag}`" for flag in (option.flag, option.short) if flag)
        cells = (f"`{option.name}`", flag, option.wanted, _shown_default(option), option.description)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _shown_default(option: Option) -> str:
    if option.field.is_required():
        return "required"
    if option.field.default in (None, ""):
        return option.default or "none"
    return f"`{option.default or 'false'}`"


def _entry(name: str, thing: Any) -> Iterator[str]:
    kind = "class" if inspect.isclass(thing) else "function"
    yield f"## `{name}`\n"
    is_plain = inspect.isclass(thing) and (issubclass(thing, BaseModel | Exception) or is_dataclass(thing))
    yield f"*{kind}*\n" if is_plain else f"*{kind}* `{name}{_signature(thing)}`\n"
    yield f"{inspect.getdoc(thing)}\n"
    if inspect.isclass(thing):
        yield from _fields(thing)
        yield from _members(thing)


def _fields(owner: type) -> Iterator[str]:
    """A table of the fields of a model or dataclass."""
    rows: list[tuple[str, Any, Any, str]]
    if issubclass(owner, BaseModel):
        rows = [
            (name, field.annotation, field.default, field.description or "")
            for name, field in owner.model_fields.items()
        ]
    elif is_dataclass(owner):
        rows = [(field.name, field.type, PydanticUndefined, "") for field in fields(owner)]
    else:
        return
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    for name, annotation, default, description in rows:
        kind = _type(annotation).replace("|", "\\|")  # a bar would end the cell
        yield f"| `{name}` | `{kind}` | {_default(default)} | {description} |"
    yield ""


def _members(owner: type) -> Iterator[str]:
    """Public methods and properties that the class itself defines, each with its docstring."""
    for name, member in vars(owner).items():
        doc = inspect.getdoc(getattr(owner, name))
        if name.startswith("_") or not doc or not _is_ours(member):
            continue
        if isinstance(member, property):
            yield f"- `.{name}`: {_joined(doc)}"
        else:
            yield f"- `.{name}{_signature(getattr(owner, name))}`: {_joined(doc)}"
    yield ""


def _is_ours(member: Any) -> bool:
    return isinstance(member, property | classmethod) or inspect.isfunction(member)


def _signature(thing: Callable[..., Any]) -> str:
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    words = [_parameter(parameter) for parameter in parameters]
    keyword_only = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    if keyword_only is not None:
        words.insert(keyword_only, "*")
    returned = inspect.signature(thing).return_annotation
    result = "" if inspect.isclass(thing) or returned in (None, "None") else f" -> {_type(returned)}"
    return f"({', '.join(words)}){result}"


def _parameter(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {_type(parameter.annotation)}{default}"


def _type(annotation: Any) -> str:
    """An annotation as people write it: names without their modules."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    return "every default" if isinstance(value, BaseModel) else f"`{value!r}`"


def _joined(doc: str) -> str:
    return " ".join(doc.split())


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content)
