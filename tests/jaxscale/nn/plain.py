"""The Transformer once more, plain: float64 numpy, one token at a time, one layer after the other, no padding."""

import math

import jax
import numpy as np


def plain_norm(config, params, x):
    if config.norm == "rmsnorm":
        return x / np.sqrt((x**2).mean() + config.norm_epsilon) * params["scale"]
    y = (x - x.mean()) / np.sqrt(x.var() + config.norm_epsilon) * params["scale"]
    return y + params["bias"] if config.use_bias else y


def plain_activation(config, x):
    if config.activation == "silu":
        return x / (1 + np.exp(-x))
    if config.activation == "relu":
        return np.maximum(x, 0)
    if config.activation == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def plain_frequency(config, pair, width):
    frequency = config.rope_base ** (-2 * pair / width)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    longest_kept = scaling.original_max_positions / scaling.high_frequency_factor
    shortest_stretched = scaling.original_max_positions / scaling.low_frequency_factor
    if wavelength < longest_kept:
        return frequency
    if wavelength > shortest_stretched:
        return frequency / scaling.factor
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    kept = (scaling.original_max_positions / wavelength - scaling.low_frequency_factor) / span
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def plain_bucket(config, query, key):
    """T5's buckets: half of them exact distances, the other half by logarithm up to 128; both ways, half for each."""
    distance = query - key if config.kind == "decoder" else abs(query - key)
    num = 32 if config.kind == "decoder" else 16
    near = num // 2
    bucket = distance
    if distance >= near:
        bucket = min(near + int(math.log(distance / near) / math.log(128 / near) * (num - near)), num - 1)
    return bucket + (16 if config.kind == "encoder" and key > query else 0)


def plain_rotate(config, x, position):
    out = np.empty_like(x)
    half = len(x) // 2
    for c in range(half):
        angle = position * plain_frequency(config, c, len(x))
        out[c] = x[c] * math.cos(angle) - x[c + half] * math.sin(angle)
        out[c + half] = x[c + half] * math.cos(angle) + x[c] * math.sin(angle)
    return out


def plain_linear(params, x):
    y = np.tensordot(x, params["kernel"], x.ndim)
    return y + params["bias"] if "bias" in params else y


def plain_attention(config, params, rows, biases, source=None):
    """rows: [n, D] of one text without padding; source: what is read where that is not the rows themselves."""
    h, k, c = config.num_heads, config.num_kv_heads, config.head_dim
    crossing, source = source is not None, rows if source is None else source
    q = np.stack([plain_linear(params["query"], x) for x in rows])
    key, value = (np.stack([plain_linear(params[n], x) for x in source]) for n in ("key", "value"))
    if config.positions == "rope":
        q, key = (
            np.stack([[plain_rotate(config, head, s) for head in x] for s, x in enumerate(heads)]) for heads in (q, key)
        )
    out = np.zeros((len(rows), h, c))
    for s in range(len(rows)):
        visible = s + 1 if config.kind == "decoder" and not crossing else len(source)
        for head in range(h):
            group = head // (h // k)
            scores = key[:visible, group] @ q[s, head] / (math.sqrt(c) if config.scaled_scores else 1)
            if biases is not None:
                scores = scores + [biases[plain_bucket(config, s, t), head] for t in range(visible)]
            weights = np.exp(scores - scores.max())
            out[s, head] = (weights / weights.sum()) @ value[:visible, group]
    return np.stack([plain_linear(params["out"], x) for x in out])


def plain_mlp(config, params, x):
    """One MLP or, with experts, the chosen ones of it by their weights; every token finds room."""
    if config.experts is None:
        return plain_one_mlp(config, params, x)
    scores = np.exp(x @ params["router"]["kernel"])
    chosen = np.argsort(-scores)[: config.experts.num_experts_per_token]
    weights = scores / (scores[chosen].sum() if len(chosen) > 1 else scores.sum())
    kernels = [{name: {"kernel": params[name][e]} for name in ("up", "gate", "down") if name in params} for e in chosen]
    return sum(weights[e] * plain_one_mlp(config, kernel, x) for e, kernel in zip(chosen, kernels, strict=True))


def plain_one_mlp(config, params, x):
    up = plain_linear(params["up"], x)
    inner = (
        plain_activation(config, plain_linear(params["gate"], x)) * up if config.gated else plain_activation(config, up)
    )
    return plain_linear(params["down"], inner)


def plain_layers(config, params, rows, memory=None):
    """params: of the layers, stacked, and of the relative positions; memory: what an encoder made."""
    norm = lambda p, rows: np.stack([plain_norm(config, p, x) for x in rows])  # noqa: E731
    biases = params["relative_positions"]["table"] if config.positions == "relative" else None
    post = config.norm_placement == "post"
    for index in range(config.num_layers):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"])
        read = rows if post else norm(layer["attention_norm"], rows)
        attended = plain_attention(config, layer["attention"], read, biases)
        if config.parallel:
            rows = rows + attended + np.stack([plain_mlp(config, layer["mlp"], x) for x in read])
            continue
        rows = rows + attended
        rows = norm(layer["attention_norm"], rows) if post else rows
        if memory is not None:
            read = norm(layer["cross_attention_norm"], rows)
            rows = rows + plain_attention(config, layer["cross_attention"], read, None, memory)
        read = rows if post else norm(layer["mlp_norm"], rows)
        rows = rows + np.stack([plain_mlp(config, layer["mlp"], x) for x in read])
        rows = norm(layer["mlp_norm"], rows) if post else rows
    return rows if post else norm(params["norm"], rows)


def plain_transformer(config, params, tokens):
    """tokens: [n], one text without padding."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rows = params["embeddings"]["token"]["table"][tokens]
    if config.positions == "learned":
        rows = rows + params["embeddings"]["position"]["table"][: len(tokens)]
    if config.type_vocab_size:
        rows = rows + params["embeddings"]["token_type"]["table"][0]
    if config.norm_placement == "post":
        rows = np.stack([plain_norm(config, params["norm"], x) for x in rows])
    return plain_layers(config, params, rows)


def plain_encoder_decoder(config, params, source, tokens):
    """source, tokens: [m] and [n] ids; the scores [n V]."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table = params["token"]["table"]
    memory = plain_layers(config.encoder, params["encoder"], table[source])
    hidden = plain_layers(config.decoder, params["decoder"], table[tokens], memory)
    return hidden @ (table.T if config.decoder.tied_output else params["output"]["kernel"])
