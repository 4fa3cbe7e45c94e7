"""BERT: config.json and tensors of `BertModel`, and of the classes that put a head on it, which is left behind."""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxscale.interop.family import Family, differences, read_activation, written_activation
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.mapping import Row, Table, places
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.families import bert_config

_LAYER = "encoder.layer.{layer}"
_ROWS = (
    Row("embeddings.word_embeddings.weight", "embeddings/token/table", "V D -> V D"),
    Row("embeddings.position_embeddings.weight", "embeddings/position/table", "P D -> P D"),
    Row("embeddings.token_type_embeddings.weight", "embeddings/token_type/table", "T D -> T D"),
    Row("embeddings.LayerNorm.weight", "norm/scale", "D -> D"),
    Row("embeddings.LayerNorm.bias", "norm/bias", "D -> D"),
    Row(f"{_LAYER}.attention.self.query.weight", "layers/attention/query/kernel", "(H C) D -> D H C"),
    Row(f"{_LAYER}.attention.self.query.bias", "layers/attention/query/bias", "(H C) -> H C"),
    Row(f"{_LAYER}.attention.self.key.weight", "layers/attention/key/kernel", "(K C) D -> D K C"),
    Row(f"{_LAYER}.attention.self.key.bias", "layers/attention/key/bias", "(K C) -> K C"),
    Row(f"{_LAYER}.attention.self.value.weight", "layers/attention/value/kernel", "(K C) D -> D K C"),
    Row(f"{_LAYER}.attention.self.value.bias", "layers/attention/value/bias", "(K C) -> K C"),
    Row(f"{_LAYER}.attention.output.dense.weight", "layers/attention/out/kernel", "D (H C) -> H C D"),
    Row(f"{_LAYER}.attention.output.dense.bias", "layers/attention/out/bias", "D -> D"),
    Row(f"{_LAYER}.attention.output.LayerNorm.weight", "layers/attention_norm/scale", "D -> D"),
    Row(f"{_LAYER}.attention.output.LayerNorm.bias", "layers/attention_norm/bias", "D -> D"),
    Row(f"{_LAYER}.intermediate.dense.weight", "layers/mlp/up/kernel", "F D -> D F"),
    Row(f"{_LAYER}.intermediate.dense.bias", "layers/mlp/up/bias", "F -> F"),
    Row(f"{_LAYER}.output.dense.weight", "layers/mlp/down/kernel", "D F -> F D"),
    Row(f"{_LAYER}.output.dense.bias", "layers/mlp/down/bias", "D -> D"),
    Row(f"{_LAYER}.output.LayerNorm.weight", "layers/mlp_norm/scale", "D -> D"),
    Row(f"{_LAYER}.output.LayerNorm.bias", "layers/mlp_norm/bias", "D -> D"),
)


def _read(file: JsonObject, _names: Collection[str]) -> TransformerConfig:
    file.refuse_unless("position_embedding_type", str, "absolute")
    file.refuse_unless("is_decoder", bool, False)
    file.refuse_unless("add_cross_attention", bool, False)
    config = bert_config(
        num_layers=file.require("num_hidden_layers", int),
        d_model=file.require("hidden_size", int),
        num_heads=file.require("num_attention_heads", int),
        d_ff=file.require("intermediate_size", int),
        vocab_size=file.require("vocab_size", int),
        max_positions=file.require("max_position_embeddings", int),
        type_vocab_size=file.optional("type_vocab_size", int, 2),
        dropout_rate=file.optional("hidden_dropout_prob", float, 0.1),
    )
    return dataclasses.replace(
        config,
        activation=read_activation(file, "hidden_act", "gelu"),
        norm_epsilon=file.optional("layer_norm_eps", float, 1e-12),
        initial_stddev=file.optional("initializer_range", float, 0.02),
    )


def _misfits(config: TransformerConfig) -> list[str]:
    expected = {
        "kind": "encoder",
        "num_kv_heads": config.num_heads,
        "head_dim": config.d_model // config.num_heads,
        "positions": "learned",
        "scaled_scores": True,
        "norm": "layernorm",
        "norm_placement": "post",
        "gated": False,
        "experts": None,
        "use_bias": True,
    }
    return differences(config, expected) + ([] if config.type_vocab_size else ["type_vocab_size=0 (not 1 or more)"])


def _write(config: TransformerConfig, _model_type: str | None) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.type_vocab_size,
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.dropout_rate,
        "hidden_act": written_activation(config.activation),
        "layer_norm_eps": config.norm_epsilon,
        "initializer_range": config.initial_stddev,
    }


def _table(config: TransformerConfig) -> Table:
    return Table(
        places=places(_ROWS, config),
        prefix="bert.",
        renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        # An index that is always 0, 1, 2..., and the heads of tasks.
        ignored=r"embeddings\.(position|token_type)_ids|pooler\..*|cls\..*|classifier\..*",
    )


BERT = Family(
    model_types=("bert",),
    architectures={"bert": "BertModel"},
    kind=TransformerConfig,
    read=_read,
    misfits=_misfits,
    write=_write,
    table=_table,
)
