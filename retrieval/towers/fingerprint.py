"""The hash that names an encoder: of its weights, its tokenizer and its configuration."""

import hashlib

import numpy as np

from jaxscale import typed_json
from jaxscale.store import arrays
from retrieval.contract import EncoderIdentity
from retrieval.towers.encoder import Encoder, Side


def encoder_identity(encoder: Encoder, side: Side) -> EncoderIdentity:
    """Who an encoder is, as an embedding contract lists it."""
    return EncoderIdentity(
        side=side,
        sha256=encoder_sha256(encoder),
        prefix=encoder.config.prefix,
        pooling=encoder.config.pooling,
        max_length=encoder.config.max_length,
    )


def encoder_sha256(encoder: Encoder) -> str:
    """The SHA-256 of all that an encoder's vectors depend on, rounding aside, as 64 hexadecimal digits.

    Over, in this order: the canonical JSON of `{"config", "tokenizer"}`, then for every leaf of the weights, in the
    order of their paths, the canonical JSON of `[path, dtype, shape]` and its bytes, little-endian, in C order.
    """
    digest = hashlib.sha256(
        typed_json.canonical({"config": encoder.config, "tokenizer": encoder.tokenizer.fingerprint})
    )
    leaves = arrays.named_leaves(encoder.params)
    for name in sorted(leaves):
        leaf = np.ascontiguousarray(leaves[name])
        digest.update(typed_json.canonical([name, leaf.dtype.name, list(leaf.shape)]))
        digest.update(leaf.tobytes())
    return digest.hexdigest()
