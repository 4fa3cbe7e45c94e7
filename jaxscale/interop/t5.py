"""T5, and version 1.1 of it: config.json and tensors of `T5ForConditionalGeneration`."""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxscale.errors import DataError
from jaxscale.interop.family import Family, differences, read_activation, written_activation
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.mapping import Row, Table, places
from jaxscale.nn.config import NUM_RELATIVE_BUCKETS, EncoderDecoderConfig
from jaxscale.nn.families import t5_config
from jaxscale.nn.relative_positions import MAX_DISTANCE

# Where the feed-forward part stands among a layer's parts: the decoder's has cross-attention before it.
_MLP_PART = {"encoder": 1, "decoder": 2}


def _attention_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}.q.weight", f"{ours}/query/kernel", "(H C) D -> D H C"),
        Row(f"{theirs}.k.weight", f"{ours}/key/kernel", "(K C) D -> D K C"),
        Row(f"{theirs}.v.weight", f"{ours}/value/kernel", "(K C) D -> D K C"),
        Row(f"{theirs}.o.weight", f"{ours}/out/kernel", "D (H C) -> H C D"),
    )


def _stack_rows(stack: str, *, gated: bool) -> tuple[Row, ...]:
    """The rows of the encoder or of the decoder."""
    layer, ours, mlp = f"{stack}.block.{{layer}}.layer", f"{stack}/layers", _MLP_PART[stack]
    # The table of the first block is that of all.
    biases = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows = (
        Row(biases, f"{stack}/relative_positions/table", "R H -> R H"),
        Row(f"{layer}.0.layer_norm.weight", f"{ours}/attention_norm/scale", "D -> D"),
        *_attention_rows(f"{layer}.0.SelfAttention", f"{ours}/attention"),
        Row(f"{layer}.{mlp}.layer_norm.weight", f"{ours}/mlp_norm/scale", "D -> D"),
        Row(f"{layer}.{mlp}.DenseReluDense.wo.weight", f"{ours}/mlp/down/kernel", "D F -> F D"),
        Row(f"{stack}.final_layer_norm.weight", f"{stack}/norm/scale", "D -> D"),
    )
    if gated:
        rows += (
            Row(f"{layer}.{mlp}.DenseReluDense.wi_0.weight", f"{ours}/mlp/gate/kernel", "F D -> D F"),
            Row(f"{layer}.{mlp}.DenseReluDense.wi_1.weight", f"{ours}/mlp/up/kernel", "F D -> D F"),
        )
    else:
        rows += (Row(f"{layer}.{mlp}.DenseReluDense.wi.weight", f"{ours}/mlp/up/kernel", "F D -> D F"),)
    if stack == "decoder":
        rows += (
            Row(f"{layer}.1.layer_norm.weight", f"{ours}/cross_attention_norm/scale", "D -> D"),
            *_attention_rows(f"{layer}.1.EncDecAttention", f"{ours}/cross_attention"),
        )
    return rows


def _read(file: JsonObject, names: Collection[str]) -> EncoderDecoderConfig:
    file.refuse_unless("relative_attention_num_buckets", int, NUM_RELATIVE_BUCKETS)
    file.refuse_unless("relative_attention_max_distance", int, MAX_DISTANCE)
    activation, gated = _read_feed_forward(file)
    # That the output is the table shows in the tensors: transformers reads `tie_word_embeddings` as whether scores are
    # scaled, and writes it as true for every T5.
    is_scaled = file.optional("scale_decoder_outputs", bool, file.optional("tie_word_embeddings", bool, True))
    num_layers = file.require("num_layers", int)
    config = t5_config(
        num_layers=num_layers,
        d_model=file.require("d_model", int),
        num_heads=file.require("num_heads", int),
        head_dim=file.require("d_kv", int),
        d_ff=file.require("d_ff", int),
        vocab_size=file.require("vocab_size", int),
        max_positions=file.optional("n_positions", int, 512),
        dropout_rate=file.optional("dropout_rate", float, 0.1),
    )
    changes: dict[str, Any] = {
        "activation": activation,
        "gated": gated,
        "norm_epsilon": file.optional("layer_norm_epsilon", float, 1e-6),
    }
    decoder = dataclasses.replace(
        config.decoder,
        num_layers=file.optional("num_decoder_layers", int, num_layers),
        tied_output="lm_head.weight" not in names,
        scaled_logits=is_scaled,
        **changes,
    )
    return EncoderDecoderConfig(encoder=dataclasses.replace(config.encoder, **changes), decoder=decoder)


def _read_feed_forward(file: JsonObject) -> tuple[str, bool]:
    """The activation, and whether it is that of a gate; `gated-gelu` is the tanh form."""
    named = file.optional("feed_forward_proj", str, "relu")
    if named == "gated-gelu":
        return "gelu_tanh", True
    gate, _, activation = named.rpartition("-")
    if gate not in ("", "gated"):
        raise DataError(f"{file.path}: feed_forward_proj={named!r} is not supported")
    return read_activation(file, "dense_act_fn", activation), bool(gate)


def _misfits(config: EncoderDecoderConfig) -> list[str]:
    encoder, decoder = config.encoder, config.decoder
    expected = {
        "num_kv_heads": encoder.num_heads,
        "num_heads": encoder.num_heads,
        "head_dim": encoder.head_dim,
        "d_ff": encoder.d_ff,
        "positions": "relative",
        "scaled_scores": False,
        "norm": "rmsnorm",
        "norm_epsilon": encoder.norm_epsilon,
        "activation": encoder.activation,
        "gated": encoder.gated,
        "experts": None,
        "use_bias": False,
        "qkv_bias": False,
    }
    return [
        f"{name}.{difference}"
        for name, stack in (("encoder", encoder), ("decoder", decoder))
        for difference in differences(stack, expected)
    ]


def _write(config: EncoderDecoderConfig, _model_type: str | None) -> dict[str, Any]:
    encoder, decoder = config.encoder, config.decoder
    activation = written_activation(encoder.activation)
    gated = "gated-gelu" if activation == "gelu_new" else f"gated-{activation}"
    return {
        "model_type": "t5",
        "is_encoder_decoder": True,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": decoder.num_layers,
        "d_model": encoder.d_model,
        "num_heads": encoder.num_heads,
        "d_kv": encoder.head_dim,
        "d_ff": encoder.d_ff,
        "vocab_size": encoder.vocab_size,
        "n_positions": encoder.max_positions,
        "dropout_rate": decoder.dropout_rate,
        "feed_forward_proj": gated if encoder.gated else activation,
        "layer_norm_epsilon": encoder.norm_epsilon,
        "relative_attention_num_buckets": NUM_RELATIVE_BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
        "tie_word_embeddings": decoder.tied_output,
        "scale_decoder_outputs": decoder.scaled_logits,
    }


def _table(config: EncoderDecoderConfig) -> Table:
    found = places((Row("shared.weight", "token/table", "V D -> V D"),), config.decoder)
    for stack, of_stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        found += places(_stack_rows(stack, gated=of_stack.gated), of_stack)
    if not config.decoder.tied_output:
        found += places((Row("lm_head.weight", "output/kernel", "V D -> D V"),), config.decoder)
    return Table(
        places=found,
        # Written by old versions for a part that never was one.
        ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        copies=dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"),
    )


T5 = Family(
    model_types=("t5",),
    architectures={"t5": "T5ForConditionalGeneration"},
    kind=EncoderDecoderConfig,
    read=_read,
    misfits=_misfits,
    write=_write,
    table=_table,
)
