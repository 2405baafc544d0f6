"""The platform that a program is traced for: the default backend, or another one that it is only compiled for."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_other: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """cpu, gpu or tpu."""
    return _other.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Programs traced in the block are for this platform, whatever runs here."""
    token = _other.set(name)
    try:
        yield
    finally:
        _other.reset(token)
