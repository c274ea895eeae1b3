"""Options of the command line: those made from the fields of `Config`, and those of many commands."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import typer
import yaml
from pydantic import create_model
from rich.markup import escape

from dali_aesthetic.config import Config, ConfigError, given_paths
from dali_aesthetic.fields import PANELS, Option, Section, option, options_of

OPTIONS = {option.path: option for option in options_of(Config) if option.flag}
"""The fields of `Config` that are options, by path."""
EVERYTHING = tuple(dict.fromkeys(path.partition(".")[0] for path in OPTIONS))
"""The sections and top-level fields of `Config` that hold options."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print more: what decoder libraries write, and tracebacks.")
]


class ConfigFile(NamedTuple):
    """Options of a command that takes a whole configuration: its file, and whether to print it only."""

    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML, or an output's run.json; flags win over it."),
    ] = None
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration as YAML and exit.")
    ] = False


class Verbosity(NamedTuple):
    """How much a command prints: everything, problems only, or its result as JSON."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print problems only.")] = False
    json: Json = False
    verbose: Verbose = False

    @property
    def silent(self) -> bool:
        """Whether no progress is printed."""
        return self.quiet or self.json


def parameters(
    takes: Collection[str], descriptions: Mapping[str, str], with_arguments: bool
) -> dict[str, inspect.Parameter]:
    """Typer's parameters for the options in `takes`, in the order of the panels, by path.

    `takes` names sections and single fields (`model`, `model.encoder`). `descriptions` replaces the help of
    some. `with_arguments` adds inputs without a flag, at the path "": a shell makes them of an
    unquoted pattern.
    """
    taken = [option for path, option in OPTIONS.items() if {path, path.partition(".")[0]} & set(takes)]
    taken.sort(key=lambda option: PANELS.index(option.panel))
    made = {option.path: _parameter(option, descriptions.get(option.path)) for option in taken}
    if with_arguments and "input" in made:
        made[""] = _keyword("more_input", list[str] | None, typer.Argument(hidden=True))
    return made


def numbers_among(own: Iterable[inspect.Parameter]) -> type[Section]:
    """The `own` options of a command that take a number, as a section: its errors read like `Config`'s."""
    fields: dict[str, Any] = {}
    for one in own:
        kind, info = get_args(one.annotation)
        if number := {int, float} & {kind, *get_args(kind)}:
            limits = {"ge": info.min, "le": info.max} | ({"allow_inf_nan": False} if float in number else {})
            fields[one.name] = (kind, option(one.default, info.help, **limits))
    return create_model("Numbers", __base__=Section, **fields)


def as_text(parameter: inspect.Parameter, number: Option) -> inspect.Parameter:
    """`parameter` as one that takes text, for a section of `numbers_among` to read."""
    info = copy.copy(get_args(parameter.annotation)[1])
    info.min, info.max, info.metavar = None, None, _metavar(number)
    default = None if parameter.default is None else str(parameter.default)
    return parameter.replace(annotation=Annotated[str | None, info], default=default)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path as nested mappings, for `Config.build`."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return tree


def given_flags(given: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """The flags that have a value, but those of the fields in `but`."""
    return [OPTIONS[path].flag for path in given_paths(given) if path in OPTIONS and path not in but]


def resolve(given: Mapping[str, Any], file: Path | None = None) -> Config:
    """The configuration from a file with the options `given` on top."""
    return Config.build({} if file is None else _read(file), given)


def as_yaml(config: Config, but: Collection[str] = ()) -> str:
    """The configuration as YAML for `--config`, without the fields in `but`."""
    values = config.model_dump(mode="json", exclude=set(but))
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _read(file: Path) -> dict[str, Any]:
    """The fields of a YAML file, or of the `run.json` of an output."""
    try:
        values = yaml.safe_load(file.read_bytes())  # YAML says its own encoding, not the locale
    except OSError as error:
        reason = f"{error.strerror}; give a YAML file or the run.json of an output"
        raise ConfigError(f"--config {file}: {reason}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if isinstance(values, dict) and {"identity", "config"} <= values.keys():
        values = values["config"]
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: holds no fields; see configs/ for examples")
    return values


def _parameter(option: Option, description: str | None) -> inspect.Parameter:
    text = description or option.description
    if option.default and description is None:
        text += f" (default: {option.default})"
    names = [option.flag, option.short] if option.short else [option.flag]
    shown: dict[str, Any] = {"help": escape(text), "rich_help_panel": option.panel}
    if option.kind is bool:
        return _keyword(option.path, bool | None, typer.Option(*names, **shown))
    # Values stay text: `Config` validates them, and its messages name the flag, the value and the fix.
    kind = list[str] if get_origin(option.kind) is tuple else str
    return _keyword(option.path, kind | None, typer.Option(*names, metavar=_metavar(option), **shown))


def _keyword(path: str, annotation: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(
        path.replace(".", "__"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, info],
    )


def _metavar(option: Option) -> str:
    if option.metavar or option.unit:
        return option.metavar or option.unit.upper()
    if get_origin(option.kind) is Literal:
        return "|".join(get_args(option.kind))
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(option.kind, "TEXT")
