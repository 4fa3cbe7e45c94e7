"""What a job says of its text: which token datasets, in which shares, cut into rows how."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from jaxscale.data.mixture import Mixture, Source
from jaxscale.data.token_dataset import TokenDataset
from jaxscale.data.token_rows import ConcatenatedRows, PackedRows, RowSource
from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextData:
    """The text that a model is trained on.

    Attributes:
      datasets: folders of token datasets.
      weights: the share of each in all rows, in relation to each other; empty for what `epochs` says.
      epochs: how often each is seen for one pass of the mixture; empty for once each.
      rows: "packed": documents share rows without seeing each other; "concatenated": one follows the other in one row.
      held_out: the folder of the dataset to evaluate on; empty for none.
      num_held_out_sequences: rows of it that are evaluated on, the first ones; all, where it has fewer.
    """

    datasets: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    epochs: tuple[float, ...] = ()
    rows: Literal["packed", "concatenated"] = "packed"
    held_out: str = ""
    num_held_out_sequences: int = 256

    def __post_init__(self) -> None:
        if self.num_held_out_sequences < 1:
            raise UsageError(f"num_held_out_sequences={self.num_held_out_sequences} must be at least 1")
        if self.held_out and self.held_out in self.datasets:
            raise UsageError(f"held_out={self.held_out!r} is among the datasets trained on; keep some text apart")
        if len(set(self.datasets)) < len(self.datasets):
            raise UsageError(f"datasets={list(self.datasets)} names a folder twice; give it a larger weight instead")
        if self.weights and self.epochs:
            raise UsageError("weights and epochs both say the datasets' shares; give one of them")
        for name in ("weights", "epochs"):
            given = getattr(self, name)
            if given and len(given) != len(self.datasets):
                raise UsageError(
                    f"{name} has {len(given)} numbers for {len(self.datasets)} datasets; give one for each"
                )
            if not all(0 < number < float("inf") for number in given):
                raise UsageError(f"{name}={list(given)} must be finite and above 0; leave a dataset out instead")

    def open(self) -> tuple[TokenDataset, ...]:
        """The datasets to train on and, last, the held-out one, if there is one.

        Raises:
          DataError: one is absent.
          UsageError: none is named, they were made by different tokenizers, or the held-out one is trained on.
          VerificationError: one is damaged.
        """
        if not self.datasets:
            raise UsageError(
                "data.datasets is not given; add `--data.datasets DIR`, a folder that `jaxscale data tokenize` made"
            )
        opened = [TokenDataset.open(path) for path in (*self.datasets, *([self.held_out] if self.held_out else []))]
        first = opened[0]
        for other in opened[1:]:
            if other.id == first.id:
                raise UsageError(f"{first.path} and {other.path} are the same dataset; keep one of them")
            if other.config.tokenizer_sha256 != first.config.tokenizer_sha256:
                raise UsageError(
                    f"{first.path} and {other.path} were made by different tokenizers "
                    f"({first.tokenizer_sha256[:12]} and {other.tokenizer_sha256[:12]}); tokenize both with one"
                )
        return tuple(opened)

    def mixture(self, datasets: Sequence[TokenDataset], sequence_length: int, seed: int) -> Mixture:
        """The endless order of rows.

        Args:
          datasets: those to train on.
          sequence_length: S, tokens of a row.
          seed: of the order.

        Raises:
          UsageError: a dataset has no rows of this length.
        """
        sources = [rows_of(dataset, self.rows, sequence_length) for dataset in datasets]
        if self.weights:
            shares = [Fraction(weight) for weight in self.weights]
        else:
            epochs = self.epochs or (1.0,) * len(sources)
            shares = [Fraction(times) * rows.num_sequences for times, rows in zip(epochs, sources, strict=True)]
        return Mixture([Source(rows=r, share=s) for r, s in zip(sources, shares, strict=True)], seed=seed)


def rows_of(dataset: TokenDataset, rows: Literal["packed", "concatenated"], sequence_length: int) -> RowSource:
    """The rows of a dataset, cut as `rows` says.

    Args:
      dataset: where the tokens are.
      rows: "packed" or "concatenated".
      sequence_length: S, tokens of a row.

    Raises:
      UsageError: it has no rows of this length.
    """
    if rows == "packed":
        return PackedRows(dataset, sequence_length)
    return ConcatenatedRows(dataset, sequence_length)
