"""Recipes that a mesh of 8 devices does not suit, one for each reason to refuse; to explain, to plan and to train."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.planned_step import PlannedStep

NUM_EXAMPLES = 16


def mlp(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def with_constant(params, x):
    return mlp(params, x) @ np.ones((1024, 1024), np.float32)


def constrained(params, x):
    rows = jax.lax.with_sharding_constraint(
        mlp(params, x)[:15], NamedSharding(make_mesh(MeshSpec(data=8)), PartitionSpec("data"))
    )
    return rows


def heads_of_three(params, x):
    """Three heads that 8 devices can't share, before an MLP that they can."""
    q = (x @ params["q"]).reshape(x.shape[0], 3, -1)
    mixed = jnp.einsum("bhc,bgc->bhg", q, q) @ q.reshape(x.shape[0], 3, -1)
    return mlp(params, mixed.reshape(x.shape[0], -1) @ params["o"])


def mismatched(params, x):
    return mlp(params, x) @ params["up"].T @ params["up"].T


def floats(**shapes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


LOSSES = {
    "mlp": (mlp, floats(up=(64, 256), down=(256, 64))),
    "odd": (mlp, floats(up=(64, 255), down=(255, 64))),
    "large": (mlp, floats(up=(2049, 4099), down=(4099, 2049))),
    "with_constant": (with_constant, floats(up=(64, 256), down=(256, 1024))),
    "constrained": (constrained, floats(up=(64, 256), down=(256, 64))),
    "heads_of_three": (heads_of_three, floats(q=(64, 96), o=(96, 64), up=(64, 256), down=(256, 64))),
    "mismatched": (mismatched, floats(up=(64, 256), down=(256, 64))),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefusedObjective:
    """What training asks for before it compiles; it must never come further."""

    name: str
    num_examples: int
    identity: dict[str, Any]
    starting_params = None

    def init_params(self, key):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), LOSSES[self.name][1])

    def loss(self, params, batch, key):
        return jnp.mean(LOSSES[self.name][0](params, batch["x"])), {}

    def batch_shapes(self):
        width = LOSSES[self.name][1]["up"].shape[0]
        return [{"x": jax.ShapeDtypeStruct((self.num_examples, width), jnp.float32)}]

    def batch(self, number, rows=slice(None)):
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype)[rows], self.batch_shapes()[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefusedJob:
    """A job of one of `LOSSES`."""

    name: str
    training: TrainingIdentity
    operation: Operation

    def check(self, mesh):
        pass

    def objective(self):
        return RefusedObjective(name=self.name, num_examples=self.training.global_batch_size, identity={})

    def planned_step(self):
        objective = self.objective()
        return PlannedStep(
            loss=lambda params, batch: objective.loss(params, batch, None)[0],
            params=LOSSES[self.name][1],
            batch=objective.batch_shapes()[0],
            optimizer=self.training.optimizer.transformation(),
            num_tokens=objective.num_examples,
        )


def _job(name: str, num_examples: int = NUM_EXAMPLES) -> RefusedJob:
    optimizer = AdamWConfig(schedule=ScheduleConfig(kind="constant"))
    training = TrainingIdentity(num_steps=2, global_batch_size=num_examples, optimizer=optimizer)
    return RefusedJob(name=name, training=training, operation=Operation())


def suits() -> RefusedJob:
    return _job("mlp")


def twelve_examples() -> RefusedJob:
    return _job("mlp", 12)


def odd_width() -> RefusedJob:
    return _job("odd")


def large_leaf() -> RefusedJob:
    return _job("large")


def large_constant() -> RefusedJob:
    return _job("with_constant")


def fifteen_rows_constrained() -> RefusedJob:
    return _job("constrained")


def three_heads() -> RefusedJob:
    return _job("heads_of_three")


def no_program() -> RefusedJob:
    return _job("mismatched")
