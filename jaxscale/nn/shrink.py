"""A small model with the structure of a large one, for tests that compute what is only planned of the large one.

The rule. Kept: every choice (kind, norms, positions, gate, biases, tied or not, parallel or not), the query heads per
key-value head, the experts that read a token, dropout. In proportion: the model's width to its heads', the MLP's width
to the model's, each rounded up to a multiple of 8; a stretched rotary context. Cut: layers, heads to at least 8, head
width to 4, vocabulary to at most 128, experts to at most 8, their groups to 8 tokens, positions.

Not kept: that a vocabulary such as GPT-2's 50,257 divides by nothing. A mesh that splits it is refused, or repeats the
scores; the small one's 128 are split. For a vocabulary that does not divide, replace `vocab_size` in the small one.
"""

import dataclasses

from jaxscale.nn.config import EncoderDecoderConfig, ExpertsConfig, RopeScaling, TransformerConfig

_NUM_HEADS = 8
_HEAD_DIM = 4
_VOCAB_SIZE = 128
_MAX_EXPERTS = 8
_GROUP_SIZE = 8


def shrink(config: TransformerConfig, *, num_layers: int = 2, max_positions: int = 16) -> TransformerConfig:
    """The small version of a Transformer, by the rule above.

    Args:
      config: the large one.
      num_layers: of the small one.
      max_positions: of the small one, in tokens.
    """
    num_queries_each = config.num_heads // config.num_kv_heads
    num_kv_heads = 1 if config.num_kv_heads == 1 else max(2, _NUM_HEADS // num_queries_each)
    num_heads = _NUM_HEADS if config.num_kv_heads == 1 else num_kv_heads * num_queries_each
    heads_width = config.num_heads * config.head_dim
    d_model = _in_proportion(num_heads * _HEAD_DIM, config.d_model, heads_width)
    return dataclasses.replace(
        config,
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_HEAD_DIM,
        d_ff=_in_proportion(d_model, config.d_ff, config.d_model),
        vocab_size=min(config.vocab_size, _VOCAB_SIZE),
        max_positions=max_positions,
        rope_scaling=_shrink_context(config.rope_scaling, config.max_positions, max_positions),
        experts=_shrink_experts(config.experts),
    )


def shrink_encoder_decoder(
    config: EncoderDecoderConfig, *, num_layers: int = 2, max_positions: int = 16
) -> EncoderDecoderConfig:
    """The small version of an encoder-decoder: both of its parts, by the rule above.

    Args:
      config: the large one.
      num_layers: of each part of the small one.
      max_positions: of each part, in tokens.
    """
    return EncoderDecoderConfig(
        encoder=shrink(config.encoder, num_layers=num_layers, max_positions=max_positions),
        decoder=shrink(config.decoder, num_layers=num_layers, max_positions=max_positions),
    )


def _in_proportion(small: int, large_part: int, large_whole: int) -> int:
    """`small` times large_part / large_whole, rounded up to a multiple of 8.

    >>> _in_proportion(32, 11008, 4096)
    88
    """
    return -(-small * large_part // (8 * large_whole)) * 8


def _shrink_context(scaling: RopeScaling | None, before: int, now: int) -> RopeScaling | None:
    if scaling is None:
        return None
    original = max(scaling.original_max_positions * now // before, 1)
    return dataclasses.replace(scaling, original_max_positions=original)


def _shrink_experts(experts: ExpertsConfig | None) -> ExpertsConfig | None:
    if experts is None:
        return None
    num_experts = max(min(experts.num_experts, _MAX_EXPERTS), experts.num_experts_per_token)
    group_size = None if experts.group_size is None else min(experts.group_size, _GROUP_SIZE)
    return dataclasses.replace(experts, num_experts=num_experts, group_size=group_size)
