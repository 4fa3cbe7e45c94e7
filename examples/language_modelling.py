"""A language model of bytes: the next byte of Python's own reference pages. `python -m examples.language_modelling`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.texts import NUM_BYTES, adam, rows
from jaxscale.nn.families import decoder_config
from jaxscale.nn.transformer import Transformer
from jaxscale.train.fit import fit
from jaxscale.train.job import Operation
from jaxscale.train.task import Task

LENGTH = 64
CONFIG = decoder_config(
    num_layers=2, d_model=64, num_heads=4, num_kv_heads=2, d_ff=176, vocab_size=NUM_BYTES, max_positions=LENGTH
)


def collate(examples):
    return {"bytes": np.stack(examples)}


def logits(model, batch):
    hidden, _ = model(batch["bytes"], None)
    return model.logits(hidden)


def loss(model, batch, key):
    of_each = optax.softmax_cross_entropy_with_integer_labels(logits(model, batch)[:, :-1], batch["bytes"][:, 1:])
    mean = of_each.mean()
    return mean, {"bits_per_byte": mean / jnp.log(2.0)}


def predict(model, batch):
    """The most likely byte after each row."""
    return logits(model, batch)[:, -1].argmax(axis=-1)


TASK = Task(name="bytes", model=lambda key: Transformer(CONFIG, key=key), collate=collate, loss=loss, predict=predict)


def main(out="runs/bytes", num_steps=300, mesh=""):
    text = rows(LENGTH)
    operation = Operation(mesh=mesh, log_every_steps=50)
    return fit(TASK, text[:-64], held_out=text[-64:], out=out, training=adam(num_steps, 32, 3e-3), operation=operation)


if __name__ == "__main__":
    fitted = main()
    print("after each of the first rows comes", bytes(fitted.predict(rows(LENGTH)[:8]).astype(np.uint8)))
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(fitted.params)):,} parameters")
