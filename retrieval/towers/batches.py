"""The batches of a dual tower: which pairs and hard negatives batch n holds, padded to a few static lengths."""

import dataclasses

import jax
import numpy as np

from jaxscale.data.batches import BatchSchedule
from jaxscale.data.buckets import pad_to_bucket
from jaxscale.train.job import TrainingIdentity
from retrieval.towers.encoder import tokenize
from retrieval.towers.pairs import PairData, PairSource, PairTable
from retrieval.towers.start import Start
from retrieval.towers.tokens import TokenRow, TokenTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatches:
    """The training pairs as tokens, and which of them batch n holds.

    Attributes:
      table: who belongs to whom.
      queries: tokens of each query row.
      documents: tokens of each document row of the corpus.
      schedule: the pairs of every batch.
      query_buckets: padded lengths of queries.
      document_buckets: padded lengths of documents.
      num_hard_negatives: per query and step.
      pad_id: the token that fills.
    """

    table: PairTable
    queries: TokenTable
    documents: TokenTable
    schedule: BatchSchedule
    query_buckets: tuple[int, ...]
    document_buckets: tuple[int, ...]
    num_hard_negatives: int
    pad_id: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Global batch `step`: B queries, each with its own document and its hard negatives (P documents in all).

        Returns:
          `query_tokens` int32 and `query_mask` bool [B S]; `document_tokens` and `document_mask` [B P S];
          `document_ids` int32 [B P], rows of the corpus; `known_positives` int32 [B M].
        """
        pairs = self.table.pairs[self.schedule.indices(step)]
        query_rows, own = pairs[:, 0], pairs[:, 1]
        seed = (self.schedule.seed, step)
        negatives = self.table.choose_hard_negatives(query_rows, self.num_hard_negatives, seed)
        document_rows = np.concatenate([own[:, None], negatives], axis=1)
        query_tokens, query_mask = pad_to_bucket(self.queries.rows(query_rows), self.query_buckets, self.pad_id)
        flat_tokens, flat_mask = pad_to_bucket(
            self.documents.rows(document_rows.reshape(-1)), self.document_buckets, self.pad_id
        )
        return {
            "query_tokens": query_tokens,
            "query_mask": query_mask,
            "document_tokens": flat_tokens.reshape(*document_rows.shape, -1),
            "document_mask": flat_mask.reshape(*document_rows.shape, -1),
            "document_ids": document_rows,
            "known_positives": self.table.known_positives[query_rows],
        }


def make_batches(
    source: PairSource, table: PairTable, data: PairData, start: Start, training: TrainingIdentity
) -> PairBatches:
    """Tokenises the texts of the training pairs.

    Args:
      source: the texts.
      table: who belongs to whom.
      data: lengths and hard negatives.
      start: encoders and tokenizer.
      training: batch size and seed.

    Raises:
      UsageError: there are fewer pairs than a batch holds.
    """
    schedule = BatchSchedule(
        num_examples=len(table.pairs), global_batch_size=training.global_batch_size, seed=training.seed
    )
    queries = [source.queries[query_id].text for query_id in table.query_ids]
    # Documents that no batch can hold stay without tokens.
    used = table.document_rows()
    documents: list[TokenRow] = [()] * len(source.docs)
    passages = [source.docs[row].passage for row in used]
    for row, ids in zip(used, tokenize(start.towers.document, start.tokenizer, passages).ids, strict=True):
        documents[row] = ids
    return PairBatches(
        table=table,
        queries=TokenTable.of(tokenize(start.towers.query, start.tokenizer, queries).ids),
        documents=TokenTable.of(documents),
        schedule=schedule,
        query_buckets=data.query_buckets,
        document_buckets=data.document_buckets,
        num_hard_negatives=data.num_hard_negatives,
        pad_id=start.tokenizer.pad_id,
    )


def planned_batch(data: PairData, global_batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the largest batch that `PairBatches.batch` gives, without reading the data.

    How many documents are relevant to a query (M) is told by the data alone; 1 stands for it.

    Args:
      data: lengths and hard negatives.
      global_batch_size: B.
    """
    query_length, document_length = data.max_lengths
    rows, documents = (global_batch_size,), (global_batch_size, 1 + data.num_hard_negatives)
    shapes = {
        "query_tokens": ((*rows, query_length), np.int32),
        "query_mask": ((*rows, query_length), np.bool_),
        "document_tokens": ((*documents, document_length), np.int32),
        "document_mask": ((*documents, document_length), np.bool_),
        "document_ids": (documents, np.int32),
        "known_positives": ((*rows, 1), np.int32),
    }
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
