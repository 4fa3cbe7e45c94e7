"""A pseudo-random permutation of 0..size-1 that can be asked anywhere and holds no array."""

import hashlib

import numpy as np
from jaxtyping import Int64, UInt64

# Four rounds of a Feistel network with random functions give a strong pseudo-random permutation (Luby and Rackoff,
# 1988); with halves of a few bits and a weak mixer more are needed before small sizes look shuffled.
_NUM_ROUNDS = 12


def fold_seed(seed: int, *names: int | str) -> int:
    """A new seed of 63 bits for each (seed, names): the same on every machine and every version.

    Args:
      seed: any whole number.
      names: what the new seed is for, such as `"epoch", 3`.

    >>> fold_seed(0, "epoch", 1) == fold_seed(0, "epoch", 1) != fold_seed(0, "epoch", 2)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Permutation:
    """A bijection of 0..size-1 chosen by a seed, in O(1) memory and O(1) time for each value.

    A Feistel network permutes the numbers of ceil(log2(size)) bits; a value that falls at or above `size` is sent
    through it again until it falls below (cycle walking, fewer than 2 passes expected), which leaves a permutation of
    0..size-1. Not for cryptography. The arithmetic is ours alone, so no library's release can change a data order.

    Reference: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, sections 3 and 4.

    >>> sorted(Permutation(5, seed=1)(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    >>> Permutation(10**12, seed=7)(10**12 - 1) < 10**12
    True
    """

    def __init__(self, size: int, seed: int) -> None:
        """Prepares the permutation.

        Args:
          size: how many numbers are permuted, 1 to 2**62.
          seed: any whole number.

        Raises:
          ValueError: `size` is out of range.
        """
        if not 1 <= size <= 2**62:
            raise ValueError(f"size={size} must be between 1 and 2**62")
        self.size = size
        self.seed = seed
        num_bits = (size - 1).bit_length()
        self._num_right_bits = np.uint64(num_bits - num_bits // 2)
        self._left_mask = np.uint64((1 << (num_bits // 2)) - 1)
        self._right_mask = np.uint64((1 << (num_bits - num_bits // 2)) - 1)
        keys = [fold_seed(seed, "permutation", size, round_) for round_ in range(_NUM_ROUNDS)]
        self._round_keys = np.array(keys, np.uint64)

    def __call__(self, index: int | Int64[np.ndarray, "..."]) -> int | Int64[np.ndarray, "..."]:
        """The numbers that stand at `index`.

        Args:
          index: a position, or any array of them, each in 0..size-1.

        Returns:
          For an int an int, for an array an int64 array of its shape.

        Raises:
          IndexError: a position is out of range.
        """
        if isinstance(index, (int, np.integer)):
            return int(self.at(np.array([index], np.int64))[0])
        return self.at(index)

    def at(self, positions: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """The numbers that stand at `positions`: `__call__` for arrays only.

        Args:
          positions: int64 of any shape, each in 0..size-1.

        Returns:
          int64 of the same shape.

        Raises:
          IndexError: a position is out of range, or not a whole number.
        """
        positions = np.asarray(positions)
        if positions.dtype.kind not in "iu":
            raise IndexError(f"positions must be whole numbers, got an array of {positions.dtype}")
        if positions.size and not (int(positions.min()) >= 0 and int(positions.max()) < self.size):
            raise IndexError(f"positions {positions.min()}..{positions.max()} must lie in 0..{self.size - 1}")
        values = self._rounds(positions.astype(np.uint64).ravel())
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._rounds(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64).reshape(positions.shape)

    def _rounds(self, values: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
        left, right = values >> self._num_right_bits, values & self._right_mask
        for round_, key in enumerate(self._round_keys):
            if round_ % 2:
                right = right ^ (_mix(left + key) & self._right_mask)
            else:
                left = left ^ (_mix(right + key) & self._left_mask)
        return (left << self._num_right_bits) | right


def draws(seed: int, name: str, rows: Int64[np.ndarray, " N"], num: int) -> UInt64[np.ndarray, "N num"]:
    """Random numbers of 64 bits for each row: a pure function of (seed, name, row), the same in every version.

    SplitMix64, begun for each row at a place of its own.

    Args:
      seed: any whole number.
      name: what the numbers are for.
      rows: the rows' own numbers, such as places in a data order.
      num: how many for each.

    Reference: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, section 3.

    >>> both = draws(0, "masks", np.array([5, 6]), 4)
    >>> bool((both[1] == draws(0, "masks", np.array([6]), 4)[0]).all())
    True
    """
    begin = _mix(np.asarray(rows).astype(np.uint64) + np.uint64(fold_seed(seed, "draws", name)))
    steps = np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(begin[:, None] + steps[None, :])


def _mix(values: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
