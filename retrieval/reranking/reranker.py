"""A re-ranker placed on a mesh: what Python users call to score passages for a query."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Int32

from jaxscale.data.buckets import pad_to_bucket
from jaxscale.data.text_pairs import TokenIds
from jaxscale.errors import DataError
from jaxscale.mesh import mesh_from_text
from jaxscale.nn.functional import Params
from jaxscale.sharding.plan import replicated, row_sharded
from jaxscale.store.checksums import Check
from retrieval.encode import ComputeDtype, for_inference
from retrieval.length_batches import batches_by_length, usual_tokens_per_batch
from retrieval.reranking.cross_encoder import CrossEncoderConfig, apply_cross_encoder, check_room
from retrieval.reranking.folder import RerankerFolder, read_reranker

# Joint rows held at a time, so that those of a large run need not be in memory together.
_ROWS_AT_ONCE = 16_384


class Reranker:
    """A cross-encoder whose weights are cast and copied to the devices once, for many calls."""

    def __init__(self, folder: RerankerFolder, mesh: Mesh, *, compute_dtype: ComputeDtype = "float32") -> None:
        """Places the weights.

        Args:
          folder: the re-ranker.
          mesh: its devices share the rows of every batch, whatever its axes are.
          compute_dtype: of the transformer's products; sums are in float32.
        """
        model = folder.model
        self.identity, self.model = folder.identity, model
        self._mesh, self._compute_dtype = mesh, compute_dtype
        params = {**for_inference(model.params, compute_dtype), "head": model.params["head"]}
        self._params = jax.device_put(params, replicated(mesh))

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        mesh: Mesh | None = None,
        compute_dtype: ComputeDtype = "float32",
        check: Check = "full",
    ) -> Self:
        """Opens a re-ranker's folder, or the training run that exported one.

        Args:
          path: the folder.
          mesh: the devices to use; None: all of them.
          compute_dtype: of the transformer's products.
          check: `full` compares every byte with the manifest, `sizes` names and sizes only.

        Raises:
          DataError: the folder holds no re-ranker.
          VerificationError: it is damaged; the message names the file.
        """
        folder = read_reranker(Path(path), check=check)
        return cls(folder, mesh_from_text("") if mesh is None else mesh, compute_dtype=compute_dtype)

    def scores(self, query: str, passages: Sequence[str]) -> Float32[np.ndarray, "N"]:
        """How well each of N passages fits a query; higher is better, and other queries' scores say nothing.

        Args:
          query: the query, read whole.
          passages: each is cut where it is too long.

        Raises:
          DataError: the query leaves no room for a passage, or a text can't be tokenised.
        """
        numbered = {str(number): passage for number, passage in enumerate(passages)}
        return self.pair_scores([(query, number) for number in numbered], {query: query}, numbered)

    def pair_scores(
        self, pairs: Sequence[tuple[str, str]], queries: Mapping[str, str], passages: Mapping[str, str]
    ) -> Float32[np.ndarray, "N"]:
        """The scores of N pairs of a query and a document, in their order.

        Args:
          pairs: ids of both.
          queries: query id -> text, of all that are named.
          passages: document id -> text, of all that are named.

        Raises:
          DataError: as `scores`; or a score is not finite.
        """
        tokenizer, max_length = self.model.tokenizer, self.model.config.max_length
        query_ids, doc_ids = (list(dict.fromkeys(ids)) for ids in zip(*pairs, strict=True)) if pairs else ([], [])
        query_tokens = tokenizer.encode_bare([queries[query_id] for query_id in query_ids])
        check_room(self.model.frame, query_tokens, query_ids, max_length)
        of_query = dict(zip(query_ids, query_tokens, strict=True))
        of_doc = dict(zip(doc_ids, tokenizer.encode_bare([passages[doc_id] for doc_id in doc_ids]), strict=True))
        scores = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), _ROWS_AT_ONCE):
            block = pairs[start : start + _ROWS_AT_ONCE]
            rows = [self.model.frame.join(of_query[query], of_doc[doc], max_length) for query, doc in block]
            scores[start : start + len(block)] = self._scores_of(rows)
        if not np.isfinite(scores).all():
            query_id, doc_id = pairs[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise DataError(f"the score of document {doc_id!r} for query {query_id!r} is not finite: mend the model")
        return scores

    def _scores_of(self, rows: Sequence[tuple[TokenIds, TokenIds]]) -> Float32[np.ndarray, "N"]:
        config, mesh = self.model.config, self._mesh
        lengths = np.fromiter((len(ids) for ids, _ in rows), np.int64, count=len(rows))
        scores, pending = np.empty(len(rows), np.float32), []
        for batch in batches_by_length(lengths, config.max_length, usual_tokens_per_batch(mesh), mesh.size):
            filled = [rows[row] for row in batch.filled]
            tokens, mask = pad_to_bucket([ids for ids, _ in filled], (batch.width,), self.model.tokenizer.pad_id)
            types, _ = pad_to_bucket([of_tokens for _, of_tokens in filled], (batch.width,), 0)
            placed = jax.device_put((tokens, mask, types), row_sharded(mesh))
            # Not waited for: the next batch is padded while this one is computed.
            pending.append((batch.rows, _score(config, self._compute_dtype, self._params, *placed)))
        for of_batch, made in pending:
            scores[of_batch] = np.asarray(made)[: len(of_batch)]
        return scores


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    config: CrossEncoderConfig,
    compute_dtype: ComputeDtype,
    params: Params,
    tokens: Int32[Array, "B S"],
    mask: Bool[Array, "B S"],
    types: Int32[Array, "B S"],
) -> Float32[Array, "B"]:
    used = types if config.has_types else None
    return apply_cross_encoder(config, params, tokens, mask, used, compute_dtype=jnp.dtype(compute_dtype))
