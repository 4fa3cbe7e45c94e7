"""Training in rounds: train, mine with what was trained, train on what was mined; resumable wherever it was cut off.

Every round is a plain run and every set of negatives a plain committed folder, in one folder together:
docs/formats/run-folder.md. Hard negatives mined anew by the model of the round before are those of ANCE (Xiong et al.
2020, https://arxiv.org/abs/2007.00808), in a few rounds instead of all the time.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from jaxscale import typed_json
from jaxscale.data.permutation import fold_seed
from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text
from jaxscale.observe.heartbeat import Heartbeat
from jaxscale.store import commit
from jaxscale.store.failpoints import failpoint
from jaxscale.train.events import read_events
from jaxscale.train.loop import train
from jaxscale.train.result import Best, TrainResult
from jaxscale.train.run_folder import RunFolder
from jaxscale.train.signals import StopSignals
from retrieval.embed import embed_corpus, print_progress
from retrieval.formats.beir import BeirFolder
from retrieval.towers.job import DualTowerJob
from retrieval.towers.mine_corpus import Miner
from retrieval.towers.mining import Mining
from retrieval.towers.negatives_folder import read_description
from retrieval.towers.pairs import PairSource, read_source
from retrieval.towers.retriever_folder import read_retriever, save_retriever

# What a kill in the midst of encoding a corpus costs, in documents.
_SHARD_SIZE = 4096
_SEEDS = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds:
    """How training and mining follow each other.

    The optimizer and its schedule begin anew in every round, and the batches come in another order.

    Attributes:
      num_rounds: trainings, one after the other, of `training.num_steps` each.
      mine_first: whether the model that the job starts from mines negatives for the first round too; without, that
        round has those of its batches alone.
      start: where a later round starts: from the `previous` one's model, or from the `origin`, as the first one does.
      num_hard_negatives: mined documents taken per query and step.
      mining: how they are mined.
    """

    num_rounds: int = 2
    mine_first: bool = False
    start: Literal["previous", "origin"] = "previous"
    num_hard_negatives: int = 1
    mining: Mining = dataclasses.field(default_factory=Mining)

    def __post_init__(self) -> None:
        if self.num_rounds < 1:
            raise UsageError(f"num_rounds={self.num_rounds} must be at least 1")
        if self.num_rounds == 1 and not self.mine_first:
            raise UsageError("num_rounds=1 without mine_first mines nothing; use 2 rounds, or mine first")
        if not 1 <= self.num_hard_negatives <= self.mining.num_negatives:
            raise UsageError(
                f"num_hard_negatives={self.num_hard_negatives} must be at least 1, and at most the "
                f"mining.num_negatives={self.mining.num_negatives} that are mined of a query"
            )
        if not self.mining.fill:
            raise UsageError(
                "mining.fill=False would leave queries without the negatives that a round takes of each; leave it True"
            )

    def mines(self, number: int) -> bool:
        """Whether there are mined negatives for a round."""
        return number > 0 or self.mine_first


def job_of_round(job: DualTowerJob, rounds: Rounds, number: int, out: Path) -> DualTowerJob:
    """The plain job that one round is.

    Args:
      job: that of the first round, without mined negatives.
      rounds: how they follow each other.
      number: of the round, from 0.
      out: the folder of all rounds.
    """
    if rounds.mines(number):
        data = dataclasses.replace(
            job.data, hard_negatives=str(negatives_of(out, number)), num_hard_negatives=rounds.num_hard_negatives
        )
        job = dataclasses.replace(job, data=data)
    if number == 0:
        return job
    seed = fold_seed(job.training.seed, "round", number) % _SEEDS
    job = dataclasses.replace(job, training=dataclasses.replace(job.training, seed=seed))
    if rounds.start == "origin":
        return job
    # The model of the round before has both towers, whatever the query tower of the first one started from.
    towers = dataclasses.replace(job.towers, query_init_from="", query_transformer=None)
    return dataclasses.replace(job, towers=towers).starting_from(str(run_of(out, number - 1) / "model"))


def run_of(out: Path, number: int) -> Path:
    """The run folder of a round."""
    return out / f"round-{number}"


def negatives_of(out: Path, number: int) -> Path:
    """The negatives that a round trains on."""
    return out / f"negatives-{number}"


def train_rounds(
    job: DualTowerJob,
    rounds: Rounds,
    out: Path,
    *,
    stop: StopSignals,
    command: Sequence[str] = (),
    heartbeat: Heartbeat | None = None,
) -> TrainResult:
    """Trains all rounds, from where the folder stands; the last one's model is copied to `out/model`.

    Args:
      job: that of the first round, without mined negatives.
      rounds: how they follow each other.
      out: the folder of all rounds.
      stop: the caller's signals.
      command: the words of the command line, to be kept in the folder.
      heartbeat: of this process, where something watches it.

    Returns:
      What the last round has come to.

    Raises:
      UsageError: the folder belongs to another job, or the rules of mining do not suit the corpus.
      DataError: the data or the model to start from is missing or malformed.
      Preempted, Interrupted, DivergedError, MachineError: as `jaxscale.train.loop.train`.
    """
    with contextlib.ExitStack() as stack:
        with stop.hold(_nothing_lost):
            loop = _begun(job, rounds, Path(out).absolute(), command, stack)
        return loop.run(stop, heartbeat)


def _begun(
    job: DualTowerJob, rounds: Rounds, out: Path, command: Sequence[str], stack: contextlib.ExitStack
) -> "_RoundLoop":
    """The loop in its folder, which is written only once the job, its data and the model to start from are checked."""
    if jax.process_count() > 1:
        raise UsageError(f"num_processes={jax.process_count()} must be 1 for training in rounds")
    first, source = job.objective(), read_source(Path(job.data.folder), job.data.split, job.data.dev_split)
    rounds.mining.check_corpus(len(source.docs))
    rounds.mining.check_scores(job.towers.score)
    folder = stack.enter_context(RunFolder(out))
    identity = {"type": "Rounds", "rounds": typed_json.encode(rounds), "round": first.identity}
    described, _ = folder.claim(identity, job.operation, None, command)
    folder.write_job(described)
    if not read_events(out):
        folder.events.write("started", identity_sha256=described.identity_sha256)
    if rounds.mine_first and first.starting_params is not None and not commit.is_committed(_start_of(out)):
        first.export(first.starting_params, _start_of(out))
    return _RoundLoop(job, rounds, source, folder)


class _RoundLoop:
    """The rounds of one folder; what is done already is not done again."""

    def __init__(self, job: DualTowerJob, rounds: Rounds, source: PairSource, folder: RunFolder) -> None:
        self._job, self._rounds, self._source, self._folder = job, rounds, source, folder

    def run(self, stop: StopSignals, heartbeat: Heartbeat | None) -> TrainResult:
        """All rounds, and the model in its place; see `train_rounds`."""
        folder, num_rounds = self._folder, self._rounds.num_rounds
        done = folder.finished(self._job.training.num_steps)
        if done is not None:
            print(f"{folder.path}: all {num_rounds} rounds are finished; nothing to do", file=sys.stderr)
            return _result(done, folder.model, trained=False)
        results = [self._round(number, stop, heartbeat) for number in range(num_rounds)]
        with stop.hold(_nothing_lost):
            last = run_of(folder.path, num_rounds - 1) / "model"
            save_retriever(folder.model, read_retriever(last), replace=True)
            failpoint("rounds.model_saved")
            folder.events.write("finished", **_ending(results[-1]))
        return dataclasses.replace(results[-1], model=str(folder.model))

    def _round(self, number: int, stop: StopSignals, heartbeat: Heartbeat | None) -> TrainResult:
        """Mines for a round, where it has mined negatives, and trains it."""
        run = run_of(self._folder.path, number)
        done = self._event("trained", number)
        if done is not None and commit.is_committed(run / "model"):
            return _result(done, run / "model", trained=True)
        with stop.hold(_nothing_lost):
            if self._rounds.mines(number):
                self._mine(number)
            job = job_of_round(self._job, self._rounds, number, self._folder.path)
            objective = job.objective()
        result = train(objective, job.training, job.operation, run, stop=stop, heartbeat=heartbeat)
        failpoint("rounds.trained")
        self._folder.events.write("trained", round=number, **_ending(result))
        return result

    def _mine(self, number: int) -> None:
        """Makes the negatives of a round, or checks that those that are there are its own."""
        out, job = self._folder.path, self._job
        negatives, vectors = negatives_of(out, number), out / f"vectors-{number}"
        miner = Miner(
            towers=read_retriever(run_of(out, number - 1) / "model" if number else _start_of(out)),
            mining=self._rounds.mining,
            split=job.data.split,
            compute_dtype=job.training.compute_dtype,
            vectors=None,
        )
        if not commit.is_committed(negatives):
            mesh = mesh_from_text(job.operation.mesh)
            corpus = BeirFolder.open(job.data.folder, check="full")
            embedded = embed_corpus(
                miner.towers,
                corpus,
                vectors,
                mesh,
                shard_size=_SHARD_SIZE,
                compute_dtype=miner.compute_dtype,
                on_shard=print_progress,
            )
            failpoint("rounds.embedded")
            dataclasses.replace(miner, vectors=embedded).mine_to(negatives, self._source, mesh)
            failpoint("rounds.mined")
        elif read_description(negatives) != miner.description(self._source):
            raise UsageError(
                f"{negatives} was mined by another model or from other data than those of this folder; remove it, to "
                "have it mined again"
            )
        if self._event("mined", number) is None:
            manifest = commit.open_committed(negatives).manifest
            self._folder.events.write("mined", round=number, negatives=manifest.identity, counts=manifest.counts)
        if commit.is_committed(vectors):
            commit.remove(vectors)

    def _event(self, name: str, number: int) -> dict[str, Any] | None:
        """The last event of a name and a round."""
        found = [e for e in read_events(self._folder.path) if e["event"] == name and e["round"] == number]
        return found[-1] if found else None


def _start_of(out: Path) -> Path:
    """The towers before any training, where they mine first."""
    return out / "start"


def _ending(result: TrainResult) -> dict[str, Any]:
    return {"step": result.step, "state_hash": result.state_hash, "best": result.best}


def _result(event: dict[str, Any], model: Path, *, trained: bool) -> TrainResult:
    best = None if event["best"] is None else typed_json.decode(Best, event["best"], f"event {event['event']}")
    return TrainResult(step=event["step"], state_hash=event["state_hash"], best=best, model=str(model), trained=trained)


def _nothing_lost() -> str:
    return "what was finished is kept"
