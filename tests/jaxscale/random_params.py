"""Parameters drawn by numpy, which compiles nothing: of order 1, biases too, so that an error in any of them shows."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.nn import functional


def random_like(shapes, seed=0, *, spread=0.4):
    """A tree of float32 arrays with the shapes of another tree."""
    leaves, treedef = jax.tree.flatten(shapes)
    random = np.random.default_rng(seed)
    drawn = [jnp.asarray(random.normal(0.1, spread, leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(treedef, drawn)


def random_params(config, seed=0, *, spread=0.4):
    """The parameters of a model."""
    shapes = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    return random_like(shapes, seed, spread=spread)
