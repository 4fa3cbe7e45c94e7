"""REINFORCE on a corridor: a policy learns which way the door is. `python -m examples.policy_gradient`.

Williams 1992, https://doi.org/10.1007/BF00992696. An example is a start and a door; the walk is drawn in the loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.texts import adam
from jaxscale.train.fit import fit
from jaxscale.train.job import Operation
from jaxscale.train.task import Task

WIDTH, NUM_MOVES, BASELINE = 9, 8, 0.5


class Policy(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.first, self.out = nnx.Linear(2, 32, rngs=rngs), nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, place, door):
        seen = jnp.stack([place, door], axis=-1).astype(jnp.float32) / WIDTH
        return self.out(jnp.tanh(self.first(seen)))


def collate(corridors):
    return {
        name: np.array([corridor[i] for corridor in corridors], np.int32) for i, name in enumerate(("start", "door"))
    }


def loss(model, batch, key):
    place, reached, log_probability = batch["start"], batch["start"] == batch["door"], 0.0
    for move in range(NUM_MOVES):
        scores = jax.nn.log_softmax(model(place, batch["door"]))
        goes_right = jax.random.bernoulli(jax.random.fold_in(key, move), jnp.exp(scores[:, 1]))
        log_probability += jnp.where(reached, 0.0, jnp.where(goes_right, scores[:, 1], scores[:, 0]))
        place = jnp.where(reached, place, jnp.clip(place + jnp.where(goes_right, 1, -1), 0, WIDTH - 1))
        reached = reached | (place == batch["door"])
    reward = reached.astype(jnp.float32)
    return -(jax.lax.stop_gradient(reward - BASELINE) * log_probability).mean(), {"reward": reward.mean()}


def predict(model, batch):
    return model(batch["start"], batch["door"]).argmax(axis=-1)


def main(out="runs/corridor", num_steps=300, mesh=""):
    corridors = [(start, door) for start in range(WIDTH) for door in range(WIDTH) if start != door]
    task = Task(name="corridor", model=Policy, collate=collate, loss=loss, predict=predict)
    return fit(task, corridors * 8, out=out, training=adam(num_steps, 64, 1e-2), operation=Operation(mesh=mesh))


if __name__ == "__main__":
    print(main().predict([(2, 7), (7, 2)]))
