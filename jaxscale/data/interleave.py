"""Which of several sources each sample of a mixture is from: spread evenly by their shares, in closed form."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

# Shares are rounded to 1 / this, each among the sources from it on. Products with what is left of it stay below 2**62.
_DENOMINATOR = 2**30


class Interleave:
    """Sources taken in turn, each as often as its share says.

    The first source takes sample n if floor(n * share + 1/2) grows there, the second takes of what is left, and so on.
    So the first n samples hold of each source what its share says, to fewer than there are sources, for every n; and
    a source's own samples come in their order: its second epoch begins when its first has ended.

    >>> Interleave([1, 3]).places(np.arange(8))[0].tolist()
    [1, 0, 1, 1, 1, 0, 1, 1]
    """

    def __init__(self, shares: Sequence[float | Fraction]) -> None:
        """Prepares the order.

        Args:
          shares: of each source, in relation to each other; one so small that it rounds to nothing is given 2**-30.

        Raises:
          ValueError: there is none, or one is not above 0.
        """
        if not shares or not all(share > 0 for share in shares):
            raise ValueError(f"shares {[float(share) for share in shares]} must be there, and above 0")
        exact = [Fraction(share) for share in shares]
        left = [sum(exact[number:]) for number in range(len(exact))]
        self._shares = [
            min(max(round(_DENOMINATOR * share / rest), 1), _DENOMINATOR - 1)
            for share, rest in zip(exact[:-1], left, strict=False)
        ]

    def counts(self, num_samples: int) -> list[int]:
        """Of each source, how many of the first `num_samples` samples are its.

        Args:
          num_samples: 0 to 2**62.
        """
        left, counts = np.array([num_samples], np.int64), []
        for share in self._shares:
            taken = _taken(left, share)
            counts.append(int(taken[0]))
            left = left - taken
        return [*counts, int(left[0])]

    def places(self, samples: Int64[np.ndarray, " N"]) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
        """Of each sample its source, and which of that source's samples it is.

        Args:
          samples: numbers from 0 to 2**62.
        """
        sources = np.full(len(samples), len(self._shares), np.int64)
        own, left = np.array(samples, np.int64), np.arange(len(samples))
        for number, share in enumerate(self._shares):
            before = _taken(own[left], share)
            takes = _taken(own[left] + 1, share) > before
            sources[left[takes]] = number
            own[left] = np.where(takes, before, own[left] - before)
            left = left[~takes]
        return sources, own


def _taken(samples: Int64[np.ndarray, " N"], share: int) -> Int64[np.ndarray, " N"]:
    """floor(samples * share / _DENOMINATOR + 1/2), in numbers that fit 64 bits."""
    whole, rest = np.divmod(samples, _DENOMINATOR)
    return whole * share + (rest * share + _DENOMINATOR // 2) // _DENOMINATOR
