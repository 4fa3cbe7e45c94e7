"""The batches of a re-ranker: which groups of a query and its candidates batch n holds, as joint rows of tokens."""

import dataclasses
from typing import Literal

import jax
import numpy as np
from jaxtyping import Int

from jaxscale.data.batches import BatchSchedule
from jaxscale.data.buckets import pad_to_bucket
from jaxscale.data.permutation import Permutation, fold_seed
from jaxscale.data.text_pairs import PairFrame
from jaxscale.errors import DataError
from jaxscale.train.job import TrainingIdentity
from retrieval.reranking.cross_encoder import CrossEncoder, check_room
from retrieval.reranking.data import RerankerData
from retrieval.towers.pair_table import PairTable
from retrieval.towers.pairs import PairSource
from retrieval.towers.tokens import TokenRow, TokenTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupBatches:
    """The training pairs as tokens, and which of them batch n holds.

    Attributes:
      table: who belongs to whom.
      queries: tokens of each query row, without special tokens.
      documents: the same of each document row of the corpus.
      frame: what stands around a query and a document.
      schedule: the pairs of every batch.
      buckets: padded lengths.
      num_negatives: per query and step.
      hard_negative_draws: see `RerankerData`.
      has_types: whether the model reads the tokens' types.
      pad_id: the token that fills.
    """

    table: PairTable
    queries: TokenTable
    documents: TokenTable
    frame: PairFrame
    schedule: BatchSchedule
    buckets: tuple[int, ...]
    num_negatives: int
    hard_negative_draws: Literal["step", "epoch"]
    has_types: bool
    pad_id: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Global batch `step`: B groups, each of a query with its relevant document first and then its negatives.

        Returns:
          `tokens` int32, `mask` bool and, where the model reads them, `types` int32: [B P S].
        """
        pairs = self.schedule.indices(step)
        query_rows, own = self.table.pairs[pairs].T
        document_rows = np.concatenate([own[:, None], self._negatives(step, pairs, query_rows)], axis=1)
        shape = document_rows.shape
        joined = [
            self.frame.join(query, document, self.buckets[-1])
            for query, documents in zip(self.queries.rows(query_rows), document_rows, strict=True)
            for document in self.documents.rows(documents)
        ]
        tokens, mask = pad_to_bucket([ids for ids, _ in joined], self.buckets, self.pad_id)
        leaves = {"tokens": tokens, "mask": mask}
        if self.has_types:
            leaves["types"], _ = pad_to_bucket([types for _, types in joined], self.buckets, 0)
        return {name: leaf.reshape(*shape, -1) for name, leaf in leaves.items()}

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The shapes of every batch: one for each bucket."""
        size, num_documents = self.schedule.global_batch_size, 1 + self.num_negatives
        return [_shapes(size, num_documents, length, has_types=self.has_types) for length in self.buckets]

    def _negatives(
        self, step: int, pairs: Int[np.ndarray, "B"], query_rows: Int[np.ndarray, "B"]
    ) -> Int[np.ndarray, "B C"]:
        seed, count = self.schedule.seed, self.num_negatives
        if self.table.hard_negatives is None:
            return np.stack([self._drawn(row, fold_seed(seed, "negatives", step, int(row))) for row in query_rows])
        if self.hard_negative_draws == "step":
            return self.table.choose_hard_negatives(query_rows, count, (seed, step))
        epoch = step // self.schedule.num_batches_per_epoch
        return self.table.hard_negatives_of_epoch(pairs, count, epoch, seed)

    def _drawn(self, query_row: int, seed: int) -> Int[np.ndarray, "C"]:
        """The first documents of a random order of the corpus that are not relevant to the query."""
        known = self.table.known_positives[query_row]
        looked_at = min(self.num_negatives + len(known), len(self.documents))
        rows = Permutation(len(self.documents), seed).at(np.arange(looked_at))
        return rows[~np.isin(rows, known)][: self.num_negatives].astype(np.int32)


def make_batches(
    source: PairSource, table: PairTable, data: RerankerData, model: CrossEncoder, training: TrainingIdentity
) -> GroupBatches:
    """Tokenises the texts of the training pairs.

    Args:
      source: the texts.
      table: who belongs to whom.
      data: lengths and negatives.
      model: its tokenizer, and whether it reads types.
      training: batch size and seed.

    Raises:
      DataError: a query leaves its documents no room, or the corpus has too few documents to draw from.
      UsageError: there are fewer pairs than a batch holds.
    """
    if table.hard_negatives is None:
        most_known = table.known_positives.shape[1]
        if len(source.docs) - most_known < data.num_negatives:
            raise DataError(
                f"data.num_negatives={data.num_negatives}, but of the corpus's {len(source.docs)} documents up to "
                f"{most_known} are relevant to one query; ask for fewer"
            )
    queries = model.tokenizer.encode_bare([source.queries[query_id].text for query_id in table.query_ids])
    check_room(model.frame, queries, table.query_ids, data.max_length)
    # Documents that no batch can hold stay without tokens.
    used = range(len(source.docs)) if table.hard_negatives is None else table.document_rows()
    documents: list[TokenRow] = [()] * len(source.docs)
    for row, ids in zip(used, model.tokenizer.encode_bare([source.docs[row].passage for row in used]), strict=True):
        documents[row] = ids[: data.max_length]
    schedule = BatchSchedule(
        num_examples=len(table.pairs), global_batch_size=training.global_batch_size, seed=training.seed
    )
    return GroupBatches(
        table=table,
        queries=TokenTable.of(queries),
        documents=TokenTable.of(documents),
        frame=model.frame,
        schedule=schedule,
        buckets=data.buckets,
        num_negatives=data.num_negatives,
        hard_negative_draws=data.hard_negative_draws,
        has_types=model.config.has_types,
        pad_id=model.tokenizer.pad_id,
    )


def planned_batch(data: RerankerData, global_batch_size: int, *, has_types: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the largest batch that `GroupBatches.batch` gives, without reading the data."""
    return _shapes(global_batch_size, 1 + data.num_negatives, data.max_length, has_types=has_types)


def _shapes(num_queries: int, num_documents: int, length: int, *, has_types: bool) -> dict[str, jax.ShapeDtypeStruct]:
    dtypes = {"tokens": np.int32, "mask": np.bool_, **({"types": np.int32} if has_types else {})}
    shape = (num_queries, num_documents, length)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in dtypes.items()}
