"""A small model keeps the structure of the large one, by the stated rule."""

import dataclasses

import pytest

from jaxscale.nn.config import ExpertsConfig, RopeScaling
from jaxscale.nn.families import decoder_config, palm_config, t5_config
from jaxscale.nn.shrink import shrink, shrink_encoder_decoder

LARGE = decoder_config(
    num_layers=80,
    d_model=8192,
    num_heads=64,
    num_kv_heads=8,
    d_ff=28672,
    vocab_size=32000,
    max_positions=4096,
    tied_output=False,
    rope_scaling=RopeScaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=1024
    ),
    experts=ExpertsConfig(num_experts=16, num_experts_per_token=2, capacity_factor=1.25, group_size=512),
)
SIZES = {"num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_size", "max_positions"}


def test_sizes_are_cut_in_proportion_and_choices_are_kept():
    small = shrink(LARGE, num_layers=3, max_positions=32)
    assert {name: getattr(small, name) for name in SIZES} == {
        "num_layers": 3,
        "d_model": 64,  # 16 heads of 4, as 64 of 128 make 8192
        "num_heads": 16,
        "num_kv_heads": 2,
        "head_dim": 4,
        "d_ff": 224,  # 3.5 times
        "vocab_size": 128,
        "max_positions": 32,
    }
    assert small.rope_scaling.original_max_positions == 8
    assert small.experts == dataclasses.replace(LARGE.experts, num_experts=8, group_size=8)
    changed = SIZES | {"rope_scaling", "experts"}
    for field in dataclasses.fields(LARGE):
        assert field.name in changed or getattr(small, field.name) == getattr(LARGE, field.name)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "expected"), [(32, 32, (8, 8)), (32, 8, (8, 2)), (128, 8, (32, 2)), (12, 12, (8, 8))]
)
def test_query_heads_per_key_value_head_are_kept(num_heads, num_kv_heads, expected):
    small = shrink(dataclasses.replace(LARGE, num_heads=num_heads, num_kv_heads=num_kv_heads))
    assert (small.num_heads, small.num_kv_heads) == expected


def test_one_key_value_head_stays_one_and_a_width_that_is_not_the_heads_stays_so():
    palm = palm_config(
        num_layers=118, d_model=18432, num_heads=48, head_dim=256, vocab_size=256_000, max_positions=2048
    )
    small = shrink(palm)
    assert (small.num_heads, small.num_kv_heads, small.head_dim, small.d_model, small.d_ff) == (8, 1, 4, 48, 192)


@pytest.mark.parametrize(("large", "small"), [(50257, 128), (30522, 128), (128_256, 128), (96, 96)])
def test_the_vocabulary_is_cut_to_one_that_8_devices_can_share(large, small):
    assert shrink(dataclasses.replace(LARGE, vocab_size=large)).vocab_size == small


def test_both_halves_of_an_encoder_decoder_are_cut():
    large = t5_config(
        num_layers=24, d_model=1024, num_heads=16, head_dim=64, d_ff=2816, vocab_size=32128, max_positions=512
    )
    small = shrink_encoder_decoder(large)
    assert small.encoder == shrink(large.encoder)
    assert small.decoder == shrink(large.decoder)
