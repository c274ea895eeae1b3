"""Declaration of configuration fields as options, and the error messages for wrong values.

`option` declares a field. The command line, its help, the table in the documents and the error messages are
made from that declaration.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from dali_aesthetic.types import ConfigError

_Held = TypeVar("_Held", covariant=True)
_Taken = TypeVar("_Taken", contravariant=True)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
EXPERT = "Expert"
PANELS = (
    "Input and output", "What to keep", "Model", "Decoding", "Robustness", "Machine", "Observing", EXPERT,
)  # fmt: skip
"""The panels of `--help`, in order."""


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
    """A field that is also an option of the command line. A `default` of `...` makes it required.

    `flag` is needed only if it differs from the field's name, `panel` only if it differs from the section's.
    `unset` describes a default of None, "" or (). `expert` puts the option into the last panel. `limits` are
    pydantic's, such as `ge=0`.
    """
    about = {
        "flag": flag,
        "short": short,
        "panel": EXPERT if expert else panel,
        "unit": unit,
        "metavar": metavar,
        "unset": unset,
    }
    extra: Any = {"option": {name: text for name, text in about.items() if text}}
    return Field(default, description=description, json_schema_extra=extra, **limits)


if TYPE_CHECKING:

    class Given(Generic[_Held, _Taken]):
        """A field that holds a `_Held` and is given as a `_Taken`, which a validator converts."""

        def __get__(self, owner: object, kind: type | None = None) -> _Held: ...
        def __set__(self, owner: object, value: _Taken) -> None: ...

else:

    class Given:
        """As above: pydantic sees the type of what the field holds."""

        def __class_getitem__(cls, kinds: tuple[Any, Any]) -> Any:
            return kinds[0]


class Section(BaseModel):
    """Fields that belong together. It is immutable, refuses unknown names, and takes a path for text.

    Raises ConfigError for values that don't fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    panel: ClassVar[str] = PANELS[0]
    """The help panel of its options."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(in_fields(explain(error, type(self)), type(self))) from None

    # Else pydantic would call it for sections within a section, and lose where the error was.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _paths_as_text(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: _as_text(value) for name, value in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise PydanticCustomError("switch", "a switch")  # pydantic would take true for 1
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A field at `path`, such as `decode.batch_size`. Its `flag` is empty if it is no option."""

    path: str
    field: FieldInfo
    flag: str
    panel: str
    short: str = ""
    unit: str = ""
    metavar: str = ""
    unset: str = ""

    @property
    def name(self) -> str:
        """The field's name within its section."""
        return self.path.rpartition(".")[2]

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types of its values, but None."""
        annotation = self.field.annotation
        kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        return tuple(kind for kind in kinds if kind is not NoneType)

    @property
    def kind(self) -> Any:
        return self.kinds[0]

    @property
    def description(self) -> str:
        return self.field.description or ""

    @property
    def default(self) -> str:
        """The default in words; empty if there is nothing to say."""
        value = self.field.default
        if self.field.is_required() or value is False:
            return ""
        if value in (None, "", ()):
            return self.unset
        values = value if isinstance(value, tuple) else (value,)
        return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)

    @property
    def wanted(self) -> str:
        """The values that fit, as they follow "give"."""
        values = " or ".join(_wanted(kind, self.field.metadata) for kind in self.kinds)
        return values + (f" ({self.unit})" if self.unit else "")


def options_of(section: type[Section], prefix: str = "") -> Iterator[Option]:
    """All fields of a configuration and of its sections, in the order of their declaration."""
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from options_of(field.annotation, f"{prefix}{name}.")
            continue
        extra = field.json_schema_extra
        about: Any = extra["option"] if isinstance(extra, dict) else {"flag": ""}
        flag = f"--{name.replace('_', '-')}"
        yield Option(**{"path": prefix + name, "field": field, "flag": flag, "panel": section.panel} | about)


def explain(error: ValidationError, config: type[Section], flagged: Collection[str] = ()) -> str:
    """A line for each wrong field with its name, the value and the fix.

    The fields at the paths `flagged` came from the command line: they are named by their flags.
    """
    known = {option.path: option for option in options_of(config)}
    lines = [_line(problem, known, flagged) for problem in error.errors()]
    return "\n".join(dict.fromkeys(lines))  # a union has an error for each of its types


def in_fields(text: str, config: type[Section]) -> str:
    """`text` with the paths of fields in place of flags, but for those of commands to be pasted."""
    fields = {option.flag: option.path for option in options_of(config) if option.flag}
    before, command, after = text.partition("dali-aesthetic ")
    return _FLAG.sub(lambda flag: fields.get(flag[0], flag[0]), before) + command + after


def _line(problem: ErrorDetails, known: dict[str, Option], flagged: Collection[str]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    value, text = problem["input"], problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(path, known)
    option = next((option for start, option in known.items() if f"{path}.".startswith(f"{start}.")), None)
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
    """The message for an unknown field, which may be misspelt, misplaced, or called by its flag."""
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


def _wanted(kind: Any, limits: list[Any]) -> str:
    if get_origin(kind) is Literal:
        values = get_args(kind)
        return f"one of {', '.join(values)}" if len(values) > 1 else str(values[0])
    if get_origin(kind) is tuple:
        return "text, or a list of texts"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _range(limits)
    return {bool: "true or false", Path: "a path"}.get(kind, "text")


def _range(limits: list[Any]) -> str:
    sides = ("gt", "ge", "le")
    bounds = {side: getattr(limit, side) for limit in limits for side in sides if hasattr(limit, side)}
    if "gt" in bounds:
        return f" above {bounds['gt']}"
    if "ge" not in bounds:
        return ""
    return f" from {bounds['ge']} to {bounds['le']}" if "le" in bounds else f" from {bounds['ge']} up"


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _as_text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_text(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
