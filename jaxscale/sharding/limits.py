"""The limits that the rules and the guard go by."""

import dataclasses

from jaxscale.errors import UsageError

_LEAST = {"small_leaf_bytes": 0, "replicated_leaf_bytes": 0, "constant_bytes": 0, "max_flops_ratio": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What counts as small, and what is too much to copy.

    Attributes:
      small_leaf_bytes: a leaf below this is left whole over `fsdp`: gathering it costs more than it saves.
      replicated_leaf_bytes: a leaf of which every device would hold more than this, though the mesh has an axis
        to split it over, is refused; so is a larger array that a compiled program copies whole to change its sharding.
      constant_bytes: an array above this that the computation closes over is refused: every device gets a copy.
      max_flops_ratio: how often all devices together may compute what is to be computed once, matmuls counted.
    """

    small_leaf_bytes: int = 64 * 1024
    replicated_leaf_bytes: int = 16 * 1024 * 1024
    constant_bytes: int = 1024 * 1024
    max_flops_ratio: float = 1.05

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise UsageError(f"{name}={getattr(self, name)} must be at least {least}")


DEFAULT_LIMITS = Limits()
