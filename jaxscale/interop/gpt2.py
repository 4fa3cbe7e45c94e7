"""GPT-2: config.json and tensors of `GPT2LMHeadModel`: linear maps are [in, out]; query, key and value are one."""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxscale.interop.family import Family, differences, read_activation, written_activation
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.mapping import Row, Table, places
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.families import gpt_config

_LAYER = "h.{layer}"
_ROWS = (
    Row("wte.weight", "embeddings/token/table", "V D -> V D"),
    Row("wpe.weight", "embeddings/position/table", "P D -> P D"),
    Row(f"{_LAYER}.ln_1.weight", "layers/attention_norm/scale", "D -> D"),
    Row(f"{_LAYER}.ln_1.bias", "layers/attention_norm/bias", "D -> D"),
    Row(f"{_LAYER}.attn.c_attn.weight", "layers/attention/query/kernel", "D (0:3 H C) -> D H C"),
    Row(f"{_LAYER}.attn.c_attn.weight", "layers/attention/key/kernel", "D (1:3 K C) -> D K C"),
    Row(f"{_LAYER}.attn.c_attn.weight", "layers/attention/value/kernel", "D (2:3 K C) -> D K C"),
    Row(f"{_LAYER}.attn.c_attn.bias", "layers/attention/query/bias", "(0:3 H C) -> H C"),
    Row(f"{_LAYER}.attn.c_attn.bias", "layers/attention/key/bias", "(1:3 K C) -> K C"),
    Row(f"{_LAYER}.attn.c_attn.bias", "layers/attention/value/bias", "(2:3 K C) -> K C"),
    Row(f"{_LAYER}.attn.c_proj.weight", "layers/attention/out/kernel", "(H C) D -> H C D"),
    Row(f"{_LAYER}.attn.c_proj.bias", "layers/attention/out/bias", "D -> D"),
    Row(f"{_LAYER}.ln_2.weight", "layers/mlp_norm/scale", "D -> D"),
    Row(f"{_LAYER}.ln_2.bias", "layers/mlp_norm/bias", "D -> D"),
    Row(f"{_LAYER}.mlp.c_fc.weight", "layers/mlp/up/kernel", "D F -> D F"),
    Row(f"{_LAYER}.mlp.c_fc.bias", "layers/mlp/up/bias", "F -> F"),
    Row(f"{_LAYER}.mlp.c_proj.weight", "layers/mlp/down/kernel", "F D -> F D"),
    Row(f"{_LAYER}.mlp.c_proj.bias", "layers/mlp/down/bias", "D -> D"),
    Row("ln_f.weight", "norm/scale", "D -> D"),
    Row("ln_f.bias", "norm/bias", "D -> D"),
)


def _read(file: JsonObject, _names: Collection[str]) -> TransformerConfig:
    file.refuse_unless("scale_attn_weights", bool, True)
    file.refuse_unless("scale_attn_by_inverse_layer_idx", bool, False)
    file.refuse_unless("add_cross_attention", bool, False)
    file.refuse_unless("tie_word_embeddings", bool, True)
    config = gpt_config(
        num_layers=file.require("n_layer", int),
        d_model=file.require("n_embd", int),
        num_heads=file.require("n_head", int),
        vocab_size=file.require("vocab_size", int),
        max_positions=file.require("n_positions", int),
        dropout_rate=file.optional("resid_pdrop", float, 0.1),
    )
    return dataclasses.replace(
        config,
        d_ff=file.optional("n_inner", int, config.d_ff),
        activation=read_activation(file, "activation_function", "gelu_new"),
        norm_epsilon=file.optional("layer_norm_epsilon", float, 1e-5),
        initial_stddev=file.optional("initializer_range", float, 0.02),
    )


def _misfits(config: TransformerConfig) -> list[str]:
    expected = {
        "kind": "decoder",
        "num_kv_heads": config.num_heads,
        "head_dim": config.d_model // config.num_heads,
        "type_vocab_size": 0,
        "positions": "learned",
        "scaled_scores": True,
        "norm": "layernorm",
        "norm_placement": "pre",
        "parallel": False,
        "gated": False,
        "experts": None,
        "use_bias": True,
        "tied_output": not config.headless,
        "scaled_logits": False,
    }
    return differences(config, expected)


def _write(config: TransformerConfig, _model_type: str | None) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_layer": config.num_layers,
        "n_embd": config.d_model,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_positions,
        "vocab_size": config.vocab_size,
        "resid_pdrop": config.dropout_rate,
        "embd_pdrop": config.dropout_rate,
        "attn_pdrop": config.dropout_rate,
        "activation_function": written_activation(config.activation),
        "layer_norm_epsilon": config.norm_epsilon,
        "initializer_range": config.initial_stddev,
        "tie_word_embeddings": True,
    }


def _table(config: TransformerConfig) -> Table:
    return Table(
        places=places(_ROWS, config),
        prefix="transformer.",
        ignored=r"h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask
        copies={"lm_head.weight": "wte.weight"},
    )


GPT2 = Family(
    model_types=("gpt2",),
    architectures={"gpt2": "GPT2LMHeadModel"},
    kind=TransformerConfig,
    read=_read,
    misfits=_misfits,
    write=_write,
    table=_table,
)
