"""The processes that write one checkpoint together: which of them speaks for all, and how they wait for each other."""

import collections

import jax
import orbax.checkpoint.experimental.v1 as ocp

_num_met: collections.Counter[str] = collections.Counter()


def is_primary() -> bool:
    """Whether this is the process that makes and commits directories, and writes what is no array."""
    primary: bool = ocp.multihost.is_primary_host(0)
    return primary


async def meet(what: str) -> None:
    """Waits until all processes are here, over the coordination service, so that a thread may do it.

    Args:
      what: names the place; all processes come there equally often, one thread of each at a time.
    """
    if jax.process_count() > 1:
        _num_met[what] += 1
        name = f"jaxscale.{what}.{_num_met[what]}"
        await ocp.multihost.sync_global_processes(name, operation_id=name)
