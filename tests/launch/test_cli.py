"""The command line: help at once, one message and one exit code for everything that can go wrong."""

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import launch.cli
from jaxscale import errors
from launch.cli import RECIPE_VERBS, VERBS, GlobalFlags, did_you_mean, main

ROOT = Path(launch.cli.__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Does nothing much.

    Example: jaxscale fake --number 3
    """

    number: int = 1
    """A number."""

    def run(self):
        print(f"the number is {self.number}")
        return {"number": self.number}


@pytest.fixture
def fake(monkeypatch):
    """A verb `fake`; a test may give it another command."""
    module = types.ModuleType("launch.verbs.fake")
    module.Command = Command
    monkeypatch.setitem(VERBS, "fake", ("fake", "does nothing much"))
    monkeypatch.setitem(sys.modules, "launch.verbs.fake", module)
    # What a run of the command line leaves in this process's environment goes away with the test.
    for name in ("OMP_WAIT_POLICY", "TF_CPP_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "2"))
    return module


def fails_with(fake, monkeypatch, error):
    def run(self):
        raise error

    monkeypatch.setattr(fake, "Command", dataclasses.dataclass(frozen=True)(type("Command", (), {"run": run})))


def in_a_process(*words, cwd=ROOT, code=None):
    """Runs the command line in a fresh interpreter; `code` runs after it with its exit code in `done`."""
    program = f"import sys; from launch.cli import main; done = main({list(words)!r}); {code or 'sys.exit(done)'}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize(("verb", "level"), [("train", "1"), ("search", "2")])
def test_training_hears_what_the_compiler_warns_of(verb, level, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    launch.cli._prepare_process(verb, GlobalFlags(json_file=None, num_devices=None, debug=False))
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == level
    assert ("TPU_STDERR_LOG_LEVEL" in os.environ) is (verb == "train")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], ["--debug", "--help"]])
def test_help_lists_every_verb_and_the_exit_codes(words, capsys):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb}" in shown for verb in VERBS)
    assert "42 preempted" in shown


def test_help_imports_nothing_heavy():
    heavy = "[m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib', 'numpy', 'tyro', 'flax', 'rich', 'faiss')]"
    done = in_a_process("--help", code=f"print('HEAVY', {heavy})")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_an_unknown_verb_imports_nothing_heavy_either():
    done = in_a_process("trian", code="print(done, 'jax' in sys.modules, 'tyro' in sys.modules)")
    assert done.stdout.strip() == "2 False False"


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
        (["corpus"], "unknown verb 'corpus'"),
        (["index", "biuld"], "unknown verb 'index biuld'; did you mean 'index build'?"),
        (["xyzzy"], "unknown verb 'xyzzy'; `jaxscale --help`"),
    ],
)
def test_an_unknown_verb_is_a_usage_error_with_the_nearest_one(words, message, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_verb_answers_on_stdout(fake, capsys):
    assert main(["fake", "--number", "3"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("the number is 3\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["fake", "--json", "{}"],
        ["fake", "--json={}"],
        ["--json", "{}", "fake"],
        ["fake", "--json", "{}", "--number", "1"],
    ],
)
def test_the_report_is_written_as_json_into_a_folder_made_for_it(fake, words, tmp_path):
    out = tmp_path / "new" / "report.json"
    assert main([word.format(out) for word in words]) == 0
    assert json.loads(out.read_text()) == {"number": 1}


def test_numbers_of_numpy_are_numbers_in_the_report(fake, monkeypatch, tmp_path):
    def run(self):
        return {"score": np.float32(0.5), "count": np.int64(3), "path": Path("a/b")}

    monkeypatch.setattr(fake, "Command", dataclasses.dataclass(frozen=True)(type("Command", (), {"run": run})))
    out = tmp_path / "report.json"
    assert main(["fake", "--json", str(out)]) == 0
    assert json.loads(out.read_text()) == {"score": 0.5, "count": 3, "path": "a/b"}


def test_too_little_memory_is_the_machine_s_fault(fake, monkeypatch, capsys):
    fails_with(fake, monkeypatch, MemoryError("std::bad_alloc"))
    assert main(["fake"]) == 4
    assert "not enough memory: std::bad_alloc" in capsys.readouterr().err


def test_a_number_that_json_does_not_know_is_null_in_the_report(fake, monkeypatch, tmp_path):
    def run(self):
        return {"loss": math.nan, "steps": [{"loss": np.float32(np.inf)}, (1.5, True, "NaN")]}

    monkeypatch.setattr(fake, "Command", dataclasses.dataclass(frozen=True)(type("Command", (), {"run": run})))
    out = tmp_path / "report.json"
    assert main(["fake", "--json", str(out)]) == 0
    assert json.loads(out.read_text()) == {"loss": None, "steps": [{"loss": None}, [1.5, True, "NaN"]]}


def test_a_report_that_can_not_be_written_is_told_before_the_work(fake, tmp_path, capsys):
    assert main(["fake", "--json", str(tmp_path)]) == 4
    captured = capsys.readouterr()
    assert "--json=" in captured.err
    assert captured.out == ""


def test_a_failed_verb_reports_its_failure(fake, monkeypatch, tmp_path):
    out = tmp_path / "report.json"
    fails_with(fake, monkeypatch, errors.VerificationError("shard 3 is damaged", report={"files": ["shard-3"]}))
    assert main(["fake", "--json", str(out)]) == 5
    assert json.loads(out.read_text()) == {"error": "shard 3 is damaged", "exit_code": 5, "files": ["shard-3"]}


def test_a_killed_verb_leaves_no_report_of_an_earlier_one(fake, monkeypatch, tmp_path):
    out = tmp_path / "report.json"
    out.write_text('{"number": 1}')
    fails_with(fake, monkeypatch, KeyboardInterrupt())
    assert main(["fake", "--json", str(out)]) == 130
    assert json.loads(out.read_text()) == {"error": "fake has not ended"}


@pytest.mark.parametrize("devices", ["0", "-1", "two", "1.5", ""])
def test_devices_must_be_a_positive_whole_number(fake, devices, capsys):
    assert main(["fake", f"--devices={devices}"]) == 2
    assert "--devices" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--devices", "--json"])
def test_a_global_flag_without_its_value_is_a_usage_error(fake, flag, capsys):
    assert main(["fake", flag]) == 2
    assert f"{flag} needs a value" in capsys.readouterr().err


_COUNT_DEVICES = """
import dataclasses, sys
from launch import cli

@dataclasses.dataclass(frozen=True)
class Command:
    "Counts devices."
    def run(self):
        import jax
        print(len(jax.devices()), jax.default_backend())

sys.modules["launch.verbs.fake"] = sys.modules["__main__"]
cli.VERBS["fake"] = ("fake", "counts devices")
sys.exit(cli.main(["fake", "--devices", "3"]))
"""


def test_devices_are_emulated_before_jax_is_imported():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _COUNT_DEVICES], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "3 cpu\n"), done.stderr


def test_global_flags_are_taken_off_wherever_they_stand():
    words = ["a", "--debug", "b", "--devices", "2", "--json=x.json", "--other"]
    flags, rest = launch.cli._split_global_flags(words)
    assert flags == GlobalFlags(json_file=Path("x.json"), num_devices=2, debug=True)
    assert rest == ["a", "b", "--other"]


EXIT_CODES = {
    errors.UsageError: 2,
    errors.DataError: 3,
    errors.MachineError: 4,
    errors.VerificationError: 5,
    errors.DivergedError: 6,
    errors.DoesNotFitError: 7,
    errors.Preempted: 42,
    errors.Interrupted: 130,
}


def test_every_error_has_an_exit_code_of_the_table():
    # That of `launch local` is the code of the processes that it started.
    ours = {kind for kind in errors.JaxscaleError.__subclasses__() if kind.__module__ == errors.__name__}
    assert ours == set(EXIT_CODES)


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_an_error_is_one_message_and_its_exit_code(fake, monkeypatch, capsys, kind):
    fails_with(fake, monkeypatch, kind("what was wrong and what to do"))
    assert main(["fake"]) == EXIT_CODES[kind]
    assert capsys.readouterr().err == "jaxscale: what was wrong and what to do\n"


def test_debug_shows_where_an_error_came_from(fake, monkeypatch, capsys):
    fails_with(fake, monkeypatch, errors.DataError("bad line"))
    assert main(["fake", "--debug"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("jaxscale: bad line\n")


def test_any_other_exception_is_a_bug_without_a_traceback(fake, monkeypatch, capsys):
    fails_with(fake, monkeypatch, ZeroDivisionError("by zero"))
    assert main(["fake"]) == 1
    shown = capsys.readouterr().err
    assert "a bug of ours: ZeroDivisionError: by zero" in shown
    assert "Traceback" not in shown
    assert main(["fake", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, 4), (errno.EDQUOT, 4), (errno.EROFS, 4), (errno.EIO, 4), (errno.EBADF, 1)]
)
def test_a_full_disk_is_no_bug(fake, monkeypatch, capsys, number, code):
    fails_with(fake, monkeypatch, OSError(number, os.strerror(number), "shard-3"))
    assert main(["fake"]) == code
    assert "shard-3" in capsys.readouterr().err


def test_control_c_is_130(fake, monkeypatch, capsys):
    fails_with(fake, monkeypatch, KeyboardInterrupt())
    assert main(["fake"]) == 130
    assert capsys.readouterr().err == "jaxscale: interrupted\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_told_by_the_exit_code_alone(unbuffered):
    code = "import sys; from launch.cli import main; sys.exit(main(['--help']))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, env=environment)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_unknown_flag_is_2_with_the_nearest_one(fake, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fake", "--numbr", "3"])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "--numbr" in captured.out + captured.err
    assert "--number" in captured.out + captured.err


def test_a_mistyped_value_is_2(fake, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fake", "--number", "three"])
    assert stopped.value.code == 2
    assert "--number" in "".join(capsys.readouterr())


def test_a_verb_has_help_with_an_example(fake, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fake", "--help"])
    assert stopped.value.code == 0
    assert "Example: jaxscale fake --number 3" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_command_with_an_example(verb):
    module = __import__(f"launch.verbs.{VERBS[verb][0]}", fromlist=["Command"])
    assert f"Example: jaxscale {verb}" in module.Command.__doc__
    assert dataclasses.is_dataclass(module.Command)
    assert module.Command.__dataclass_params__.frozen
    assert (verb in RECIPE_VERBS) == hasattr(module.Command, "for_recipe")


def test_an_unknown_recipe_is_a_usage_error_with_the_nearest_one(capsys):
    assert main(["train", "two_tower_smal", "--out", "run"]) == 2
    assert "unknown recipe 'two_tower_smal'; did you mean 'two_tower_small'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(RECIPE_VERBS))
def test_a_recipe_verb_without_a_recipe_says_so(verb, capsys):
    assert main([verb]) == 2
    assert f"{verb} needs a recipe as its first word" in capsys.readouterr().err


def test_recipes_lists_those_of_the_configs(capsys):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert "two_tower_small  " in said
    assert "two_tower_llama2_7b_lora  " in said


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "mine.py:recipe", "there is no file"),
        ("def other(): pass", "mine.py:recipe", "has no function 'recipe'; it has other"),
        ("def recipe(:", "mine.py:recipe", "does not run: SyntaxError"),
        ("import not_installed_anywhere", "mine.py:recipe", "does not run: ModuleNotFoundError"),
        ("recipe = 3", "mine.py:recipe", "has no function 'recipe'; it has none"),
        ("", "mine.py", "has no function ''"),
    ],
)
def test_a_recipe_file_that_is_wrong_is_a_usage_error(tmp_path, monkeypatch, capsys, content, name, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("mine.py").write_text(content)
    assert main(["train", name, "--out", "run"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_recipe_of_ones_own_needs_no_fork(tmp_path):
    from launch import recipes

    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\nclass Job:\n    steps: int = 3\n"
        "def recipe():\n    return Job()\n"
    )
    assert recipes.load(f"{path}:recipe").steps == 3


@pytest.mark.parametrize("name", ["configs", "retrieval"])
def test_a_package_of_the_same_name_that_is_not_ours_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    path = [str(tmp_path), str(ROOT)]
    code = f"import sys; sys.path[:0] = {path!r}; from launch.cli import main; sys.exit(main(['eval']))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"the package {name!r} found first on the path is not jaxscale's" in done.stderr
    assert str(tmp_path) in done.stderr


def test_did_you_mean_is_silent_where_nothing_is_near():
    assert did_you_mean("train", ["train"]) == "; did you mean 'train'?"
    assert did_you_mean("xyzzy", ["train", "embed"]) == ""
