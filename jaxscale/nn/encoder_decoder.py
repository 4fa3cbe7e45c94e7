"""An encoder, and a decoder that reads what it made, with one table of tokens between them: T5's layout."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float32, Int, Key

from jaxscale.nn.attention_call import Readable
from jaxscale.nn.cache import KeyValues
from jaxscale.nn.config import EncoderDecoderConfig, Remat, TransformerConfig
from jaxscale.nn.dropout import dropout
from jaxscale.nn.embeddings import Table
from jaxscale.nn.keys import named_key
from jaxscale.nn.layers import Surroundings, extend_layers, make_layers, run_layers
from jaxscale.nn.norm import make_norm
from jaxscale.nn.router import RouterLosses
from jaxscale.nn.transformer import (
    cached_surroundings,
    check_length,
    default_positions,
    groups_of_real,
    make_output,
    readable_positions,
    relative_positions,
    scores_of_tokens,
)


class Stack(nnx.Module):
    """The layers of one of the two, its relative positions, and the norm after its last layer."""

    def __init__(self, config: TransformerConfig, *, reads_memory: bool, scanned: bool, key: Key[Array, ""]):
        self.config = config
        self.relative_positions = relative_positions(config, key=key)
        self.norm = make_norm(config.norm, config.d_model, epsilon=config.norm_epsilon, use_bias=config.use_bias)
        self.layers = make_layers(config, scanned=scanned, reads_memory=reads_memory, key=named_key(key, "layers"))

    def __call__(
        self,
        x: Float32[Array, "B S D"],
        around: Surroundings,
        *,
        dropout_key: Key[Array, ""] | None,
        remat: Remat,
    ) -> tuple[Float32[Array, "B S D"], RouterLosses | None]:
        """Returns the normed stream after the last layer, and the routers' losses, from embedded tokens."""
        config = self.config
        if self.relative_positions is not None:
            around = dataclasses.replace(around, bias=self.relative_positions(around.positions))
        embedding_key = None if dropout_key is None else named_key(dropout_key, "embeddings")
        x = dropout(x, config.dropout_rate, embedding_key).astype(around.compute_dtype)
        x, losses = run_layers(self.layers, config.num_layers, x, around, dropout_key=dropout_key, remat=remat)
        return self.norm(x), losses

    def extend(
        self, x: Float32[Array, "B S D"], around: Surroundings, caches: list[KeyValues]
    ) -> tuple[Float32[Array, "B S D"], list[KeyValues]]:
        """As a call without dropout on tokens that follow others, and the caches with them; layers not scanned."""
        x, caches = extend_layers(self.layers, x.astype(around.compute_dtype), around, caches)
        return self.norm(x), caches


class EncoderDecoder(nnx.Module):
    """One table of tokens, an encoder, a decoder with cross-attention, and the output.

    Reference: Vaswani et al. 2017, section 3.1, https://arxiv.org/abs/1706.03762; Raffel et al. 2019 (T5), section 2.1,
    https://arxiv.org/abs/1910.10683
    """

    def __init__(self, config: EncoderDecoderConfig, *, key: Key[Array, ""], scanned: bool = True):
        self.config = config
        decoder = config.decoder
        self.token = Table(
            decoder.vocab_size, decoder.d_model, stddev=decoder.token_stddev, key=named_key(key, "token")
        )
        self.encoder = Stack(config.encoder, reads_memory=False, scanned=scanned, key=named_key(key, "encoder"))
        self.decoder = Stack(decoder, reads_memory=True, scanned=scanned, key=named_key(key, "decoder"))
        self.output = make_output(decoder, key=key)

    def __call__(
        self,
        source: Int[Array, "B T"],
        tokens: Int[Array, "B S"],
        *,
        source_mask: Bool[Array, "B T"] | None = None,
        compute_dtype: DTypeLike = jnp.float32,
        dropout_key: Key[Array, ""] | None = None,
        remat: Remat = False,
    ) -> tuple[Float32[Array, "B S V"], tuple[RouterLosses | None, RouterLosses | None]]:
        """Returns the scores of every next token; see `jaxscale.nn.functional.apply_encoder_decoder`."""
        encoder_key, decoder_key = (
            None if dropout_key is None else named_key(dropout_key, name) for name in ("encoder", "decoder")
        )
        memory, of_encoder = self.encode(
            source, source_mask, compute_dtype=compute_dtype, dropout_key=encoder_key, remat=remat
        )
        around = dataclasses.replace(
            self._around(self.config.decoder, tokens, None, compute_dtype),
            memory=memory.astype(compute_dtype),
            memory_readable=_real_memory(source_mask, tokens),
        )
        hidden, of_decoder = self.decoder(
            self.token(tokens).astype(jnp.float32), around, dropout_key=decoder_key, remat=remat
        )
        return self.logits(hidden, compute_dtype=compute_dtype), (of_encoder, of_decoder)

    def encode(
        self,
        source: Int[Array, "B T"],
        source_mask: Bool[Array, "B T"] | None,
        *,
        compute_dtype: DTypeLike = jnp.float32,
        dropout_key: Key[Array, ""] | None = None,
        remat: Remat = False,
    ) -> tuple[Float32[Array, "B T D"], RouterLosses | None]:
        """Returns what the decoder reads of a source, and the encoder's routers' losses."""
        embedded = self.token(source).astype(jnp.float32)
        around = self._around(self.config.encoder, source, source_mask, compute_dtype)
        memory, losses = self.encoder(embedded, around, dropout_key=dropout_key, remat=remat)
        return memory, losses

    def extend(
        self,
        memory: Float32[Array, "B T D"],
        source_mask: Bool[Array, "B T"] | None,
        tokens: Int[Array, "B S"],
        caches: list[KeyValues],
        first: Int[Array, " B"],
        *,
        compute_dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float32[Array, "B S D"], list[KeyValues]]:
        """Returns hidden states of target tokens that follow others; see `jaxscale.nn.functional.extend_target`."""
        positions = first[:, None] + default_positions(tokens)
        around = dataclasses.replace(
            cached_surroundings(positions, caches, self.decoder.relative_positions, compute_dtype),
            memory=memory.astype(compute_dtype),
            memory_readable=_real_memory(source_mask, tokens),
        )
        hidden, caches = self.decoder.extend(self.token(tokens).astype(jnp.float32), around, caches)
        return hidden, caches

    def logits(
        self, hidden: Float32[Array, "B S D"], *, compute_dtype: DTypeLike = jnp.float32
    ) -> Float32[Array, "B S V"]:
        """Returns the decoder's scores of every next token, in float32."""
        return scores_of_tokens(self.config.decoder, self.output, self.token.table[...], hidden, compute_dtype)

    def _around(
        self,
        config: TransformerConfig,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"] | None,
        compute_dtype: DTypeLike,
    ) -> Surroundings:
        check_length(config, tokens, f"{config.kind} sequence")
        positions = default_positions(tokens)
        return Surroundings(
            readable=readable_positions(config, positions, mask),
            positions=positions,
            bias=None,
            compute_dtype=compute_dtype,
        )


def _real_memory(source_mask: Bool[Array, "B T"] | None, tokens: Int[Array, "B S"]) -> Readable:
    """What every target token may read of a source: its real tokens."""
    if source_mask is None:
        return Readable(allowed=None)
    return Readable(
        allowed=source_mask[:, None, :],
        query_groups=jnp.zeros(tokens.shape, jnp.int32),
        key_groups=groups_of_real(source_mask, jnp.zeros(source_mask.shape, jnp.int32)),
    )
