"""What a resume may change, and how a fork is named."""

from pathlib import Path

import pytest

from jaxscale.errors import DataError, UsageError
from jaxscale.train.data_order import DataOrder
from jaxscale.train.result import Best
from jaxscale.train.resume import Fork, Progress, check_identity, past_sha256

OLD = {"training": {"num_steps": 10, "seed": 1, "optimizer": {"b1": 0.9}}, "data": "abc"}


def changed(**training):
    return {**OLD, "training": {**OLD["training"], **training}}


def test_the_same_identity_changes_nothing():
    assert check_identity(Path("out"), OLD, changed()) is None


def test_a_run_may_grow_and_not_shrink():
    grown = check_identity(Path("out"), OLD, changed(num_steps=11))
    assert str(grown) == "training.num_steps: 10 -> 11"
    with pytest.raises(UsageError, match="num_steps=9 is below the 10"):
        check_identity(Path("out"), OLD, changed(num_steps=9))


def test_every_other_change_is_named_with_both_values():
    new = {**changed(num_steps=20, optimizer={"b1": 0.8}), "data": "abd", "extra": None}
    with pytest.raises(UsageError) as error:
        check_identity(Path("out"), OLD, new)
    assert str(error.value).splitlines()[1:-1] == [
        '  data: "abc" -> "abd"',
        "  extra: (none) -> (none)",
        "  training.optimizer.b1: 0.9 -> 0.8",
    ]


def test_the_past_is_all_but_the_length():
    assert past_sha256(OLD) == past_sha256(changed(num_steps=99))
    assert past_sha256(OLD) != past_sha256(changed(seed=2))


def test_progress_survives_json_exactly():
    progress = Progress(
        step=7,
        last_evaluated=None,
        best=Best(step=4, metric="nDCG@10", mode="max", value=0.1 + 0.2),
        environment={"platform": "cpu", "packages": {"jax": "1"}},
        mesh="data=2",
        past_sha256="ab",
        order=DataOrder(next_number=9, skipped=(4, 12)),
    )
    assert Progress.from_json(progress.to_json(), "here") == progress
    with pytest.raises(DataError, match="here: missing mesh"):
        Progress.from_json({k: v for k, v in progress.to_json().items() if k != "mesh"}, "here")
    from_before = {k: v for k, v in progress.to_json().items() if k != "order"}
    assert Progress.from_json(from_before, "here").order == DataOrder(next_number=7)


def test_a_fork_names_a_run_and_perhaps_a_step(tmp_path):
    run = tmp_path / "a@b"
    run.mkdir()
    (run / "job.json").write_text("{}")
    assert Fork.parse(f"{run}@400") == Fork(run=run, step=400)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/job.json").write_text("{}")
    assert Fork.parse(str(tmp_path / "plain")) == Fork(run=tmp_path / "plain", step=None)
    assert Fork.parse(str(run)) == Fork(run=run, step=None)
    with pytest.raises(UsageError, match="is not a run folder"):
        Fork.parse(str(tmp_path / "nothing"))
