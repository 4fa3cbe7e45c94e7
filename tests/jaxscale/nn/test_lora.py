"""LoRA: nothing changes at first, merged weights compute what the factors beside them do, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional, lora
from jaxscale.nn.config import ExpertsConfig, LoRAConfig
from jaxscale.nn.families import bert_config, decoder_config
from jaxscale.nn.headless import headless
from jaxscale.store import arrays
from tests.configs.on_meshes import COMPILED_FAST
from tests.jaxscale.random_params import random_like

SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 4, "d_ff": 24, "vocab_size": 30, "max_positions": 8}
LLAMA = headless(decoder_config(num_kv_heads=2, **SIZES))
BERT = bert_config(dropout_rate=0.0, **SIZES)
FACTORS = LoRAConfig(rank=3, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, 30, (2, 8)).astype(np.int32)


def with_lora(config, factors=FACTORS):
    return dataclasses.replace(config, lora=factors)


def shapes(config):
    return jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))


def hidden(config, params):
    apply = jax.jit(lambda p: functional.apply(config, p, TOKENS, None), compiler_options=COMPILED_FAST)
    return np.asarray(apply(params))


@pytest.mark.parametrize("config", [LLAMA, BERT], ids=["llama", "bert"])
def test_merged_weights_compute_what_factors_beside_them_do(config):
    params = random_like(shapes(with_lora(config)), spread=0.2)
    expected = hidden(with_lora(config), params)
    plain, merged = lora.merged(with_lora(config), jax.device_get(params))
    assert plain == config
    assert with_lora(config).num_params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, shapes(config))
    np.testing.assert_allclose(hidden(plain, merged), expected, atol=1e-5)
    without = hidden(config, lora.split(params)[1])
    assert np.abs(without - expected).max() > 0.1


def test_at_first_it_is_the_model_it_starts_from():
    base = random_like(shapes(LLAMA), spread=0.2)
    factors = lora.drawn_factors(with_lora(LLAMA), jax.random.key(3))
    whole = lora.joined(base, factors)
    assert jax.tree.map(np.shape, whole) == jax.tree.map(np.shape, shapes(with_lora(LLAMA)))
    np.testing.assert_array_equal(hidden(with_lora(LLAMA), whole), hidden(LLAMA, base))
    drawn = arrays.named_leaves(factors)
    assert all(np.any(leaf) == name.endswith("lora_a") for name, leaf in drawn.items())
    again, held = lora.split(whole)
    assert jax.tree.structure(again) == jax.tree.structure(factors)
    jax.tree.map(np.testing.assert_array_equal, held, base)


def test_weights_are_drawn_as_without_factors():
    small = dataclasses.replace(LLAMA, num_layers=1)
    plain, beside = (
        jax.jit(lambda c=c: functional.init_params(c, jax.random.key(0)), compiler_options=COMPILED_FAST)()
        for c in (small, with_lora(small))
    )
    jax.tree.map(np.testing.assert_array_equal, lora.split(beside)[1], plain)


@pytest.mark.parametrize(
    ("target", "maps"),
    [("query", ["attention/query"]), ("out", ["attention/out"]), ("mlp", ["mlp/down", "mlp/gate", "mlp/up"])],
)
def test_targets_are_maps_by_role(target, maps):
    factors, _ = lora.split(shapes(with_lora(LLAMA, LoRAConfig(rank=2, targets=(target,)))))
    expected = {f"layers/{path}/{name}" for path in maps for name in lora.FACTORS}
    assert set(arrays.named_leaves(factors)) == expected


def test_the_scale_is_alpha_over_rank():
    params = random_like(shapes(with_lora(LLAMA, LoRAConfig(rank=2, alpha=1.0, targets=("query",)))))
    kernel = params["layers"]["attention"]["query"]
    _, merged = lora.merged(with_lora(LLAMA, LoRAConfig(rank=2, alpha=1.0, targets=("query",))), params)
    expected = kernel["kernel"] + 0.5 * jnp.einsum(
        "ldr,lrhc->ldhc", kernel["lora_a"], kernel["lora_b"], precision="highest"
    )
    np.testing.assert_allclose(merged["layers"]["attention"]["query"]["kernel"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": 0}, "lora.rank=0 must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha=0.0 must be a finite number above 0"),
        (
            {"targets": ("query", "keys")},
            r"lora.targets=\('query', 'keys'\) must be some of query, key, value, out, mlp",
        ),
        ({"targets": ()}, "must be some of"),
        ({"targets": ("mlp", "mlp")}, "each once"),
    ],
)
def test_bad_factors_are_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        LoRAConfig(**fields)


def test_experts_take_no_factors():
    experts = ExpertsConfig(num_experts=2, num_experts_per_token=1, capacity_factor=2.0, group_size=4)
    with pytest.raises(UsageError, match="experts take no factors"):
        dataclasses.replace(LLAMA, experts=experts, lora=FACTORS)
    dataclasses.replace(LLAMA, experts=experts, lora=LoRAConfig(targets=("query",)))
