"""MAML: weights from which one step of gradient descent on ten points fits a sine. `python -m examples.meta_learning`.

Finn et al. 2017, section 5.1, https://arxiv.org/abs/1703.03400. The gradient goes through the inner gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.texts import adam
from jaxscale.train.fit import fit
from jaxscale.train.job import Operation
from jaxscale.train.task import Task

INNER_RATE, NUM_POINTS = 0.05, 10


class Net(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.first, self.second, self.out = (nnx.Linear(a, b, rngs=rngs) for a, b in ((1, 40), (40, 40), (40, 1)))

    def __call__(self, x):
        return self.out(jnp.tanh(self.second(jnp.tanh(self.first(x)))))


def collate(waves):
    """A wave is an amplitude, a phase and a seed of its points, one half to adapt to and one to be judged by."""
    x = np.stack([np.random.default_rng(seed).uniform(-5, 5, (2 * NUM_POINTS, 1)) for _, _, seed in waves])
    amplitude, phase = (np.array([wave[i] for wave in waves])[:, None, None] for i in (0, 1))
    return {"x": x.astype(np.float32), "y": (amplitude * np.sin(x + phase)).astype(np.float32)}


def adapted_output(model, x, y):
    """Of the judged half of one wave's points, after one step on the other."""
    graphdef, weights = nnx.split(model)
    error = lambda weights: jnp.square(nnx.merge(graphdef, weights)(x[:NUM_POINTS]) - y[:NUM_POINTS]).mean()
    adapted = jax.tree.map(lambda w, g: w - INNER_RATE * g, weights, jax.grad(error)(weights))
    return nnx.merge(graphdef, adapted)(x[NUM_POINTS:])


def predict(model, batch):
    return jax.vmap(lambda x, y: adapted_output(model, x, y))(batch["x"], batch["y"])


def loss(model, batch, key):
    return jnp.square(predict(model, batch) - batch["y"][:, NUM_POINTS:]).mean(), {}


def main(out="runs/sines", num_steps=1000, mesh=""):
    random = np.random.default_rng(0)
    waves = [(random.uniform(0.1, 5.0), random.uniform(0.0, np.pi), seed) for seed in range(4096)]
    task = Task(name="sines", model=Net, collate=collate, loss=loss, predict=predict)
    return fit(task, waves, out=out, training=adam(num_steps, 32, 1e-3), operation=Operation(mesh=mesh))


if __name__ == "__main__":
    print(main().result)
