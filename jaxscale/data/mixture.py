"""Rows of several datasets in one endless shuffled order that can be asked anywhere, and holds no array."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from jaxscale.data.interleave import Interleave
from jaxscale.data.permutation import Permutation, fold_seed
from jaxscale.data.token_rows import Rows, RowSource


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

    Sources take turns by their shares (see `Interleave`), and each goes through its rows epoch by epoch, each epoch
    another permutation. So finding a sample takes the same few operations wherever it is, and no row is seen a second
    time before every other row of its source was seen once.
    """

    def __init__(self, sources: Sequence[Source], *, seed: int) -> None:
        """Prepares the order.

        Args:
          sources: what is mixed.
          seed: any whole number.

        Raises:
          ValueError: there is no source, or a share is not above 0.
        """
        self.sources, self._seed = tuple(sources), seed
        self._turns = Interleave([source.share for source in sources])

    def places(self, samples: Int64[np.ndarray, " N"]) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
        """Which row of which source each sample is.

        Args:
          samples: numbers from 0, without end.

        Returns:
          The sources' numbers, and the rows'.
        """
        sources, own = self._turns.places(samples)
        rows = np.empty_like(own)
        for number, source in enumerate(self.sources):
            chosen = sources == number
            rows[chosen] = self._shuffled(f"source {number}", own[chosen], source.rows.num_sequences)
        return sources, rows

    def rows(self, first_sample: int, num: int) -> Rows:
        """Samples first_sample, first_sample + 1, ...

        Args:
          first_sample: from 0.
          num: how many.
        """
        sources, places = self.places(np.arange(first_sample, first_sample + num, dtype=np.int64))
        mixed: Rows = {}
        for number in np.unique(sources).tolist():
            into = sources == number
            found = self.sources[number].rows.sequences(places[into])
            if into.all():
                return found
            for name, leaf in found.items():
                mixed.setdefault(name, np.empty((num, *leaf.shape[1:]), leaf.dtype))[into] = leaf
        return mixed

    def num_epochs(self, num_samples: int) -> list[float]:
        """How often each source's rows are seen in so many samples.

        Args:
          num_samples: the length of a run.
        """
        return [
            count / source.rows.num_sequences
            for count, source in zip(self._turns.counts(num_samples), self.sources, strict=True)
        ]

    def _shuffled(self, what: str, own: Int64[np.ndarray, " N"], size: int) -> Int64[np.ndarray, " N"]:
        """The rows of a source that its samples are: of each epoch a permutation."""
        epochs, places = np.divmod(own, size)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            places[chosen] = Permutation(size, fold_seed(self._seed, what, epoch)).at(places[chosen])
        return places


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
