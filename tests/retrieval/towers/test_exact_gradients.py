"""Whole towers: loss and gradients in chunks, on 8 devices, round the ring are those of one plain pass over the batch.

The plain pass encodes text after text on one device and writes the loss out. In float64 it is met to 1e-10 of each
leaf's norm, in float32 to 1e-5, two leaves aside. Leaves that are zero but for rounding are measured as in `on_meshes`.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.mesh import MeshSpec
from jaxscale.nn.families import bert_config
from jaxscale.nn.keys import named_key
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from retrieval.towers.encoder import apply_encoder
from retrieval.towers.in_batch import NO_DOCUMENT
from retrieval.towers.loss import Contrastive
from retrieval.towers.pair_loss import PairLoss
from retrieval.towers.start import Towers, planned_towers
from tests.configs.on_meshes import COMPILED_FAST, everything_in, far_leaves, gradient_on_mesh
from tests.jaxscale.random_params import random_like

NUM_PAIRS, QUERY_LENGTH, DOCUMENT_LENGTH, NUM_DOCUMENTS, NUM_DIMS = 32, 4, 6, 24, 8
TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
# Small differences of large sums: what float32 leaves of them is met to this, whatever computes them.
CANCELLING, CANCELLING_TOLERANCE = ("log_temperature", "['key']['bias']"), 1e-4
# Where and how: devices, and how queries meet the documents of others.
PLACES = (("data=1", "gather"), ("data=4,fsdp=2", "gather"), ("data=4,fsdp=2", "ring"))
KEY, TEMPERATURE = 7, 0.2


@dataclasses.dataclass(frozen=True)
class Case:
    """What the loss is; what no attribute names is varied along with these."""

    num_hard_negatives: int
    matryoshka: bool
    masks: bool

    @property
    def contrastive(self):
        return Contrastive(
            temperature=TEMPERATURE,
            learn_temperature=self.matryoshka or not self.masks,
            symmetric=self.matryoshka != self.masks,
            mask_same_document=self.masks,
            mask_known_positives=self.masks,
            positives="all" if self.masks and self.num_hard_negatives else "own",
            matryoshka_dims=(3, NUM_DIMS) if self.matryoshka else (),
            matryoshka_weights=(0.25, 1.0) if self.matryoshka else (),
        )

    @property
    def towers(self):
        dropout_rate = 0.2 if self.matryoshka else 0.0
        transformer = bert_config(
            num_layers=1,
            d_model=16,
            num_heads=2,
            d_ff=32,
            vocab_size=32,
            max_positions=DOCUMENT_LENGTH,
            dropout_rate=dropout_rate,
        )
        asked = Towers(transformer=transformer, projection_dim=NUM_DIMS, shared=not self.num_hard_negatives)
        return planned_towers(asked, (QUERY_LENGTH, DOCUMENT_LENGTH))

    @property
    def batch(self):
        """Texts of different lengths, each query's words first in its own document; documents and known positives
        repeat, so that masks matter.
        """
        draw = np.random.default_rng(1)
        shape = (NUM_PAIRS, 1 + self.num_hard_negatives)

        def texts(*dims):
            return draw.integers(0, 32, dims, dtype=np.int32), np.arange(dims[-1]) < draw.integers(
                2, dims[-1] + 1, (*dims[:-1], 1)
            )

        query_tokens, query_mask = texts(NUM_PAIRS, QUERY_LENGTH)
        document_tokens, document_mask = texts(*shape, DOCUMENT_LENGTH)
        document_tokens[:, 0, :QUERY_LENGTH] = query_tokens
        ids = draw.integers(0, NUM_DOCUMENTS, shape).astype(np.int32)
        known = np.full((NUM_PAIRS, 2), NO_DOCUMENT, np.int32)
        known[:, 0], known[::2, 1] = ids[:, 0], draw.integers(0, NUM_DOCUMENTS, NUM_PAIRS // 2)
        groups = {"document_groups": (ids // 2).astype(np.int32)} if self.masks else {}
        return {
            "query_tokens": query_tokens,
            "query_mask": query_mask,
            "document_tokens": document_tokens,
            "document_mask": document_mask,
            "document_ids": ids,
            "known_positives": known,
            **groups,
        }


def pair_loss(case, dtype, **changes):
    contrastive = dataclasses.replace(case.contrastive, **changes)
    return PairLoss(towers=case.towers, contrastive=contrastive, compute_dtype=dtype)


def params_of(case, dtype):
    """Drawn at random, with such token embeddings that texts differ, and two towers alike, as after some training.

    Were all scores nearly equal, the temperature's gradient would be a difference of nearly equal sums, and so nothing
    but their rounding.
    """
    shapes = jax.eval_shape(lambda: pair_loss(case, dtype).init_params(jax.random.key(0)))

    def leaf(path, drawn, like):
        if "log_temperature" in jax.tree_util.keystr(path):
            return np.asarray(np.log(TEMPERATURE), dtype)
        return np.asarray(drawn, like.dtype) * (5 if "['token']" in jax.tree_util.keystr(path) else 1)

    params = jax.tree_util.tree_map_with_path(leaf, random_like(shapes), shapes)
    if not case.towers.shared:
        params["towers"]["query"] = params["towers"]["document"]
    return params


def plain_loss(case, params, batch, dtype):
    """One pass, text after text; masks by loops over pairs of examples."""
    towers, contrastive, key = case.towers, case.contrastive, jax.random.key(KEY)

    def encode(side, tokens, mask):
        def one(text):
            number, tokens, mask = text
            drop = jax.random.fold_in(named_key(key, side), number)
            weights = towers.params(params["towers"], side)
            config = towers.config(side)
            return apply_encoder(
                config, weights, tokens[None], mask[None], compute_dtype=jnp.dtype(dtype), dropout_key=drop
            )[0]

        return jax.lax.map(one, (np.arange(len(tokens), dtype=np.int32), tokens, mask))

    ids, known = batch["document_ids"], batch["known_positives"]
    groups = batch.get("document_groups", np.arange(ids.size).reshape(ids.shape))
    num_queries, num_passages = ids.shape
    queries = encode("query", batch["query_tokens"], batch["query_mask"])
    flat = [batch[name].reshape(ids.size, -1) for name in ("document_tokens", "document_mask")]
    documents = encode("document", *flat)
    positive, candidate = (np.zeros((num_queries, ids.size), bool) for _ in range(2))
    for i, (column, doc) in itertools.product(range(num_queries), enumerate(ids.reshape(-1))):
        own, relevant = column == i * num_passages, doc in known[i]
        positive[i, column] = own or (contrastive.positives == "all" and relevant)
        masked = case.masks and (doc == ids[i, 0] or relevant or groups.reshape(-1)[column] == groups[i, 0])
        candidate[i, column] = positive[i, column] or not masked
    temperature = jnp.exp(params["log_temperature"]) if contrastive.learn_temperature else contrastive.temperature

    def cross_entropy(scores, candidate, positive):
        log_softmax = jax.nn.log_softmax(jnp.where(candidate, scores, -jnp.inf), axis=1)
        of_positives = jnp.sum(jnp.where(positive, log_softmax, 0.0), axis=1)
        return -jnp.mean(of_positives / np.sum(positive, axis=1).astype(dtype))

    total, firsts = 0.0, slice(None, None, num_passages)
    for num_dims, weight in contrastive.prefixes(NUM_DIMS):
        short, long = (
            of[:, :num_dims] / jnp.linalg.norm(of[:, :num_dims], axis=1)[:, None] for of in (queries, documents)
        )
        scores = jnp.matmul(short, long.T, precision=jax.lax.Precision.HIGHEST) / temperature
        loss = cross_entropy(scores, candidate, positive)
        if contrastive.symmetric:
            back = cross_entropy(scores[:, firsts].T, candidate[:, firsts].T, positive[:, firsts].T)
            loss = 0.5 * (loss + back)
        total = total + weight * loss
    return total


@functools.cache
def expected_of(case, dtype):
    params, batch = params_of(case, dtype), case.batch
    step = jax.jit(jax.value_and_grad(lambda p: plain_loss(case, p, batch, dtype)), compiler_options=COMPILED_FAST)
    return jax.device_get(step(params))


def gradient_of(case, dtype, place, cache_chunks, batch=None):
    """As training computes it: under the plan of the loss on that mesh."""
    spec = MeshSpec.parse(place[0])
    computation = pair_loss(case, dtype, cache_chunks=cache_chunks, negatives=place[1]).on(spec)
    params, batch = params_of(case, dtype), case.batch if batch is None else batch

    def loss(params, batch):
        return computation.loss(params, batch, jax.random.key(KEY))[0]

    if spec.num_devices == 1:
        step = jax.jit(jax.value_and_grad(loss), compiler_options=COMPILED_FAST)
        return jax.device_get(step(params, batch))
    plan = derive(loss, params, batch, spec, limits=Limits(small_leaf_bytes=0))
    return gradient_on_mesh(loss, params, batch, spec, plan=plan)


def compare(case, dtype, place, cache_chunks):
    with everything_in(dtype):
        expected_loss, expected = expected_of(case, dtype)
        loss, gradient = gradient_of(case, dtype, place, cache_chunks)
    assert loss.dtype == dtype
    assert abs(loss - expected_loss) <= TOLERANCES[dtype] * abs(expected_loss)
    assert all(np.linalg.norm(leaf) > 0 for leaf in jax.tree.leaves(expected))
    far = far_leaves(gradient, expected, tolerance=TOLERANCES[dtype])
    if dtype == "float32":
        far = {path: e for path, e in far.items() if e > CANCELLING_TOLERANCE or not path_of_any(path, CANCELLING)}
    assert far == {}


def path_of_any(path, parts):
    return any(part in path for part in parts)


# Every option of the loss, every place and both numbers of chunks are in one of these.
QUICK = [
    (Case(3, True, True), "float64", PLACES[1], 1),
    (Case(3, True, True), "float64", PLACES[2], 4),
    (Case(0, False, True), "float32", PLACES[0], 4),
]
ALL = list(
    itertools.product(
        itertools.starmap(Case, itertools.product((0, 3), (False, True), (False, True))), TOLERANCES, PLACES, (1, 4)
    )
)


@pytest.mark.parametrize(("case", "dtype", "place", "cache_chunks"), QUICK)
def test_loss_and_gradients_are_those_of_one_plain_pass(case, dtype, place, cache_chunks):
    compare(case, dtype, place, cache_chunks)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "dtype", "place", "cache_chunks"), [run for run in ALL if run not in QUICK])
def test_so_are_those_of_every_combination(case, dtype, place, cache_chunks):
    compare(case, dtype, place, cache_chunks)


@pytest.mark.parametrize("place", [pytest.param(PLACES[1], marks=pytest.mark.slow), PLACES[2]])
def test_documents_of_another_device_are_caught(place):
    case, dtype = Case(3, True, True), "float64"
    shift = NUM_PAIRS // 8
    shifted = {
        name: np.roll(leaf, shift, axis=0) if name in ("document_tokens", "document_mask") else leaf
        for name, leaf in case.batch.items()
    }
    with everything_in(dtype):
        expected_loss, expected = expected_of(case, dtype)
        loss, gradient = gradient_of(case, dtype, place, 1, shifted)
    assert abs(loss - expected_loss) > 1e-3 * expected_loss
    assert far_leaves(gradient, expected, tolerance=1e-3)
