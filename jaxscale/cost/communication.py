"""The bytes that a step makes its devices move, by kind of collective and mesh axis."""

from jaxscale.cost.rings import COLLECTIVE_KINDS, CollectiveKind, ring_bytes

__all__ = ["COLLECTIVE_KINDS", "CollectiveKind", "ring_bytes"]
