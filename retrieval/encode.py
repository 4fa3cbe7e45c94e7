"""Texts to vectors, fast: tokenised, sorted by length, padded to few widths, several batches in flight.

A program is compiled for each (rows, width) that occurs; see `retrieval.length_batches`.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Int32, Int64

from jaxscale.data.buckets import pad_to_bucket
from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.functional import Params
from jaxscale.sharding.plan import replicated, row_sharded
from retrieval.length_batches import batches_by_length, usual_tokens_per_batch
from retrieval.towers.encoder import Encoder, EncoderConfig, apply_encoder

ComputeDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """The vectors of texts.

    Attributes:
      vectors: float32 [N, E]; row i belongs to text i.
      num_truncated: texts that had more tokens than the encoder's `max_length`.
    """

    vectors: Float32[np.ndarray, "N E"]
    num_truncated: int


def encode_texts(
    encoder: Encoder,
    texts: Sequence[str],
    mesh: Mesh,
    *,
    compute_dtype: ComputeDtype = "float32",
    tokens_per_batch: int | None = None,
    num_in_flight: int = 2,
) -> EncodedTexts:
    """The vectors of texts, in their order; `TextEncoder` serves many calls better.

    Args:
      encoder: the tower with its weights and tokenizer.
      texts: N texts, without the encoder's prefix, which is put before them here.
      mesh: its devices share the rows of every batch, whatever its axes are.
      compute_dtype: dtype of the encoder's products; sums are in float32.
      tokens_per_batch: padded tokens of a batch on one device, at most (a longer single text aside); None for
        `usual_tokens_per_batch`.
      num_in_flight: batches computed at the same time.

    Raises:
      DataError: a text can't be tokenised.
      UsageError: `tokens_per_batch` or `num_in_flight` is not positive.
    """
    return TextEncoder(
        encoder,
        mesh,
        compute_dtype=compute_dtype,
        tokens_per_batch=tokens_per_batch,
        num_in_flight=num_in_flight,
    ).encode(texts)


class TextEncoder:
    """An encoder placed on a mesh: its weights are cast and copied to the devices once, for many calls."""

    def __init__(
        self,
        encoder: Encoder,
        mesh: Mesh,
        *,
        compute_dtype: ComputeDtype = "float32",
        tokens_per_batch: int | None = None,
        num_in_flight: int = 2,
    ) -> None:
        """Places the weights; the arguments are those of `encode_texts`."""
        tokens_per_batch = usual_tokens_per_batch(mesh) if tokens_per_batch is None else tokens_per_batch
        for name, value in (("tokens_per_batch", tokens_per_batch), ("num_in_flight", num_in_flight)):
            if value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        self._encoder = encoder
        self._mesh = mesh
        self._compute_dtype = compute_dtype
        self._tokens_per_batch = tokens_per_batch
        self._num_in_flight = num_in_flight
        self._params = jax.device_put(for_inference(encoder.params, compute_dtype), replicated(mesh))

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """The vectors of `texts`; see `encode_texts`."""
        encoded = self._encoder.tokenize(texts)
        vectors = np.empty((len(texts), self._encoder.config.num_dims), np.float32)
        # A program of one device runs in the thread that calls it; one of many devices does not, and must be started
        # in the same order everywhere.
        num_threads = self._num_in_flight if self._mesh.size == 1 else 1
        with ThreadPoolExecutor(num_threads) as pool:
            pending: deque[tuple[Int64[np.ndarray, " B"], Any]] = deque()
            for rows, tokens, mask in self._batches(encoded.ids):
                pending.append((rows, pool.submit(self._run, tokens, mask)))
                if len(pending) > self._num_in_flight:
                    _store(vectors, *pending.popleft())
            while pending:
                _store(vectors, *pending.popleft())
        return EncodedTexts(vectors=vectors, num_truncated=encoded.num_truncated)

    def _batches(
        self, ids: Sequence[Int32[np.ndarray, "_"]]
    ) -> Iterator[tuple[Int64[np.ndarray, " R"], Int32[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]]:
        """Which texts (R of them), and their padded rows (B), the longest texts first."""
        lengths = np.fromiter(map(len, ids), np.int64, count=len(ids))
        max_length, pad_id = self._encoder.config.max_length, self._encoder.tokenizer.pad_id
        for batch in batches_by_length(lengths, max_length, self._tokens_per_batch, self._mesh.size):
            yield batch.rows, *pad_to_bucket([ids[row] for row in batch.filled], (batch.width,), pad_id)

    def _run(self, tokens: Int32[np.ndarray, "B S"], mask: Bool[np.ndarray, "B S"]) -> Float32[Array, "B E"]:
        placed = jax.device_put((tokens, mask), row_sharded(self._mesh))
        vectors = _encode(self._encoder.config, self._compute_dtype, self._params, *placed)
        # With one device, waiting here keeps a thread for each batch in flight.
        return jax.block_until_ready(vectors) if self._mesh.size == 1 else vectors


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    config: EncoderConfig,
    compute_dtype: ComputeDtype,
    params: Params,
    tokens: Int32[Array, "B S"],
    mask: Bool[Array, "B S"],
) -> Float32[Array, "B E"]:
    return apply_encoder(config, params, tokens, mask, compute_dtype=jnp.dtype(compute_dtype))


def for_inference(params: Params, compute_dtype: ComputeDtype) -> Params:
    """Each layer by itself, matrices in the dtype that they are multiplied in; tables, norms and biases as they are."""

    def cast(path: tuple[Any, ...], leaf: Array) -> Array:
        return jnp.asarray(leaf, compute_dtype) if path[-1].key == "kernel" else jnp.asarray(leaf)

    unstacked = params | {"transformer": functional.unstack_layers(params["transformer"])}
    return jax.tree_util.tree_map_with_path(cast, unstacked)


def _store(vectors: Float32[np.ndarray, "N E"], rows: Int64[np.ndarray, " R"], future: Any) -> None:
    vectors[rows] = np.asarray(future.result())[: len(rows)]
