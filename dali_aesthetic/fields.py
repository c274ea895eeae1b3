"""Fields of a configuration that are also options: what each says of itself, and what a wrong value is told.

`option` declares a field; the command line, its help, the documents' table and the error messages are made
from that declaration alone.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

EXPERT = "Expert"
PANELS = (
    "Input and output", "What to keep", "Model", "Decoding", "Robustness", "Machine", "Observing", EXPERT,
)  # fmt: skip
"""The panels of `--help`, in their order."""


def option(
    default: Any,
    description: str,
    *,
    flag: str = "",
    short: str = "",
    panel: str = "",
    unit: str = "",
    metavar: str = "",
    unset: str = "",
    expert: bool = False,
    **limits: Any,
) -> Any:
    """A field that is an option of the command line too; `...` for `default` makes it a required one.

    `flag` is given where it is not the field's name. `unset` says what a default of None or "" comes to.
    `panel` is given where it is not that of the section; `expert` moves the option to the last panel.
    `limits` are pydantic's, such as `ge=0`.
    """
    about = {"flag": flag, "short": short, "panel": EXPERT if expert else panel, "unit": unit}
    extra: Any = {"option": {**about, "metavar": metavar, "unset": unset}}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Fields that belong together: immutable, and without unknown names. Paths are taken for texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    panel: ClassVar[str] = PANELS[0]
    """Of the options among its fields, in `--help`."""

    @model_validator(mode="before")
    @classmethod
    def _paths_as_text(cls, values: Any) -> Any:
        return (
            {name: _as_text(value) for name, value in values.items()} if isinstance(values, dict) else values
        )


@dataclass(frozen=True, slots=True)
class Option:
    """A field by its `path`, such as `decode.batch_size`; without a `flag` it is no option."""

    path: str
    field: FieldInfo
    flag: str
    short: str
    panel: str
    unit: str
    metavar: str
    unset: str

    @property
    def name(self) -> str:
        """The field's name within its section."""
        return self.path.rpartition(".")[2]

    @property
    def kind(self) -> Any:
        """The type of a value that is not None."""
        return _without_none(self.field.annotation)

    @property
    def description(self) -> str:
        """What `option` was told."""
        return self.field.description or ""

    @property
    def default(self) -> str:
        """The default in words; empty where there is nothing to say."""
        value = self.field.default
        if self.field.is_required() or value is False:
            return ""
        if value in (None, ""):
            return self.unset
        values = value if isinstance(value, tuple) else (value,)
        return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)

    @property
    def wanted(self) -> str:
        """The values that fit, as the end of a sentence that begins with "give"."""
        return _wanted(self.kind, self.field.metadata) + (f" ({self.unit})" if self.unit else "")


def options_of(section: type[BaseModel], prefix: str = "", panel: str = "") -> Iterator[Option]:
    """All fields of a configuration, those of its sections included, in the order of their declaration."""
    panel = getattr(section, "panel", panel)
    for name, field in section.model_fields.items():
        if is_section(field.annotation):
            assert isinstance(field.annotation, type)
            yield from options_of(field.annotation, f"{prefix}{name}.", panel)
            continue
        extra = field.json_schema_extra
        about: Any = extra.get("option") if isinstance(extra, dict) else None
        is_option, about = about is not None, dict(about or {})
        flag = about.pop("flag", "") or f"--{name.replace('_', '-')}"
        texts = {key: about.get(key, "") for key in ("short", "unit", "metavar", "unset")}
        yield Option(
            path=prefix + name,
            field=field,
            flag=flag if is_option else "",
            panel=about.get("panel") or panel,
            **texts,
        )


def is_section(annotation: Any) -> bool:
    """Whether a field of this type has fields of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def explain(error: ValidationError, config: type[BaseModel], flagged: Collection[str] = ()) -> str:
    """A line for each field that is wrong: its name, the value and the fix.

    The fields of the paths `flagged` were given on the command line, and are called by their flag.
    """
    known = {option.path: option for option in options_of(config)}
    lines = [_line(problem, known, flagged) for problem in error.errors()]
    return "\n".join(dict.fromkeys(lines))  # a union has an error for each of its types


def _line(problem: ErrorDetails, known: dict[str, Option], flagged: Collection[str]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    value, text = problem["input"], problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(path, known)
    option = next((known[start] for start in _starts(path) if start in known), None)
    if problem["type"] == "missing":
        return f"{path} is missing: give {option.flag if option else 'it'}"
    if problem["type"] == "value_error" and not text.startswith("give "):
        name = option.flag if option and option.path in flagged else path
        return text if text.startswith("--") or not name else f"{name}: {text}"
    if option is None:
        fields = [other.name for other in known.values() if other.path.startswith(f"{path}.")]
        return f"{path}: {value!r} does not fit: it is a section with the fields {', '.join(fields)}"
    fix = text if text.startswith("give ") else f"give {option.wanted}"
    if option.path in flagged:
        return f"{option.flag} {shlex.quote(str(value))}: {fix}"
    return f"{path}: {value!r} does not fit: {fix}"


def _unknown(path: str, known: dict[str, Option]) -> str:
    """What to write for a field that isn't there: it may be misspelt, misplaced, or called by its flag."""
    section, _, wrong = path.rpartition(".")
    named = [(option.name, option.path) for option in known.values()]
    named += [(place, place) for place in dict.fromkeys(name.partition(".")[0] for name in known)]
    here = [(name, place) for name, place in named if place.rpartition(".")[0] == section]
    named += [(option.flag[2:].replace("-", "_"), option.path) for option in known.values()]
    for names, cutoff in ((named, 1.0), (here, 0.6), (named, 0.6)):
        if match := difflib.get_close_matches(wrong, [name for name, _ in names], 1, cutoff):
            best = next(place for name, place in names if name == match[0])
            return f"{path} is no field of the configuration: did you mean {best}?"
    where = f"the section {section}" if section else "the configuration"
    return f"{path} is no field: {where} has {', '.join(dict.fromkeys(name for name, _ in here))}"


def _starts(path: str) -> Iterator[str]:
    """The path, then that of what it is in, and so on."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _wanted(kind: Any, limits: list[Any]) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_wanted(one, limits) for one in get_args(kind))
    if get_origin(kind) is Literal:
        values = [str(value) for value in get_args(kind)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if get_origin(kind) is tuple:
        return "text, or a list of texts"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _range(limits)
    return {bool: "true or false", Path: "a path"}.get(kind, "text")


def _range(limits: list[Any]) -> str:
    least = next((limit.ge for limit in limits if isinstance(limit, annotated_types.Ge)), None)
    most = next((limit.le for limit in limits if isinstance(limit, annotated_types.Le)), None)
    above = next((limit.gt for limit in limits if isinstance(limit, annotated_types.Gt)), None)
    if above is not None:
        return f" above {above}"
    if least is None:
        return ""
    return f" from {least} up" if most is None else f" from {least} to {most}"


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return Union[tuple(kinds)]  # noqa: UP007


def _as_text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_as_text(one) for one in value) if type(value) in (list, tuple) else value
    return os.fspath(value) if isinstance(value, os.PathLike) else value
