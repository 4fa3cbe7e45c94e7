"""The layouts of the families of Transformers: each a configuration with what its papers leave open filled in."""

import dataclasses

from jaxscale.errors import UsageError
from jaxscale.nn.config import EncoderDecoderConfig, ExpertsConfig, RopeScaling, TransformerConfig


def bert_config(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    d_ff: int,
    vocab_size: int,
    max_positions: int = 512,
    type_vocab_size: int = 2,
    dropout_rate: float = 0.1,
) -> TransformerConfig:
    """An encoder in BERT's layout: post-norm, learned positions, token types, exact GELU, biases.

    Reference: Devlin et al. 2018, https://arxiv.org/abs/1810.04805
    """
    if d_model % num_heads:
        raise UsageError(f"d_model={d_model} must be a multiple of num_heads={num_heads}")
    return TransformerConfig(
        kind="encoder",
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=d_model // num_heads,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_positions=max_positions,
        type_vocab_size=type_vocab_size,
        positions="learned",
        rope_base=10000.0,
        rope_scaling=None,
        scaled_scores=True,
        norm="layernorm",
        norm_epsilon=1e-12,
        norm_placement="post",
        parallel=False,
        activation="gelu",
        gated=False,
        experts=None,
        use_bias=True,
        tied_output=False,
        dropout_rate=dropout_rate,
        initial_stddev=0.02,
    )


def decoder_config(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    num_kv_heads: int,
    d_ff: int,
    vocab_size: int,
    max_positions: int,
    head_dim: int | None = None,
    rope_base: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
    experts: ExpertsConfig | None = None,
    tied_output: bool = True,
    dropout_rate: float = 0.0,
) -> TransformerConfig:
    """A decoder in Llama's layout: pre-norm, RMSNorm, rotary positions, grouped key-value heads, SwiGLU, no biases.

    Mixtral's is the same with experts.

    Reference: Touvron et al. 2023, https://arxiv.org/abs/2302.13971; Jiang et al. 2024, https://arxiv.org/abs/2401.04088
    """
    if head_dim is None and d_model % num_heads:
        raise UsageError(f"d_model={d_model} must be a multiple of num_heads={num_heads}, or give head_dim")
    return TransformerConfig(
        kind="decoder",
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=d_model // num_heads if head_dim is None else head_dim,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_positions=max_positions,
        type_vocab_size=0,
        positions="rope",
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        scaled_scores=True,
        norm="rmsnorm",
        norm_epsilon=1e-5,
        norm_placement="pre",
        parallel=False,
        activation="silu",
        gated=True,
        experts=experts,
        use_bias=False,
        tied_output=tied_output,
        dropout_rate=dropout_rate,
        initial_stddev=0.02,
    )


def gpt_config(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    vocab_size: int,
    max_positions: int,
    dropout_rate: float = 0.0,
) -> TransformerConfig:
    """A decoder in GPT-2's layout: pre-norm LayerNorm, learned positions, GELU (its tanh form) of 4 D, biases, tied.

    Reference: Radford et al. 2019, section 2.3; Brown et al. 2020, section 2.1, https://arxiv.org/abs/2005.14165
    """
    llama = decoder_config(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        d_ff=4 * d_model,
        vocab_size=vocab_size,
        max_positions=max_positions,
        dropout_rate=dropout_rate,
    )
    return dataclasses.replace(
        llama, positions="learned", norm="layernorm", activation="gelu_tanh", gated=False, use_bias=True
    )


def palm_config(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    head_dim: int,
    vocab_size: int,
    max_positions: int,
) -> TransformerConfig:
    """A decoder in PaLM's layout: parallel layers, one key-value head, SwiGLU of 4 D, LayerNorm, no biases, tied.

    Its weights are drawn with standard deviation 1 / sqrt(fan in) but the token table's, 1 (cut at two of them, as all
    weights here), and its logits are divided by sqrt(D).

    Reference: Chowdhery et al. 2022, section 2 and section 5 ("Weight initialization"), https://arxiv.org/abs/2204.02311
    """
    llama = decoder_config(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=1,
        head_dim=head_dim,
        d_ff=4 * d_model,
        vocab_size=vocab_size,
        max_positions=max_positions,
    )
    return dataclasses.replace(
        llama,
        norm="layernorm",
        parallel=True,
        initial_fan_in=True,
        initial_token_stddev=1.0,
        scaled_logits=True,
    )


def t5_config(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    head_dim: int,
    d_ff: int,
    vocab_size: int,
    max_positions: int,
    dropout_rate: float = 0.0,
) -> EncoderDecoderConfig:
    """An encoder and a decoder of `num_layers` each, in T5 1.1's layout.

    Pre-norm RMSNorm, relative position biases, scores that are not divided, gated GELU, no biases, an own output.

    Reference: Raffel et al. 2019, section 2.1, https://arxiv.org/abs/1910.10683; Shazeer 2020 (the gate),
    https://arxiv.org/abs/2002.05202; version 1.1 in `released_checkpoints.md` of
    https://github.com/google-research/text-to-text-transfer-transformer
    """
    llama = decoder_config(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_positions=max_positions,
        tied_output=False,
        dropout_rate=dropout_rate,
    )
    decoder = dataclasses.replace(
        llama, positions="relative", scaled_scores=False, norm_epsilon=1e-6, activation="gelu_tanh"
    )
    return EncoderDecoderConfig(encoder=dataclasses.replace(decoder, kind="encoder"), decoder=decoder)
