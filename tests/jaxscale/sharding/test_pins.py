"""Pins and rules of the user's: what they change, and every way in which one is refused."""

import jax
import jax.numpy as jnp
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding import primitives
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.pins import AddedRule, Pin
from jaxscale.sharding.specs import spec_text
from jaxscale.sharding.trace import trace_step


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def layers(p, x):
    def layer(c, w):
        return c + jax.nn.relu(c @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x, p)[0]


PARAMS = {"up": floats(4, 8, 32), "down": floats(4, 32, 8)}


def planned(*pins, mesh="data=2,fsdp=2,tensor=2", rules=()):
    limits = Limits(small_leaf_bytes=0, max_flops_ratio=9)
    plan = derive(layers, PARAMS, floats(16, 8), MeshSpec.parse(mesh), limits=limits, pins=pins, rules=rules)
    return {leaf.path: leaf for leaf in plan.leaves if leaf.role == "parameter"}


def specs(*pins, **options):
    return {path: spec_text(leaf.spec) for path, leaf in planned(*pins, **options).items()}


def test_a_pin_decides_one_dim_and_the_rules_the_rest():
    assert specs() == {"up": "-, fsdp, tensor", "down": "-, tensor, fsdp"}
    assert specs(Pin(path="up", dim=2, axes=("fsdp",))) == {"up": "-, -, fsdp", "down": "-, tensor, fsdp"}
    assert specs(Pin(path="up", dim=1, axes=())) == {"up": "-, -, tensor*fsdp", "down": "-, tensor, fsdp"}
    assert planned(Pin(path="up", dim=1, axes=()))["up"].reasons[0] == "dim 1 is pinned by the user"


def test_a_pin_of_a_class_reaches_all_that_is_linked():
    """The stream of 8: rows of `up`, columns of `down`; the hidden dim can then not be over tensor too."""
    got = specs(Pin(path="up", dim=1, axes=("tensor",), linked=True))
    assert got == {"up": "-, tensor, fsdp", "down": "-, fsdp, tensor"}


def test_a_scanned_dim_is_split_only_if_asked():
    pin = Pin(path="up", dim=0, axes=("fsdp",))
    with pytest.raises(UsageError, match="a scan goes through dim 0 step by step; set scanned=True"):
        specs(pin)
    assert specs(Pin(path="up", dim=0, axes=("fsdp",), scanned=True))["up"] == "fsdp, -, tensor"


@pytest.mark.parametrize(
    ("pins", "why"),
    [
        (
            [Pin(path="up", dim=1, axes=("fsdp", "data", "expert"))],
            r"8 does not divide by fsdp\*data\*expert=12; sizes",
        ),
        ([Pin(path="up", dim=1, axes=("tensor", "tensor"))], "split over tensor already, which shares devices"),
        (
            [Pin(path="up", dim=1, axes=("fsdp",)), Pin(path="up", dim=2, axes=("fsdp",))],
            r"dim 2 over fsdp: up \(4, 8, 32\): it is split over fsdp already",
        ),
        (
            [Pin(path="up", dim=1, axes=("tensor",), linked=True), Pin(path="down", dim=2, axes=())],
            "pin of parameter down dim 2 over nothing disagrees with the pin of parameter up dim 1 over tensor and all",
        ),
        ([Pin(path="left", dim=1, axes=())], "matches nothing: there is no parameter 'left' among 2: down, up"),
        ([Pin(path="up", dim=3, axes=())], r"matches nothing: up of shape \(4, 8, 32\) has 3 dims"),
        ([Pin(path="up", dim=1, axes=("model",))], "unknown axis 'model'; the axes are slice, stage"),
        ([Pin(path="up", dim=1, axes=("tensor[1:3]",))], r"'tensor\[1:3\]' is no part of tensor=2"),
        ([Pin(path="up", dim=1, axes=("sequence",))], "sequence splits nothing, for it has one device on mesh data=2"),
    ],
    ids=[
        "indivisible",
        "axis twice",
        "axis of two dims",
        "two ways",
        "no leaf",
        "no dim",
        "no axis",
        "no part",
        "one device",
    ],
)
def test_a_pin_that_can_not_be_followed_is_refused_with_the_reason(pins, why):
    with pytest.raises(UsageError, match=why):
        specs(*pins, mesh="data=2,fsdp=2,expert=3,tensor=2")


def keep_down_whole(graph, mesh, limits, choices):
    return tuple(
        choice if leaf.path != "down" else choice.leave("mine", "as I like it")
        for leaf, choice in zip(graph.leaves, choices, strict=True)
    )


def test_a_rule_comes_at_its_place():
    got = planned(rules=[AddedRule(rule=keep_down_whole, before="fully_shard")])["down"]
    assert got.rules == ("columns then rows", "mine", "fully shard")
    assert planned(rules=[AddedRule(rule=keep_down_whole)])["down"].rules[-1] == "mine"


def test_a_rule_that_matches_nothing_or_has_no_place_is_refused():
    def nothing(graph, mesh, limits, choices):
        return choices

    with pytest.raises(UsageError, match="rule nothing matched nothing"):
        specs(rules=[AddedRule(rule=nothing)])
    with pytest.raises(UsageError, match="before='first' is no rule; the rules are layers_stay_whole"):
        specs(rules=[AddedRule(rule=nothing, before="first")])


def test_a_primitive_can_be_taught_once(monkeypatch):
    def loss(p, x):
        return jnp.fft.fft(x @ p["a"]).real + p["b"]

    params = {"a": floats(8, 8), "b": floats(16, 8)}
    monkeypatch.setattr(primitives, "RULES", dict(primitives.RULES))
    monkeypatch.setattr("jaxscale.sharding.trace.RULES", primitives.RULES)
    before = trace_step(loss, params, floats(16, 8))
    assert [found.primitive for found in before.not_understood] == ["fft"]
    primitives.register_primitive("fft", lambda recorder, equation, inputs: [inputs[0].dims])
    after = trace_step(loss, params, floats(16, 8))
    assert after.not_understood == ()
    dims = {leaf.path: leaf.dims for leaf in after.leaves}
    assert dims["b"][1] == dims["a"][1]
    with pytest.raises(UsageError, match="primitive 'fft' has a sharding rule already"):
        primitives.register_primitive("fft", lambda recorder, equation, inputs: [])


def test_a_rule_of_a_primitive_that_gives_other_dims_is_refused(monkeypatch):
    rules = {**primitives.RULES, "fft": lambda recorder, equation, inputs: [inputs[0].dims[:1]]}
    monkeypatch.setattr("jaxscale.sharding.trace.RULES", rules)
    with pytest.raises(UsageError, match=r"rule of primitive 'fft' gave outputs of \[1\] dims"):
        trace_step(lambda p, x: jnp.fft.fft(x + p), floats(4, 8), floats(4, 8))
