"""What a study measures: shares of the teacher's figures with their p, times taken by turns, parameters counted."""

import pytest

from jaxscale.errors import UsageError
from retrieval.evaluate import evaluate, paired_randomization
from retrieval.towers.distillation.study import MEASURES, by_turns, count_params, kept_of, speeds_of
from tests.retrieval.towers.distillation.small_distillation import MESH, small_encoder

QRELS = {f"q{i}": {f"d{i}": 1} for i in range(8)}


def run_of(ranks):
    """Query i finds its document at rank `ranks[i]`."""
    return {
        f"q{i}": {(f"d{i}" if rank == place else f"x{place}"): -float(place) for place in range(1, 101)}
        for i, rank in enumerate(ranks)
    }


def test_what_is_kept_is_the_share_of_the_teachers_mean_and_its_p():
    runs = {"teacher": run_of([1] * 8), "student": run_of([1, 1, 2, 3, 60, 60, 60, 101])}
    kept = kept_of(runs, QRELS, "teacher")
    assert {m: (k.share, k.p) for m, k in kept["teacher"].items()} == dict.fromkeys(MEASURES, (1.0, 1.0))
    assert kept["student"]["R@50"].value == kept["student"]["R@50"].share == 0.5
    assert kept["student"]["R@100"].share == 7 / 8
    values = [evaluate(run, QRELS, ["nDCG@10"]).values("nDCG@10") for run in runs.values()]
    assert kept["student"]["nDCG@10"].p == paired_randomization(*values) < 0.1


def test_of_a_teacher_that_finds_nothing_there_is_nothing_to_keep():
    with pytest.raises(UsageError, match=r"the teacher's nDCG@10 is 0 on these queries"):
        kept_of({"teacher": run_of([60] * 8)}, QRELS, "teacher")


def test_towers_are_timed_by_turns_after_a_round_that_does_not_count():
    now, asked = [0.0], []

    def encoder(name, seconds):
        def encode(texts):
            asked.append((name, texts[0]))
            now[0] += seconds * len(texts)

        return encode

    encode = {"slow": encoder("slow", 3.0), "fast": encoder("fast", 1.0)}
    times_s = by_turns(encode, [["a"], ["b", "c"]], clock=lambda: now[0])
    assert times_s == {"slow": [3.0, 6.0] * 3, "fast": [1.0, 2.0] * 3}
    assert asked[:4] == [("slow", "a"), ("slow", "b"), ("fast", "a"), ("fast", "b")]
    assert [name for name, text in asked[4:] if text == "a"] == ["slow", "fast", "fast", "slow", "slow", "fast"]


def test_too_few_queries_measure_no_speed():
    with pytest.raises(UsageError, match="31 queries are too few to measure 32 at once"):
        speeds_of({}, ["x"] * 31, MESH, compute_dtype="float32")


def test_parameters_are_counted_with_and_without_the_tables():
    encoder = small_encoder(num_layers=2, projection_dim=5)
    transformer, num_params = encoder.config.transformer, count_params(encoder.params)
    assert num_params[0] == transformer.num_params + 32 * 5
    tables = transformer.vocab_size + transformer.max_positions + transformer.type_vocab_size
    assert num_params[0] - num_params[1] == pytest.approx(tables * 32, abs=2 * 32)
