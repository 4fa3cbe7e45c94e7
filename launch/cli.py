"""The command line: finds the verb, sets up the process, turns errors into one message and an exit code.

Nothing heavy is imported before the verb is known, so that `jaxscale --help` is instant and `--devices` can still
choose the emulated devices. A verb is a module in `launch/verbs/` with a dataclass `Command`; tyro makes its flags.
"""

import dataclasses
import difflib
import errno
import importlib
import importlib.util
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxscale import host_memory
from jaxscale.errors import JaxscaleError, MachineError, UsageError
from launch.processes import end_alone, is_first_process, is_one_of_several

# verb -> (module in launch/verbs, one line of help)
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "the whole story on the documentation of the installed Python packages, then a report"),
    "recipes": ("recipes", "the recipes there are"),
    "doctor": ("doctor", "what this machine has, and what is wrong with it"),
    "corpus pydocs": ("corpus_pydocs", "a BEIR folder out of the installed Python packages' documentation"),
    "data train-tokenizer": ("data_train_tokenizer", "files of documents -> a byte-level BPE tokenizer"),
    "data stats": ("data_stats", "what is in token datasets"),
    "data tokenize": ("data_tokenize", "files of documents -> a committed token dataset"),
    "explain": ("explain", "where every array of a recipe goes on a mesh, and why"),
    "plan": ("plan", "what a recipe's step needs on TPUs, GPUs or CPUs that need not be there: predicted, compiled"),
    "plan diff": ("plan_diff", "what changed between two plans that `plan --json` or `explain --json` wrote"),
    "tune": ("tune", "the fastest mesh, remat, microbatches and precision that fit, the best of them compiled"),
    "train": ("train", "trains a recipe; the same command again resumes"),
    "scaling retrieval": ("scaling_retrieval", "towers of several sizes on several amounts of data, and their laws"),
    "distill": ("distill", "a small query tower into a large one's space; documents and index stay as they are"),
    "distill study": (
        "distill_study",
        "students of several depths: what each keeps of the teacher, and how fast it is",
    ),
    "launch local": ("launch_local", "a verb by several processes on this machine, restarted when one is lost"),
    "report": ("report", "a training run on one page: loss, throughput, where the time went, memory"),
    "replay": ("replay", "one step of a run once more, and again: the same bits as then, or which differ"),
    "generate": ("generate", "prompts -> what a trained decoder or encoder-decoder writes after them"),
    "import hf": ("import_hf", "a Hugging Face folder -> a model folder"),
    "export hf": ("export_hf", "a model folder -> a folder that transformers loads"),
    "export sentence-transformers": (
        "export_sentence_transformers",
        "a retriever -> a folder that sentence-transformers loads",
    ),
    "embed": ("embed", "a corpus -> committed vectors"),
    "mine": ("mine", "a retriever and a corpus -> committed hard negatives to train with"),
    "index build": ("index_build", "committed vectors -> a committed index with its measured recall"),
    "search": ("search", "one query or a file of them -> hits or a TREC run"),
    "rerank": ("rerank", "a run -> its first documents in the order of a cross-encoder; or mined negatives, scored"),
    "eval": ("eval", "a run and qrels -> metrics with confidence intervals"),
    "benchmark": ("benchmark", "a retriever on several BEIR folders, beside BM25 and both fused, or against another"),
    "compare": ("compare", "two runs query by query: which won, which lost, with the passages, on one page"),
    "verify": ("verify", "checks any committed directory, bit by bit"),
}

# Codes of a process that may have failed alone; with the others all processes of a job end together.
_FAILURES = range(1, 8)

# As a shell reports a program that SIGPIPE ended: the verb may not have come to its end.
_READER_LEFT = 141

# What the machine refuses wherever it happens: the disk is full, over quota, read-only or broken.
_MACHINE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})

# Verbs whose first argument names a recipe, which gives the flags their defaults.
RECIPE_VERBS = frozenset({"train", "distill", "distill study", "explain", "plan", "tune", "scaling retrieval"})

# Verbs that read what the compiler warns of; the others show its errors only.
_LISTENING_VERBS = frozenset({"train", "distill", "distill study", "scaling retrieval"})
_WARNINGS, _ERRORS = "1", "2"

# Verbs whose steps take and free the same memory again and again.
_TRAINING_VERBS = _LISTENING_VERBS | {"replay"}

# Verbs that encode many texts keep several batches in flight, one core each: faster than all cores on one batch.
_ENCODING_VERBS = frozenset({"embed", "mine", "demo", "benchmark"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalFlags:
    """The flags that every verb takes; they may stand anywhere on the line."""

    json_file: Path | None
    num_devices: int | None
    debug: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the process's exit code.

    Args:
      argv: the words after the program's name; those of this process when None.
    """
    code = _code_of(argv)
    if code in _FAILURES and argv is None and is_one_of_several():
        end_alone(code)
    return code


def _code_of(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        code = _run(words, may_restart=argv is None)
        sys.stdout.flush()
        return code
    except JaxscaleError as error:
        if debug:
            traceback.print_exc()
        print(f"jaxscale: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("jaxscale: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our answer has left; what is still in the buffer must not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_LEFT
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS:
            print(f"jaxscale: {error}; make room or choose another folder, then start again", file=sys.stderr)
            return MachineError.exit_code
        if isinstance(error, MemoryError):
            print(f"jaxscale: not enough memory: {error}; ask for less, or use a larger machine", file=sys.stderr)
            return MachineError.exit_code
        if not debug:
            print(
                f"jaxscale: a bug of ours: {type(error).__name__}: {error}\n"
                "  run the same command with --debug for the traceback, and please report it",
                file=sys.stderr,
            )
        return 1


def _run(words: list[str], *, may_restart: bool) -> int:
    flags, words = _split_global_flags(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(importlib.import_module("importlib.metadata").version("jaxscale"))
        return 0
    _check_packages_are_ours()
    verb, rest = _split_verb(words)
    if may_restart and verb in _TRAINING_VERBS and (flags.num_devices is not None or host_memory.computes_on_cpu()):
        host_memory.restart_with_huge_pages()
    _prepare_process(verb, flags)
    module = importlib.import_module(f"launch.verbs.{VERBS[verb][0]}")
    command = parse(verb, module, rest)
    if flags.json_file is not None:
        _write_json(flags.json_file, {"error": f"{verb} has not ended"})
    try:
        report = command.run()
    except JaxscaleError as error:
        if flags.json_file is not None:
            _write_json(flags.json_file, {"error": str(error), "exit_code": error.exit_code, **error.report})
        raise
    if flags.json_file is not None:
        _write_json(flags.json_file, report)
    return 0


def _write_json(path: Path, report: Any) -> None:
    """Writes a verb's report; it is tried before the verb runs, so that no long work ends without its report.

    Of several processes of one job, the first one writes it.
    """
    if not is_first_process():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_json_values(report), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise MachineError(f"--json={path} can't be written: {error}; name a file in a folder of yours") from error


def _json_values(value: Any) -> Any:
    """What JSON can hold: numpy's numbers as numbers, NaN and infinities as null, paths and the rest as text."""
    if isinstance(value, dict):
        return {key: _json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_values(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _help() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:<{width}}{text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: jaxscale VERB ... [--devices N] [--json FILE] [--debug]",
            "",
            "Sharded training and retrieval on JAX: from text to a searchable index.",
            "",
            *lines,
            "",
            "  --devices N   emulate N CPU devices        --json FILE   write what the verb reports",
            "  --debug       show tracebacks              --version     print the version",
            "",
            "`jaxscale VERB --help` tells a verb's flags and gives an example.",
            "Exit codes: 0 done, 1 a bug of ours, 2 usage, 3 bad data, 4 machine, 5 verification failed, 6 diverged,",
            "7 does not fit, 42 preempted and saved (start me again), 130 interrupted, 200 another process is lost",
            "(start all again).",
        ]
    )


def _split_verb(words: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        verb = " ".join(words[:length])
        if verb in VERBS:
            return verb, words[length:]
    asked = " ".join(words[:2]) if any(v.startswith(words[0] + " ") for v in VERBS) else words[0]
    raise UsageError(f"unknown verb {asked!r}{did_you_mean(asked, VERBS)}; `jaxscale --help` lists the verbs")


def did_you_mean(word: str, known: Any) -> str:
    """`; did you mean 'train'?` where one of `known` is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _split_global_flags(words: list[str]) -> tuple[GlobalFlags, list[str]]:
    values: dict[str, str | None] = {"--json": None, "--devices": None}
    rest, debug = [], False
    queue = iter(words)
    for word in queue:
        if word == "--":  # what follows is another command's
            rest += [word, *queue]
            break
        name, equals, value = word.partition("=")
        if name in values:
            given = value if equals else next(queue, None)
            if given is None or given == "":
                raise UsageError(f"{name} needs a value")
            values[name] = given
        elif word == "--debug":
            debug = True
        else:
            rest.append(word)
    devices = values["--devices"]
    if devices is not None and not (devices.isdigit() and int(devices) >= 1):
        raise UsageError(f"--devices={devices} must be a positive whole number of emulated CPU devices")
    json_file = Path(values["--json"]) if values["--json"] else None
    return GlobalFlags(json_file=json_file, num_devices=int(devices) if devices else None, debug=debug), rest


def _prepare_process(verb: str, flags: GlobalFlags) -> None:
    """Sets what must be set before jax, faiss and their threads exist."""
    # Spinning OpenMP threads slow every other thread of the process down 3 to 6 times.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _WARNINGS if verb in _LISTENING_VERBS else _ERRORS)
    if verb in _LISTENING_VERBS:
        os.environ.setdefault("TPU_STDERR_LOG_LEVEL", _WARNINGS)
    if verb in _ENCODING_VERBS and "jax" not in sys.modules:
        flags_before = os.environ.get("XLA_FLAGS", "")
        if "xla_cpu_multi_thread_eigen" not in flags_before:
            os.environ["XLA_FLAGS"] = f"{flags_before} --xla_cpu_multi_thread_eigen=false".strip()
    if flags.num_devices is not None:
        importlib.import_module("jaxscale.emulation").emulate_cpu_devices(flags.num_devices)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def parse(verb: str, module: Any, words: list[str]) -> Any:
    """The command of a verb, as its words say; one that keeps its words is given them.

    Args:
      verb: as in `VERBS`.
      module: of the verb.
      words: after the verb, without the global flags.
    """
    import tyro

    given = tuple(words)
    words, behind = _split_behind(words)
    default = None
    if verb in RECIPE_VERBS and words and not words[0].startswith("-"):
        recipes = importlib.import_module("launch.recipes")
        default = module.Command.for_recipe(words[0], recipes.load(words[0]))
        words = words[1:]
    elif verb in RECIPE_VERBS and not {"-h", "--help"} & set(words):
        raise UsageError(f"{verb} needs a recipe as its first word; `jaxscale recipes` lists them")
    options = {} if default is None else {"default": default, "config": (tyro.conf.AvoidSubcommands,)}
    command = tyro.cli(module.Command, prog=f"jaxscale {verb}", args=words, **options)
    if behind is not None and not hasattr(command, "behind"):
        raise UsageError(f"{verb} takes nothing after --")
    kept = {"words": given, "behind": tuple(behind or ())}
    return dataclasses.replace(command, **{name: value for name, value in kept.items() if hasattr(command, name)})


def _split_behind(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The words before a `--`, and those after it; None where there is none."""
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _check_packages_are_ours() -> None:
    """Refuses a `configs`, `launch` or `retrieval` that is another project's package of the same name."""
    home = Path(__file__).resolve().parent.parent
    for name in ("jaxscale", "retrieval", "configs"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if origin != home:
            raise UsageError(
                f"the package {name!r} found first on the path is not jaxscale's: got {origin}, expected {home}; "
                "run from another folder or rename yours"
            )


if __name__ == "__main__":
    sys.exit(main())
