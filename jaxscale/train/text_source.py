"""What a job of text starts with: its datasets opened and checked, and the weights that it begins from."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxscale import typed_json
from jaxscale.data.mixture import Mixture
from jaxscale.data.text_data import TextData, rows_of
from jaxscale.data.token_dataset import TokenDataset
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from jaxscale.nn.functional import Params
from jaxscale.nn.model_folder import load_model
from jaxscale.store.commit import open_committed
from jaxscale.train.corruption import Corrupted, Corruption
from jaxscale.train.held_out import HeldOutText
from jaxscale.train.job import Operation
from jaxscale.train.resume import changes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource:
    """The text of a job.

    Attributes:
      training: the datasets to train on.
      held_out: the one to evaluate on; None for none.
      data: how they are mixed and cut.
    """

    training: tuple[TokenDataset, ...]
    held_out: TokenDataset | None
    data: TextData

    @classmethod
    def open(
        cls, data: TextData, *, vocab_size: int, flags: Sequence[str] = ("--transformer.vocab-size",)
    ) -> "TextSource":
        """Opens the datasets.

        Args:
          data: which, and how.
          vocab_size: of the model.
          flags: that set it, for messages.

        Raises:
          DataError: one is absent.
          UsageError: none is named, they do not fit each other, or have ids beyond the model's vocabulary.
          VerificationError: one is damaged.
        """
        opened = data.open()
        for dataset in opened:
            if dataset.vocab_size > vocab_size:
                raise UsageError(
                    f"{dataset.path}: its tokenizer has {dataset.vocab_size} tokens, the model's vocab_size is "
                    f"{vocab_size}; use a smaller tokenizer, or "
                    + " ".join(f"{flag} {dataset.vocab_size}" for flag in flags)
                )
        held_out = opened[-1] if data.held_out else None
        return cls(training=opened[:-1] if held_out else opened, held_out=held_out, data=data)

    @property
    def tokenizer(self) -> Tokenizer:
        """The one that made all of them."""
        return self.training[0].tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        """The data as JSON values, its folders replaced by what names their content."""
        return {
            **typed_json.encode(self.data),
            "datasets": [dataset.id for dataset in self.training],
            "held_out": "" if self.held_out is None else self.held_out.id,
        }

    def mixture(self, sequence_length: int, seed: int) -> Mixture:
        """The endless order of rows; see `TextData.mixture`."""
        return self.data.mixture(self.training, sequence_length, seed)

    def held_out_text(self, sequence_length: int, *, corruption: Corruption | None) -> HeldOutText | None:
        """The text to evaluate on; None where there is none.

        Args:
          sequence_length: tokens of a row.
          corruption: of every row; without one the model's loss is a code of the text, and so has bits per byte.

        Raises:
          UsageError: the dataset has no rows of this length.
        """
        if self.held_out is None:
            return None
        rows = rows_of(self.held_out, self.data.rows, sequence_length)
        return HeldOutText(
            source=rows if corruption is None else Corrupted(source=rows, corruption=corruption),
            num_sequences=min(self.data.num_held_out_sequences, rows.num_sequences),
            bytes_per_token=self.held_out.num_bytes / self.held_out.num_tokens if corruption is None else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartingModel:
    """The weights that a run begins from.

    Attributes:
      params: host (numpy) arrays.
      id: names the model folder's content.
    """

    params: Params
    id: str


def starting_model(path: str, config: Any, tokenizer: Tokenizer) -> StartingModel:
    """Opens the model that a job begins from.

    Args:
      path: its folder.
      config: of the job's model, which the folder's must be equal to.
      tokenizer: of the job's data, the same.

    Raises:
      DataError: there is no model.
      UsageError: it is another model, or of another tokenizer.
      VerificationError: it is damaged.
    """
    model = load_model(path)
    found = changes(typed_json.encode(model.config), typed_json.encode(config))
    if found:
        named = "".join(f"\n  {change}" for change in found)
        raise UsageError(
            f"{path} is another model than the job's:{named}\n  give --init-from, which takes the folder's"
        )
    if model.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UsageError(
            f"{path} reads tokens of another tokenizer ({model.tokenizer.fingerprint[:12]}) than the datasets' "
            f"({tokenizer.fingerprint[:12]}); tokenize with --tokenizer {path}"
        )
    return StartingModel(params=model.params, id=open_committed(path).manifest.identity)


def identity_of(job: Any, kind: str, source: TextSource, start: StartingModel | None) -> dict[str, Any]:
    """A job as what makes its run what it is: without `operation` and `remat`, and its folders by their content.

    Args:
      job: a dataclass with `data` and `initial_model`.
      kind: tells its class from others.
      source: what its data names.
      start: what its initial model names; None for none.
    """
    identity: dict[str, Any] = typed_json.encode(job)
    for name in ("operation", "remat"):
        del identity[name]
    return identity | {
        "type": kind,
        "data": source.identity,
        "tokenizer": source.tokenizer.fingerprint,
        "initial_model": "" if start is None else start.id,
    }


def check_best_metric(operation: Operation, data: TextData, names: Sequence[str]) -> None:
    """Refuses to choose a checkpoint by what is not computed.

    Args:
      operation: of the job.
      data: of the job.
      names: of the metrics of held-out text.

    Raises:
      UsageError: there is no held-out text, or it has no such metric.
    """
    best = operation.best_metric
    if best and not data.held_out:
        raise UsageError(f"operation.best_metric={best!r} needs data.held_out, the dataset to compute it on")
    operation.check_best_metric(names)
