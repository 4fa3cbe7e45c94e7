"""Counts XLA compilations, so that a loop or a test can prove that nothing recompiles."""

from types import TracebackType
from typing import Self

from jax import monitoring

# One event for each program that XLA builds or the persistent cache hands over; the same name in jax 0.10 and 0.12.
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


class CompileCounter:
    """Counts the programs made ready between `__enter__` and `__exit__`, in all threads of this process.

    A call of a jitted function with shapes, dtypes and shardings it has seen counts nothing. Eager operations are
    programs too: `jnp.zeros(3)` counts once. Counters may be nested; each counts on its own.

    >>> import jax, jax.numpy as jnp
    >>> double = jax.jit(lambda x: x * 2)
    >>> x = jnp.ones(3)
    >>> with CompileCounter() as counter:
    ...     y = double(x)
    ...     y = double(x)
    >>> counter.num_programs
    1
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._num_cache_hits = 0
        self._compile_s = 0.0

    @property
    def num_programs(self) -> int:
        """Programs made ready: compiled by XLA or fetched from the persistent cache."""
        return len(self._names)

    @property
    def num_compiled(self) -> int:
        """Programs compiled by XLA, those from the persistent cache left out."""
        return len(self._names) - self._num_cache_hits

    @property
    def num_cache_hits(self) -> int:
        """Programs fetched from the persistent compilation cache."""
        return self._num_cache_hits

    @property
    def compile_s(self) -> float:
        """Seconds spent in compiling or fetching, summed over the programs."""
        return self._compile_s

    @property
    def names(self) -> tuple[str, ...]:
        """The programs' names, in the order in which they were made ready; jit of `f` is called `jit(f)` or `jit_f`."""
        return tuple(self._names)

    def __enter__(self) -> Self:
        monitoring.register_event_duration_secs_listener(self._on_duration)
        monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        monitoring.unregister_event_duration_listener(self._on_duration)
        monitoring.unregister_event_listener(self._on_event)

    def _on_duration(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event == _COMPILE_EVENT:
            self._names.append(str(details["fun_name"]))
            self._compile_s += duration_secs

    def _on_event(self, event: str, **details: str | int) -> None:
        if event == _CACHE_HIT_EVENT:
            self._num_cache_hits += 1
