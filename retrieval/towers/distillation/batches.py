"""The batches of a distillation: which queries batch n holds, of like lengths, with the teacher's vectors of them."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32, Int32, Int64

from jaxscale.data.batches import BatchSchedule
from jaxscale.data.buckets import pad_to_bucket
from jaxscale.errors import DataError
from retrieval.towers.distillation.data import QueryData, QuerySource
from retrieval.towers.encoder import Encoder
from retrieval.towers.in_batch import NO_DOCUMENT
from retrieval.towers.tokens import TokenTable

# So many batches of an epoch are sorted by length and cut anew: short queries then meet short ones and are padded
# little. Which of them comes when is drawn, so that lengths do not rise and fall with the steps.
_NUM_SORTED_TOGETHER = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenPositives:
    """The frozen vectors of the documents that are relevant to a query.

    Attributes:
      vectors: of every document of the corpus, as an inner product with a query's compares them.
      relevant: [N M] beside the queries: rows of their relevant documents, at least one, padded with `NO_DOCUMENT`.
    """

    vectors: Float32[np.ndarray, "D E"]
    relevant: Int32[np.ndarray, "N M"]

    def leaves(self, queries: Int64[np.ndarray, "B"], seed: tuple[int, ...]) -> dict[str, np.ndarray]:
        """What a batch has of them: for each query one of its relevant documents, drawn."""
        known = self.relevant[queries]
        num_known = (known != NO_DOCUMENT).sum(axis=1)
        drawn = np.random.default_rng(seed).integers(num_known)
        own = np.take_along_axis(known, drawn[:, None], axis=1)
        return {"document_ids": own, "document_vectors": self.vectors[own], "known_positives": known}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryBatches:
    """The training queries as tokens, the teacher's vectors of them, and which of them batch n holds.

    Attributes:
      queries: tokens, by the student's tokenizer.
      teacher_vectors: beside them.
      positives: the documents that terms of the loss need; None without.
      schedule: the examples of every batch, before those of like lengths are put together; it skips none.
      query_buckets: padded lengths.
      pad_id: the token that fills.
    """

    queries: TokenTable
    teacher_vectors: Float32[np.ndarray, "N E"]
    positives: FrozenPositives | None
    schedule: BatchSchedule
    query_buckets: tuple[int, ...]
    pad_id: int

    def examples(self, number: int) -> Int64[np.ndarray, "B"]:
        """The queries of batch `number`, all different: a pure function of the schedule and the queries' lengths."""
        size, num_batches = self.schedule.global_batch_size, self.schedule.num_batches_per_epoch
        place = number % num_batches
        first = number - place % _NUM_SORTED_TOGETHER
        # The last of an epoch are fewer: with those of the next, a query would stand in them twice.
        count = min(_NUM_SORTED_TOGETHER, num_batches - (place - place % _NUM_SORTED_TOGETHER))
        together = np.concatenate([self.schedule.indices(first + i) for i in range(count)])
        together = together[np.argsort(np.diff(self.queries.offsets)[together], kind="stable")]
        turns = np.random.default_rng((self.schedule.seed, first)).permutation(count)
        start = turns[number - first] * size
        return together[start : start + size]

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """Global batch `number`: B queries.

        Returns:
          `query_tokens` int32 and `query_mask` bool [B S]; `teacher_vectors` float32 [B E]; with positives also
          `document_ids` int32 [B 1], `document_vectors` float32 [B 1 E] and `known_positives` int32 [B M].
        """
        rows = self.examples(number)
        tokens, mask = pad_to_bucket(self.queries.rows(rows), self.query_buckets, self.pad_id)
        leaves = {"query_tokens": tokens, "query_mask": mask, "teacher_vectors": self.teacher_vectors[rows]}
        if self.positives is None:
            return leaves
        return leaves | self.positives.leaves(rows, (self.schedule.seed, number))

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The shapes of every batch, one for each bucket."""
        size, num_dims = self.schedule.global_batch_size, self.teacher_vectors.shape[1]
        shapes = [_shapes(size, length, num_dims) for length in self.query_buckets]
        if self.positives is None:
            return shapes
        documents = {
            "document_ids": jax.ShapeDtypeStruct((size, 1), np.int32),
            "document_vectors": jax.ShapeDtypeStruct((size, 1, num_dims), np.float32),
            "known_positives": jax.ShapeDtypeStruct((size, self.positives.relevant.shape[1]), np.int32),
        }
        return [of_length | documents for of_length in shapes]


def _shapes(size: int, length: int, num_dims: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "query_tokens": jax.ShapeDtypeStruct((size, length), np.int32),
        "query_mask": jax.ShapeDtypeStruct((size, length), np.bool_),
        "teacher_vectors": jax.ShapeDtypeStruct((size, num_dims), np.float32),
    }


def make_positives(
    relevant: list[tuple[str, ...]], doc_ids: list[str], vectors: Float32[np.ndarray, "D E"]
) -> FrozenPositives:
    """Lays out the relevant documents of queries.

    Args:
      relevant: of each query the ids of its relevant documents, at least one.
      doc_ids: of the documents that have vectors, row by row.
      vectors: their vectors.

    Raises:
      DataError: a relevant document has no vector.
    """
    row_of = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    unknown = next((doc for docs in relevant for doc in docs if doc not in row_of), None)
    if unknown is not None:
        raise DataError(f"teacher.vectors has no row of the relevant document {unknown!r}; is it of another corpus?")
    rows = np.full((len(relevant), max(map(len, relevant))), NO_DOCUMENT, np.int32)
    for row, docs in enumerate(relevant):
        rows[row, : len(docs)] = [row_of[doc] for doc in docs]
    return FrozenPositives(vectors=vectors, relevant=rows)


def make_batches(
    source: QuerySource,
    student: Encoder,
    teacher_vectors: Float32[np.ndarray, "N E"],
    positives: FrozenPositives | None,
    schedule: BatchSchedule,
    data: QueryData,
) -> QueryBatches:
    """Tokenises the training queries for the student.

    Args:
      source: the queries.
      student: its tokenizer, prefix and length.
      teacher_vectors: of the source's queries, in their order.
      positives: of these queries, or None.
      schedule: over these queries.
      data: the padded lengths.
    """
    return QueryBatches(
        queries=TokenTable.of(student.tokenize([query.text for query in source.queries]).ids),
        teacher_vectors=teacher_vectors,
        positives=positives,
        schedule=schedule,
        query_buckets=data.query_buckets,
        pad_id=student.tokenizer.pad_id,
    )
