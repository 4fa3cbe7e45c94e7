"""The byte limits that the rules and the guard go by."""

import dataclasses

from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What counts as small, and what is too much to copy.

    Attributes:
      small_leaf_bytes: a leaf below this is left whole over `fsdp`: gathering it costs more than it saves.
      replicated_leaf_bytes: a leaf of which every device would hold more than this, though the mesh has an axis
        to split it over, is refused.
    """

    small_leaf_bytes: int = 64 * 1024
    replicated_leaf_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("small_leaf_bytes", "replicated_leaf_bytes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 0")


DEFAULT_LIMITS = Limits()
