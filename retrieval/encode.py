"""Texts to vectors: tokenised, sorted by length, padded to a few lengths, one compiled program per length."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from jaxscale.data.buckets import pad_to_bucket
from jaxscale.nn.functional import Params
from jaxscale.sharding.plan import replicated, row_sharded
from retrieval.towers.encoder import Encoder, EncoderConfig, apply_encoder

_LENGTH_MULTIPLE = 32
_ROWS_PER_DEVICE = 32


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
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> EncodedTexts:
    """The vectors of texts, in their order.

    Args:
      encoder: the tower with its weights and tokenizer.
      texts: N texts.
      mesh: its devices share the rows of every batch.
      compute_dtype: dtype of the encoder's products; sums are in float32.
    """
    encoded = encoder.tokenize(texts)
    lengths = np.array([len(ids) for ids in encoded.ids], np.int64)
    order = np.argsort(lengths, kind="stable")
    buckets = tuple(range(_LENGTH_MULTIPLE, encoder.config.max_length, _LENGTH_MULTIPLE)) + (encoder.config.max_length,)
    program = _program(encoder.config, mesh, compute_dtype)
    params = jax.device_put(encoder.params, replicated(mesh))
    num_rows = _ROWS_PER_DEVICE * mesh.size
    vectors = np.empty((len(texts), encoder.config.num_dims), np.float32)
    pending = []
    for start in range(0, len(texts), num_rows):
        rows = order[start : start + num_rows]
        tokens, mask = pad_to_bucket(
            [encoded.ids[row] for row in np.resize(rows, num_rows)], buckets, encoder.tokenizer.pad_id
        )
        pending.append((rows, program(params, *jax.device_put((tokens, mask), row_sharded(mesh)))))
    for rows, block in pending:
        vectors[rows] = np.asarray(block)[: len(rows)]
    return EncodedTexts(vectors=vectors, num_truncated=encoded.num_truncated)


@functools.lru_cache(maxsize=8)
def _program(config: EncoderConfig, mesh: Mesh, compute_dtype: str) -> Callable[[Params, Array, Array], Array]:
    def encode(params: Params, tokens: Array, mask: Array) -> Array:
        return apply_encoder(config, params, tokens, mask, compute_dtype=jnp.dtype(compute_dtype))

    return jax.jit(encode, out_shardings=replicated(mesh))
