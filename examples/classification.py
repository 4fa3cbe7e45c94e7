"""A Linen model that tells prose from code in Python's reference pages. `python -m examples.classification`."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from examples.texts import NUM_BYTES, adam, rows
from jaxscale.train.fit import fit
from jaxscale.train.job import Operation
from jaxscale.train.task import Task

LENGTH = 64


class Classifier(nn.Module):
    """Bytes and the pairs of them that stand side by side, averaged, and two layers."""

    @nn.compact
    def __call__(self, text):
        x = nn.Embed(NUM_BYTES, 32)(text)
        x = nn.relu(nn.Dense(64)(jnp.concatenate([x[:, :-1], x[:, 1:]], axis=-1))).mean(axis=1)
        return nn.Dense(2)(nn.relu(nn.Dense(64)(x)))


def is_code(text):
    """By what only code has."""
    return sum(bytes(text.astype(np.uint8)).count(mark) for mark in (b"()", b"= ", b">>>", b"def ", b":=")) > 0


def collate(examples):
    return {"text": np.stack(examples), "label": np.array([is_code(text) for text in examples], np.int32)}


def loss(model, batch, key):
    scores = model(batch["text"])
    right = (scores.argmax(axis=-1) == batch["label"]).mean()
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"]).mean(), {"accuracy": right}


def predict(model, batch):
    return model(batch["text"]).argmax(axis=-1)


PARTS = {"collate": collate, "loss": loss, "predict": predict}
TASK = Task(name="code", model=Classifier(), inputs=lambda batch: (batch["text"],), **PARTS)


def main(out="runs/code", num_steps=300, mesh=""):
    text = rows(LENGTH)
    operation = Operation(mesh=mesh, best_metric="accuracy", eval_every_steps=100)
    training = adam(num_steps, 64, 3e-3)
    return fit(TASK, text[:-512], held_out=text[-512:], out=out, training=training, operation=operation)


if __name__ == "__main__":
    print(main().result.best)
