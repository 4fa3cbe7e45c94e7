"""The bytes that a collective makes each device send: one definition for predictions and compiled programs."""

from jaxscale.errors import UsageError
from jaxscale.sharding.collectives import COLLECTIVE_KINDS, CollectiveKind

__all__ = ["COLLECTIVE_KINDS", "CollectiveKind", "ring_bytes"]


def ring_bytes(kind: CollectiveKind, num_bytes: int, group_size: int) -> float:
    """The bytes that each device of a group sends, by the ring algorithm, which is optimal in bytes.

    With n devices and an array of s bytes:

        all_gather          s (n - 1) / n     s: of the gathered array
        reduce_scatter      s (n - 1) / n     s: of the array to be reduced, whole on every device
        all_reduce          2 s (n - 1) / n   s: of the array to be reduced; a reduce_scatter and an all_gather
        all_to_all          s (n - 1) / n     s: of what one device holds before (and after)
        collective_permute  s                 s: of what one device sends; 0 in a group of one

    Args:
      kind: of the collective.
      num_bytes: s, as the table says for each kind.
      group_size: n, at least 1.

    Raises:
      UsageError: the kind is unknown or the group is empty.

    Reference: Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations, section 3,
    https://doi.org/10.1016/j.jpdc.2008.09.002; Chan et al. 2007, Collective communication: theory, practice, and
    experience, section 4, https://doi.org/10.1002/cpe.1206

    >>> ring_bytes("all_reduce", 1024, 4)
    1536.0
    """
    if kind not in COLLECTIVE_KINDS:
        raise UsageError(f"kind={kind!r} is no collective; expected one of {', '.join(COLLECTIVE_KINDS)}")
    if group_size < 1:
        raise UsageError(f"group_size={group_size} must be at least 1")
    if group_size == 1:
        return 0.0
    if kind == "collective_permute":
        return float(num_bytes)
    rounds = 2 if kind == "all_reduce" else 1
    return rounds * num_bytes * (group_size - 1) / group_size
