"""QuACK without Dynamo and Inductor, which importing it draws in for functions that nobody calls here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Function = Callable[..., Any]


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """In the block, `torch.compile` and `torch.compiler.disable` of a function wait until it is called.

    QuACK passes functions to both where it is imported (its tuner, its quantizers for Blackwell), and either
    then imports Dynamo and Inductor: 4 s of the 5 that importing it takes. Torch is changed for all threads
    meanwhile; what another one has compiled just then is compiled too, at its first call. Anything but a
    function goes to torch at once. For the body of a module, which is run once and by one thread.
    """
    with (
        _replaced(torch, "compile", _deferred_compile),
        _replaced(torch.compiler, "disable", _deferred_disable),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, stand_in: Callable[[Function], Function]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, stand_in(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _deferred_compile(compile: Function) -> Function:
    # QuACK looks for `recompile_limit` among the parameters, and imports Dynamo where it isn't.
    def stand_in(model: Any = None, *, recompile_limit: int | None = None, **options: Any) -> Any:
        limit = {} if recompile_limit is None else {"recompile_limit": recompile_limit}
        return _wrapping(functools.partial(compile, **options, **_known(compile, limit)), model)

    return stand_in


def _deferred_disable(disable: Function) -> Function:
    def stand_in(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        return _wrapping(functools.partial(disable, recursive=recursive, **options), fn)

    return stand_in


def _known(function: Function, options: dict[str, Any]) -> dict[str, Any]:
    """Those that this torch has."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


def _wrapping(wrap: Function, wrapped: Any) -> Any:
    """What `wrap` makes of a function, made at its first call; without one a decorator that does this."""
    if wrapped is None:
        return functools.partial(_wrapping, wrap)
    if not inspect.isfunction(wrapped):
        return wrap(wrapped)
    made: list[Function] = []

    @functools.wraps(wrapped)
    def first_made(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(wrap(wrapped))
        return made[0](*args, **kwargs)

    return first_made
