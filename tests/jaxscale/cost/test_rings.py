"""The bytes of every kind of collective, counted here by playing the rounds of the ring."""

import pytest

from jaxscale.cost.communication import COLLECTIVE_KINDS, ring_bytes
from jaxscale.errors import UsageError


def bytes_of_played_ring(kind: str, num_bytes: int, n: int) -> int:
    """Every device sends one of n equal blocks to its neighbour in each round; n - 1 rounds a pass."""
    block, passes = num_bytes // n, {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}[kind]
    return sum(block for _ in range(passes) for _ in range(n - 1))


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter", "all_reduce"])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_as_many_bytes_as_the_rounds_of_the_ring_send(kind, n):
    assert ring_bytes(kind, 4096, n) == bytes_of_played_ring(kind, 4096, n)


def test_all_to_all_sends_every_block_but_ones_own():
    blocks = [4096 // 8] * 8
    assert ring_bytes("all_to_all", 4096, 8) == sum(blocks[1:])


def test_permute_sends_all_it_holds():
    assert ring_bytes("collective_permute", 4096, 8) == 4096


@pytest.mark.parametrize("kind", COLLECTIVE_KINDS)
def test_one_device_sends_nothing(kind):
    assert ring_bytes(kind, 4096, 1) == 0


def test_refuses_what_is_no_collective():
    with pytest.raises(UsageError, match="all_gather, reduce_scatter"):
        ring_bytes("broadcast", 1, 2)
    with pytest.raises(UsageError, match="group_size=0"):
        ring_bytes("all_reduce", 1, 0)
