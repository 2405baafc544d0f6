"""Which implementation of an operation programs are traced with.

An operation is a function in plain JAX, its default implementation "xla", and may have others by name. Models call the
operation; what they get is decided here, once per program, as the platform is in `target`. "auto" means the one that
was measured to be the fastest for the arguments at hand (`wins`), and without a measurement the one in plain JAX.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax

from jaxatoms.ops import wins

XLA, AUTO = "xla", "auto"


class Unsupported(ValueError):
    """An implementation cannot compute what it is asked for."""


_implementations: dict[str, dict[str, Callable]] = {}  # of every operation, by name
# Pairs of operation and implementation. JAX traces a program again where they are others.
_chosen = jax.make_user_context(())


def operation(function: Callable) -> Callable:
    """Decorator of the implementation in plain JAX; `function.__name__` names the operation."""
    name = function.__name__
    _implementations[name] = {XLA: function}

    @functools.wraps(function)
    def call(*args, implementation: str | None = None):
        chosen = implementation or dict(_chosen.value).get(name, XLA)
        if chosen != AUTO:
            return _implementations[name][chosen](*args)
        try:
            return _implementations[name][wins.measured(name, args) or XLA](*args)
        except Unsupported:
            return function(*args)

    return call


def implements(name: str, implementation: str) -> Callable[[Callable], Callable]:
    """Decorator of another implementation of the operation `name`, with its arguments."""

    def register(function: Callable) -> Callable:
        _implementations[name][implementation] = function
        return function

    return register


def implementations(name: str) -> list[str]:
    """Names of the implementations of an operation, the one in plain JAX first."""
    return list(_implementations[name])


@contextlib.contextmanager
def using(**chosen: str) -> Iterator[None]:
    """Programs traced in the block use these implementations, or `auto`: `using(residual_pair="pallas_tpu")`.

    Raises:
      ValueError: an unknown operation or implementation.
    """
    for name, implementation in chosen.items():
        known = _implementations.get(name, {})
        if implementation not in known and implementation != AUTO:
            raise ValueError(f"{name} has no implementation {implementation!r}; known are {', '.join(known) or 'none'}")
    with _chosen(tuple(sorted((dict(_chosen.value) | chosen).items()))):
        yield


@contextlib.contextmanager
def using_kernels(implementation: str) -> Iterator[None]:
    """Programs traced in the block use this implementation of every operation that has it, or `auto`."""
    having = [name for name, known in _implementations.items() if implementation in known or implementation == AUTO]
    with using(**dict.fromkeys(having, implementation)):
        yield
