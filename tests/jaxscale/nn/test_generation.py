"""Generation with cached keys and values beside the plain way: the whole text through the model for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.cache import empty_caches
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.families import bert_config, decoder_config, gpt_config, palm_config, t5_config
from jaxscale.nn.generation import generate, generate_targets, without_limits
from jaxscale.nn.keys import named_key, numbered_keys
from jaxscale.nn.sampling import Sampling, choose_tokens
from tests.jaxscale.random_params import random_params

SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 4, "vocab_size": 50, "max_positions": 32}
LLAMA = decoder_config(num_kv_heads=2, d_ff=24, **SIZES)
TIGHT = ExpertsConfig(num_experts=4, num_experts_per_token=2, capacity_factor=0.5, group_size=4)
CONFIGS = {
    "llama": LLAMA,
    "gpt": gpt_config(**SIZES),
    "palm": palm_config(head_dim=4, **SIZES),
    "relative": dataclasses.replace(LLAMA, positions="relative", scaled_scores=False),
    "mixtral": dataclasses.replace(LLAMA, experts=TIGHT),
}
T5 = t5_config(num_layers=2, d_model=16, num_heads=4, head_dim=4, d_ff=24, vocab_size=50, max_positions=32)
PROMPTS = [[7, 3, 9], [4], [1, 2, 3, 4, 5, 6]]
NUM_NEW = 5
FAST = ("llama", "relative")


def case(name):
    return pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])


BY_FAMILY = pytest.mark.parametrize("name", [case(name) for name in CONFIGS])


def uncached_logits(config, params):
    """The scores after the last of `length` tokens; rows are filled up, so that one program serves all lengths."""

    @jax.jit
    def run(tokens, length):
        hidden = functional.apply(without_limits(config), params, tokens[None], None)
        return functional.logits(config, params, hidden)[0, length - 1]

    return lambda tokens: np.asarray(run(jnp.asarray(np.resize(tokens, 16), jnp.int32), len(tokens)))


@BY_FAMILY
def test_greedy_tokens_are_those_of_the_whole_text_read_again(name):
    config = CONFIGS[name]
    params = random_params(config)
    scores = uncached_logits(config, params)
    got = generate(config, params, PROMPTS, max_new_tokens=NUM_NEW)
    for prompt, continuation in zip(PROMPTS, got, strict=True):
        text, log_probability = list(prompt), 0.0
        for _ in range(NUM_NEW):
            logits = scores(text).astype(np.float64)
            text.append(int(logits.argmax()))
            log_probability += logits.max() - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert list(continuation.tokens) == text[len(prompt) :]
        assert not continuation.stopped
        np.testing.assert_allclose(continuation.log_probability, log_probability, rtol=1e-3, atol=1e-3)


@BY_FAMILY
def test_scores_through_the_caches_are_those_of_the_whole_text(name):
    """Three rows of different lengths, read in pieces of 3, 1 and 2 tokens."""
    config = without_limits(CONFIGS[name])
    params = random_params(config)
    tokens = np.random.default_rng(1).integers(0, 50, (3, 6)).astype(np.int32)
    whole = jax.jit(lambda: functional.apply(config, params, jnp.asarray(tokens), None))()
    extend = jax.jit(lambda part, caches, first: functional.extend(config, apart, part, caches, first))
    apart, caches = functional.unstack_layers(params), empty_caches(config, 3, 9)
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        hidden, caches = extend(tokens[:, start:stop], caches, jnp.full((3,), start, jnp.int32))
        np.testing.assert_allclose(hidden, whole[:, start:stop], rtol=1e-4, atol=1e-5)


def test_other_prompts_and_padding_change_nothing():
    params = random_params(LLAMA)
    alone = [generate(LLAMA, params, [prompt], max_new_tokens=NUM_NEW)[0].tokens for prompt in PROMPTS]
    together = generate(LLAMA, params, PROMPTS, max_new_tokens=NUM_NEW)
    assert [continuation.tokens for continuation in together] == alone


def test_stops_at_a_stop_token_and_leaves_it_out():
    params = random_params(LLAMA)
    free = generate(LLAMA, params, PROMPTS, max_new_tokens=NUM_NEW)
    stop = free[0].tokens[2]
    for before, after in zip(
        free, generate(LLAMA, params, PROMPTS, max_new_tokens=NUM_NEW, stop_ids=[stop]), strict=True
    ):
        length = before.tokens.index(stop) if stop in before.tokens else NUM_NEW
        assert after.tokens == before.tokens[:length]
        assert after.stopped == (stop in before.tokens)
    assert any(stop in before.tokens for before in free)


@pytest.mark.slow
def test_draws_are_those_of_the_seed():
    params = random_params(LLAMA)

    def drawn(seed, **options):
        sampling = Sampling(temperature=2.0, seed=seed, **options)
        return [c.tokens for c in generate(LLAMA, params, PROMPTS, max_new_tokens=NUM_NEW, sampling=sampling)]

    assert drawn(0) == drawn(0) != drawn(1)
    # Rows with one prompt have draws of their own.
    sampling = Sampling(temperature=2.0)
    first, second = generate(LLAMA, params, [[7, 3]] * 2, max_new_tokens=NUM_NEW, sampling=sampling)
    assert first.tokens != second.tokens
    greedy = [c.tokens for c in generate(LLAMA, params, PROMPTS, max_new_tokens=NUM_NEW)]
    assert drawn(0, top_k=1) == greedy == drawn(0, top_p=1e-6)


SOURCES = [[5, 6, 7, 8], [9], [1, 2, 3, 4]]


def test_an_encoder_decoder_writes_what_it_would_reading_all_again():
    """Greedy, and drawn with the same keys: the source alone, unpadded, and the whole target for every token."""
    params = random_params(T5)

    @jax.jit
    def scores_of(source, target):
        return functional.apply_encoder_decoder(T5, params, source[None], target[None])[0]

    for sampling in (Sampling(), Sampling(temperature=1.5, top_p=0.9, top_k=20, seed=3)):
        keys = numbered_keys(named_key(jax.random.key(sampling.seed, impl="threefry2x32"), "sampling"), len(SOURCES))
        got = generate_targets(T5, params, SOURCES, start_id=0, max_new_tokens=NUM_NEW, sampling=sampling)
        for source, key, continuation in zip(SOURCES, keys, got, strict=True):
            target, log_probability = [0], 0.0
            for number in range(NUM_NEW):
                so_far = jnp.asarray(np.resize(target, NUM_NEW), jnp.int32)
                scores = scores_of(jnp.asarray(source, jnp.int32), so_far)[number]
                target.append(int(choose_tokens(scores[None], jax.random.fold_in(key, number)[None], sampling)[0]))
                log_probability += float(jax.nn.log_softmax(scores)[target[-1]])
            assert list(continuation.tokens) == target[1:]
            np.testing.assert_allclose(continuation.log_probability, log_probability, rtol=1e-3, atol=1e-3)


def test_an_encoder_decoder_reads_each_source_alone_and_stops():
    params = random_params(T5)

    def targets(sources, **options):
        return generate_targets(T5, params, sources, start_id=0, max_new_tokens=NUM_NEW, **options)

    together = targets(SOURCES)
    assert [targets([source])[0].tokens for source in SOURCES] == [one.tokens for one in together]
    stop = together[0].tokens[1]
    stopped = targets(SOURCES, stop_ids=[stop])[0]
    assert stopped.tokens == together[0].tokens[: together[0].tokens.index(stop)]
    assert stopped.stopped
    assert targets([]) == []


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([[1] * 33], {}, "source 0 has 33 tokens: more than the model's max_positions=32"),
        ([[1], []], {}, "source 1 has no tokens"),
        ([[50]], {}, "source 0 holds the id 50; the model has vocab_size=50"),
        ([[1]], {"max_new_tokens": 32}, "target 0 has 1 tokens, which with max_new_tokens=32 is more than the model's"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ([[1]], {"start_id": 50}, "target 0 holds the id 50"),
    ],
)
def test_refuses_what_an_encoder_decoder_can_not_read_or_write(sources, options, message):
    with pytest.raises(UsageError, match=message):
        generate_targets(T5, {}, sources, **({"start_id": 0, "max_new_tokens": 1} | options))


def test_refuses_what_it_can_not_continue():
    params = random_params(LLAMA)
    for prompts, message in (
        ([[1], []], "prompt 1 has no tokens"),
        ([[50]], "id 50; the model has vocab_size=50"),
        ([[1] * 28], "28 tokens, which with max_new_tokens=5 is more than the model's max_positions=32"),
    ):
        with pytest.raises(UsageError, match=message):
            generate(LLAMA, params, prompts, max_new_tokens=NUM_NEW)
    bert = bert_config(d_ff=24, **SIZES)
    with pytest.raises(UsageError, match="'encoder' does not make text"):
        generate(bert, random_params(bert), PROMPTS, max_new_tokens=NUM_NEW)
    assert generate(LLAMA, params, [], max_new_tokens=NUM_NEW) == []
