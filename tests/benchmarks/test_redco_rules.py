"""Redco's rules on names: in turns, in alphabetical order, on dims that divide."""

from benchmarks.redco_rules import redco

SHAPES = {
    "layers/attention/out/kernel": (2, 8, 4, 32),
    "layers/mlp/up/kernel": (2, 32, 64),
    "layers/mlp/up/bias": (2, 64),
    "token/embedding": (50, 32),
    "experts/up": (8, 32, 64),
}


def test_candidates_take_turns_between_the_last_and_the_last_but_one_valid_dim():
    assert redco(SHAPES, 4).parameters == {
        # First of the keys: the last dim.
        "layers/attention/out/kernel": "-, -, -, tensor",
        # Third: the last dim. What is no kernel and no embedding is a copy, whatever its size.
        "layers/mlp/up/kernel": "-, -, tensor",
        # Second: the last but one is 50, which 4 does not divide, so there is no such valid dim but the last.
        "token/embedding": "-, tensor",
    }


def test_the_key_is_the_last_two_names():
    found = redco({"a/x/kernel": (8, 4), "b/x/kernel": (8, 4), "b/y/kernel": (8, 4)}, 4).parameters
    assert found == {"a/x/kernel": "-, tensor", "b/x/kernel": "-, tensor", "b/y/kernel": "tensor, -"}
