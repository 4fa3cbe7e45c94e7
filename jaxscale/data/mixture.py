"""Rows of several datasets in one endless shuffled order that can be asked anywhere, and holds no array."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from jaxscale.data.permutation import Permutation, fold_seed
from jaxscale.data.token_rows import Rows, RowSource

# Samples of a block, in each of which every source has its exact share; shares are rounded to 1 / this.
_BLOCK = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One of the datasets that are mixed.

    Attributes:
      rows: what there is.
      share: of all samples, in relation to the other sources' shares.
    """

    rows: RowSource
    share: float | Fraction


class Mixture:
    """Sample n of a mixture, a pure function of (sources, seed, n): the same for any number of hosts and any mesh.

    Samples are cut into blocks of 65,536, in each of which every source has its share, to 1 sample in 65,536, in an
    order drawn by the seed. A source's own samples go through its rows epoch by epoch, each epoch another permutation.
    So finding a sample takes the same few operations wherever it is.
    """

    def __init__(self, sources: Sequence[Source], *, seed: int) -> None:
        """Prepares the order.

        Args:
          sources: what is mixed; a source of a share so small that it has no sample in a block is given one.
          seed: any whole number.

        Raises:
          ValueError: there is no source, or a share is not above 0.
        """
        if not sources or not all(source.share > 0 for source in sources):
            raise ValueError(f"shares {[float(source.share) for source in sources]} must be there, and above 0")
        self.sources, self._seed = tuple(sources), seed
        self.quotas = _quotas([Fraction(source.share) for source in sources])
        self._ends = np.cumsum(self.quotas, dtype=np.int64)

    def places(self, samples: Int64[np.ndarray, " N"]) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
        """Which row of which source each sample is.

        Args:
          samples: numbers from 0, without end.

        Returns:
          The sources' numbers, and the rows'.
        """
        samples = np.asarray(samples, np.int64)
        blocks, inside = np.divmod(samples, _BLOCK)
        if len(self.sources) > 1:
            inside = self._shuffled("block", blocks, inside, _BLOCK)
        sources = np.searchsorted(self._ends, inside, "right")
        # Which of the source's own samples it is.
        quotas = np.array(self.quotas, np.int64)
        own = blocks * quotas[sources] + inside - (self._ends - quotas)[sources]
        rows = np.empty_like(own)
        for number, source in enumerate(self.sources):
            chosen = sources == number
            epochs, place = np.divmod(own[chosen], source.rows.num_sequences)
            rows[chosen] = self._shuffled(f"source {number}", epochs, place, source.rows.num_sequences)
        return sources, rows

    def rows(self, first_sample: int, num: int) -> Rows:
        """Samples first_sample, first_sample + 1, ...

        Args:
          first_sample: from 0.
          num: how many.
        """
        sources, places = self.places(np.arange(first_sample, first_sample + num, dtype=np.int64))
        parts = {int(number): np.flatnonzero(sources == number) for number in np.unique(sources)}
        found = {number: self.sources[number].rows.sequences(places[into]) for number, into in parts.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        in_order = np.argsort(np.concatenate(list(parts.values())))
        return {
            name: np.concatenate([rows[name] for rows in found.values()])[in_order]
            for name in next(iter(found.values()))
        }

    def num_epochs(self, num_samples: int) -> list[float]:
        """How often each source's rows are seen in so many samples, but for the last block's order.

        Args:
          num_samples: the length of a run.
        """
        return [
            num_samples * quota / _BLOCK / source.rows.num_sequences
            for quota, source in zip(self.quotas, self.sources, strict=True)
        ]

    def _shuffled(
        self, what: str, rounds: Int64[np.ndarray, " N"], places: Int64[np.ndarray, " N"], size: int
    ) -> Int64[np.ndarray, " N"]:
        """Places in the permutations of their rounds."""
        shuffled = np.empty_like(places)
        for number in np.unique(rounds).tolist():
            chosen = rounds == number
            shuffled[chosen] = Permutation(size, fold_seed(self._seed, what, number)).at(places[chosen])
        return shuffled


class Samples:
    """A mixture as a random-access source of single samples, as `grain.python.RandomAccessDataSource` is.

    Grain's samplers and workers take it as it is; nothing here needs grain.

    >>> class Ten:
    ...     num_sequences = 10
    ...     def sequences(self, indices):
    ...         return {"tokens": indices.astype(np.int32)[:, None]}
    >>> samples = Samples(Mixture([Source(rows=Ten(), share=1)], seed=0), num_samples=10)
    >>> sorted(int(samples[n]["tokens"][0]) for n in range(len(samples))) == list(range(10))
    True
    """

    def __init__(self, mixture: Mixture, num_samples: int) -> None:
        """The first `num_samples` samples of a mixture."""
        self._mixture, self._num_samples = mixture, num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, sample: int) -> dict[str, np.ndarray]:
        """One sample: int32 [S] leaves."""
        if not 0 <= sample < self._num_samples:
            raise IndexError(f"sample {sample} must lie in 0..{self._num_samples - 1}")
        return {name: leaf[0] for name, leaf in self._mixture.rows(int(sample), 1).items()}


def _quotas(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """Samples of each source in a block, by largest remainder; each has one at least.

    >>> _quotas([Fraction(1), Fraction(3)])
    (16384, 49152)
    """
    total = sum(shares)
    exact = [share * _BLOCK / total for share in shares]
    quotas = [max(int(one), 1) for one in exact]
    by_rest = sorted(range(len(shares)), key=lambda n: (quotas[n] - exact[n], n))
    for place in range(_BLOCK - sum(quotas)):
        quotas[by_rest[place % len(quotas)]] += 1
    while sum(quotas) > _BLOCK:
        quotas[quotas.index(max(quotas))] -= 1
    return tuple(quotas)
