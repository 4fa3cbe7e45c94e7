"""A masked language model of bytes: those that are hidden. `python -m examples.masked_language_modelling`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.texts import NUM_BYTES, adam, rows
from jaxscale.nn.families import bert_config
from jaxscale.nn.transformer import Transformer
from jaxscale.train.fit import fit
from jaxscale.train.job import Operation
from jaxscale.train.task import Task

LENGTH, HIDDEN, SHARE = 64, NUM_BYTES, 0.15
CONFIG = bert_config(
    num_layers=2, d_model=64, num_heads=4, d_ff=256, vocab_size=NUM_BYTES + 1, max_positions=LENGTH, dropout_rate=0.0
)


def collate(examples):
    return {"bytes": np.stack(examples)}


def scores(model, read):
    """[B S V]: the token table is the output, too."""
    hidden, _ = model(read, None)
    return hidden @ model.embeddings.token.table[...].T


def loss(model, batch, key):
    hidden = jax.random.bernoulli(key, SHARE, batch["bytes"].shape)
    made = scores(model, jnp.where(hidden, HIDDEN, batch["bytes"]))
    of_each = optax.softmax_cross_entropy_with_integer_labels(made, batch["bytes"])
    right = made.argmax(axis=-1) == batch["bytes"]
    return of_each.mean(where=hidden), {"accuracy": right.mean(where=hidden)}


def predict(model, batch):
    """The bytes, those that are hidden filled in."""
    return scores(model, batch["bytes"]).argmax(axis=-1)


TASK = Task(
    name="hidden bytes", model=lambda key: Transformer(CONFIG, key=key), collate=collate, loss=loss, predict=predict
)


def main(out="runs/hidden-bytes", num_steps=300, mesh=""):
    text = rows(LENGTH)
    return fit(TASK, text, out=out, training=adam(num_steps, 32, 3e-3), operation=Operation(mesh=mesh))


if __name__ == "__main__":
    print(main().result)
