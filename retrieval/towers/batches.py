"""The batches of a dual tower: which pairs and hard negatives batch n holds, padded to a few static lengths."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Literal, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Int, Int32

from jaxscale.data.batches import BatchSchedule
from jaxscale.data.buckets import pad_to_bucket
from jaxscale.train.job import TrainingIdentity
from retrieval.towers.crops import QueryCrops, make_crops
from retrieval.towers.encoder import tokenize
from retrieval.towers.grouped_batches import GroupedSchedule
from retrieval.towers.in_batch import NO_DOCUMENT
from retrieval.towers.near_duplicates import duplicate_groups
from retrieval.towers.pair_table import PairTable
from retrieval.towers.pairs import PairData, PairSource
from retrieval.towers.sources import groups_of_documents
from retrieval.towers.start import Start
from retrieval.towers.tokens import TokenRow, TokenTable

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatches:
    """The training pairs as tokens, and which of them batch n holds.

    The examples of an epoch are the labelled pairs and, after them, as many crops of each of `cropped_rows` as were
    asked for.

    Attributes:
      table: who belongs to whom.
      queries: tokens of each query row.
      documents: tokens of each document row of the corpus.
      crops: makes queries out of documents; None where crops are not asked for.
      cropped_rows: the documents it makes them of.
      schedule: the examples of every batch.
      query_buckets: padded lengths of queries.
      document_buckets: padded lengths of documents.
      num_hard_negatives: per query and step.
      hard_negative_draws: others at every step, or dealt out over epochs; see `PairData`.
      duplicates: the group of near-duplicates that each document of the corpus is in; None where none are told apart.
      pad_id: the token that fills.
    """

    table: PairTable
    queries: TokenTable
    documents: TokenTable
    crops: QueryCrops | None
    cropped_rows: Int[np.ndarray, "_"]
    schedule: BatchSchedule | GroupedSchedule
    query_buckets: tuple[int, ...]
    document_buckets: tuple[int, ...]
    num_hard_negatives: int
    hard_negative_draws: Literal["step", "epoch"]
    duplicates: Int[np.ndarray, "N"] | None
    pad_id: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Global batch `step`: B queries, each with its own document and its hard negatives (P documents in all).

        Returns:
          `query_tokens` int32 and `query_mask` bool [B S]; `document_tokens` and `document_mask` [B P S];
          `document_ids` int32 [B P], rows of the corpus; `known_positives` int32 [B M]; `document_groups` int32 [B P],
          only where near-duplicates are told; `taught_scores` float32 [B P], only where a re-ranker's are learned from.
        """
        examples = self.schedule.indices(step)
        is_crop = examples >= len(self.table.pairs)
        query_rows, own_of_pairs = self.table.pairs[examples[~is_crop]].T
        own_of_crops = self.cropped_rows[(examples[is_crop] - len(self.table.pairs)) % len(self.cropped_rows)]
        seed = (self.schedule.seed, step)
        query_ids = _either(is_crop, self._crops(own_of_crops, seed), self.queries.rows(query_rows))
        own = np.array(_either(is_crop, own_of_crops, own_of_pairs), np.int32)
        known_positives = np.full((len(examples), self.table.known_positives.shape[1]), NO_DOCUMENT, np.int32)
        known_positives[:, 0] = own
        known_positives[~is_crop] = self.table.known_positives[query_rows]
        document_rows, taught = own[:, None], {}
        if self.num_hard_negatives:
            negatives = self._hard_negatives(step, examples, query_rows)
            document_rows = np.concatenate([document_rows, negatives], axis=1)
            if self.table.taught is not None:
                taught = {"taught_scores": self.table.taught_scores(examples, negatives)}
        query_tokens, query_mask = pad_to_bucket(query_ids, self.query_buckets, self.pad_id)
        flat_tokens, flat_mask = pad_to_bucket(
            self.documents.rows(document_rows.reshape(-1)), self.document_buckets, self.pad_id
        )
        groups = {} if self.duplicates is None else {"document_groups": self.duplicates[document_rows]}
        return {
            "query_tokens": query_tokens,
            "query_mask": query_mask,
            "document_tokens": flat_tokens.reshape(*document_rows.shape, -1),
            "document_mask": flat_mask.reshape(*document_rows.shape, -1),
            "document_ids": document_rows,
            "known_positives": known_positives,
            **groups,
            **taught,
        }

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The shapes of every batch: one for each pair of a query's and a document's bucket."""
        return [
            _shapes(
                self.schedule.global_batch_size,
                1 + self.num_hard_negatives,
                lengths,
                self.table.known_positives.shape[1],
                groups=self.duplicates is not None,
                taught=self.table.taught is not None,
            )
            for lengths in itertools.product(self.query_buckets, self.document_buckets)
        ]

    def _hard_negatives(
        self, step: int, pair_rows: Int[np.ndarray, "B"], query_rows: Int[np.ndarray, "B"]
    ) -> Int[np.ndarray, "B C"]:
        if self.hard_negative_draws == "step":
            return self.table.choose_hard_negatives(query_rows, self.num_hard_negatives, (self.schedule.seed, step))
        epoch = step // self.schedule.num_batches_per_epoch
        return self.table.hard_negatives_of_epoch(pair_rows, self.num_hard_negatives, epoch, self.schedule.seed)

    def _crops(self, document_rows: Int[np.ndarray, "_"], seed: tuple[int, ...]) -> list[Int32[np.ndarray, "_"]]:
        if self.crops is None:
            return []
        rng = np.random.default_rng(seed)
        return [self.crops.crop(document, rng) for document in self.documents.rows(document_rows)]


def _either(choose_first: Bool[np.ndarray, "B"], first: Iterable[T], second: Iterable[T]) -> list[T]:
    """Item i is the next of `first` where `choose_first[i]`, else the next of `second`."""
    firsts, seconds = iter(first), iter(second)
    return [next(firsts if chosen else seconds) for chosen in choose_first]


def make_batches(
    source: PairSource, table: PairTable, data: PairData, start: Start, training: TrainingIdentity
) -> PairBatches:
    """Tokenises the texts of the training pairs.

    Args:
      source: the texts.
      table: who belongs to whom.
      data: lengths, hard negatives and crops.
      start: encoders and tokenizer.
      training: batch size and seed.

    Raises:
      UsageError: there are fewer examples than a batch holds, or a prefix leaves no room for a text.
    """
    queries = [source.queries[query_id].text for query_id in table.query_ids]
    # Documents that no batch can hold stay without tokens.
    used = range(len(source.docs)) if data.crops_per_document else table.document_rows()
    documents: list[TokenRow] = [()] * len(source.docs)
    passages = [source.docs[row].passage for row in used]
    for row, ids in zip(used, tokenize(start.towers.document, start.tokenizer, passages).ids, strict=True):
        documents[row] = ids
    crops = None
    if data.crops_per_document:
        crops = make_crops(start.tokenizer, start.towers.query, start.towers.document)
    cropped = [] if crops is None else [row for row in used if crops.has_text(documents[row])]
    cropped_rows = np.array(cropped, np.int32)
    own_rows = np.concatenate([table.pairs[:, 1], *[cropped_rows] * data.crops_per_document])
    return PairBatches(
        table=table,
        queries=TokenTable.of(tokenize(start.towers.query, start.query_tokenizer, queries).ids),
        documents=TokenTable.of(documents),
        crops=crops,
        cropped_rows=cropped_rows,
        schedule=_schedule(len(own_rows), groups_of_documents(source, data, own_rows), training),
        query_buckets=data.query_buckets,
        document_buckets=data.document_buckets,
        num_hard_negatives=data.num_hard_negatives,
        hard_negative_draws=data.hard_negative_draws,
        duplicates=_duplicates(source, data),
        pad_id=start.pad_id,
    )


def _duplicates(source: PairSource, data: PairData) -> Int32[np.ndarray, "N"] | None:
    """The group of near-duplicates of each document, if it is asked for."""
    if data.duplicate_jaccard is None:
        return None
    return duplicate_groups((doc.passage for doc in source.docs), data.duplicate_jaccard)


def _schedule(
    num_examples: int, groups: Int[np.ndarray, "_"] | None, training: TrainingIdentity
) -> BatchSchedule | GroupedSchedule:
    size, seed = training.global_batch_size, training.seed
    if groups is None:
        return BatchSchedule(num_examples=num_examples, global_batch_size=size, seed=seed)
    return GroupedSchedule.of(groups, global_batch_size=size, seed=seed)


def planned_batch(data: PairData, global_batch_size: int, *, taught: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the largest batch that `PairBatches.batch` gives, without reading the data.

    How many documents are relevant to a query (M) is told by the data alone; 1 stands for it.

    Args:
      data: lengths and hard negatives.
      global_batch_size: B.
      taught: whether a re-ranker's scores are learned from.
    """
    groups = data.duplicate_jaccard is not None
    return _shapes(global_batch_size, 1 + data.num_hard_negatives, data.max_lengths, 1, groups=groups, taught=taught)


def _shapes(
    num_queries: int, num_documents: int, lengths: tuple[int, int], num_known: int, *, groups: bool, taught: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch.

    Args:
      num_queries: B.
      num_documents: P, of each query.
      lengths: tokens of a query and of a document, padded.
      num_known: M, known positives of each query.
      groups: whether documents have groups of near-duplicates.
      taught: whether they have a re-ranker's scores.
    """
    query_length, document_length = lengths
    rows, documents = (num_queries,), (num_queries, num_documents)
    shapes = {
        "query_tokens": ((*rows, query_length), np.int32),
        "query_mask": ((*rows, query_length), np.bool_),
        "document_tokens": ((*documents, document_length), np.int32),
        "document_mask": ((*documents, document_length), np.bool_),
        "document_ids": (documents, np.int32),
        "known_positives": ((*rows, num_known), np.int32),
        **({"document_groups": (documents, np.int32)} if groups else {}),
        **({"taught_scores": (documents, np.float32)} if taught else {}),
    }
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
