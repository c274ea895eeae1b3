"""The decorator that makes a function a command: its options, its exit code, one message for an error."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn, get_type_hints

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from typer.models import ArgumentInfo

from dali_aesthetic.commands.options import as_text, nested, numbers_among, parameters
from dali_aesthetic.config import ConfigError
from dali_aesthetic.fields import Section, explain, options_of
from dali_aesthetic.launch.signals import Stopped, stoppable
from dali_aesthetic.stores.store import told

console = Console(stderr=True, highlight=False)
"""Messages for people go to standard error; standard output is for results."""

INCOMPLETE, WRONG_CONFIGURATION = 1, 2


def command(
    app: typer.Typer,
    *takes: str,
    examples: str,
    name: str | None = None,
    descriptions: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Registers a function that returns an exit code as a command of `app`.

    `takes` names the sections and fields of `Config` that become options. Their values are the function's
    first argument, a nested mapping for `Config.build`; its other parameters are options of its own, or
    NamedTuples of them. Without `takes` it has only those. `descriptions` replaces the help of fields that
    the command reads differently.
    """

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        own = list(inspect.signature(function).parameters.values())[bool(takes) :]
        kinds = get_type_hints(function, include_extras=True)
        groups = {one.name: kinds[one.name] for one in own if hasattr(kinds[one.name], "_fields")}
        own = [each for one in own for each in _options(one.name, kinds[one.name], one.default)]
        about = (info for one in own for info in getattr(one.annotation, "__metadata__", ()))
        has_argument = any(isinstance(info, ArgumentInfo) for info in about)
        numbers = numbers_among(own)
        read_here = {option.path: option for option in options_of(numbers)}
        own = [as_text(one, read_here[one.name]) if one.name in read_here else one for one in own]
        made = parameters(takes, descriptions or {}, with_arguments=not has_argument)

        def call(**values: Any) -> None:
            given = {path: values.pop(one.name) for path, one in made.items()}
            given = {path: None if value == [] else value for path, value in given.items()}
            if more := given.pop("", None):
                given["input"] = [*(given["input"] or []), *more]
            first, verbose = (nested(given),) if takes else (), bool(values.get("verbose"))
            for name, group in groups.items():
                values[name] = group(*map(values.pop, group._fields))
            _exit_with(lambda: function(*first, **_read(numbers, values)), verbose)

        call.__signature__ = inspect.Signature([*made.values(), *own])  # type: ignore[attr-defined]
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        app.command(name, epilog=examples, context_settings={"help_option_names": ["-h", "--help"]})(call)
        return function

    return decorate


def _options(name: str, kind: Any, default: Any) -> Iterator[inspect.Parameter]:
    """The parameter of an option, or those of a NamedTuple's fields."""
    if not hasattr(kind, "_fields"):
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        return
    for field, annotation in get_type_hints(kind, include_extras=True).items():
        yield from _options(field, annotation, kind._field_defaults[field])


def _read(numbers: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the numbers among them read from text. Raises `ConfigError`."""
    texts = {name: values[name] for name in numbers.model_fields if values[name] is not None}
    try:
        return values | dict(numbers.model_validate(texts))
    except ValidationError as error:
        raise ConfigError(explain(error, numbers, texts)) from None


def fail(message: str, code: int) -> NoReturn:
    console.print(f"[red]error[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


class Unprinted(Exception):
    """Standard output can't be written. `code` is the exit code of a command that does nothing but print."""

    def __init__(self, code: int) -> None:
        self.code = code


def echo(text: str, nl: bool = True) -> None:
    """Prints to standard output. Raises `Unprinted`, with a message unless the reader has had enough."""
    try:
        typer.echo(text, nl=nl)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter would fail to flush at its end
        if isinstance(error, BrokenPipeError):  # `select | head`
            raise Unprinted(128 + signal.SIGPIPE) from None
        console.print(f"[red]error[/] standard output can't be written: {error.strerror}")
        raise Unprinted(INCOMPLETE) from None


def print_json(result: Any) -> None:
    """The result of work on standard output. Where that fails, the exit code still is the work's."""
    with suppress(Unprinted):
        echo(json.dumps(result, indent=2))


def _exit_with(work: Callable[[], int], verbose: bool) -> NoReturn:
    """Run `work` and exit with its code. An error is one message, not a traceback."""
    try:
        with stoppable():
            code = work()
        sys.exit(code)
    except Unprinted as error:
        sys.exit(error.code)
    except Stopped as stopped:
        fail(
            f"{stopped}: committed shards are kept; run the same command again to go on",
            128 + stopped.signal,
        )
    except Exception as error:
        if verbose:
            traceback.print_exc()
        fail(told(error), _exit_code(error))


def _exit_code(error: Exception) -> int:
    from dali_aesthetic.score.published import WeightsUnavailable

    return WRONG_CONFIGURATION if isinstance(error, ValueError | WeightsUnavailable) else INCOMPLETE
