"""Makes docs/library.md from the docstrings of the package's public names.

python docs/make_api.py > docs/library.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import dali_aesthetic

HEADER = """\
# The Python API

<!-- Made by `python docs/make_api.py > docs/library.md` from the docstrings; edit those. -->

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


def page() -> str:
    """The whole document."""
    parts = [HEADER]
    for name in sorted(dali_aesthetic.__all__, key=str.lower):
        parts += _entry(name, getattr(dali_aesthetic, name))
    return "\n".join(parts)


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
    rows: list[tuple[str, Any, Any]]
    if issubclass(owner, BaseModel):
        rows = [
            (name, field.annotation, field.get_default(call_default_factory=True))
            for name, field in owner.model_fields.items()
        ]
    elif is_dataclass(owner):
        rows = [(field.name, field.type, PydanticUndefined) for field in fields(owner)]
    else:
        return
    yield "| field | type | default |\n|---|---|---|"
    for name, annotation, default in rows:
        kind = _type(annotation).replace("|", "\\|")  # a bar would end the cell
        yield f"| `{name}` | `{kind}` | {_default(default)} |"
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
    print(page(), end="")
