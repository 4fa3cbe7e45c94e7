"""The README's commands, run one after another as a newcomer would, and its numbers of options kept honest."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
# A block of commands that the test runs starts with ```sh; one that needs minutes or another machine with ```console.
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    blocks = BLOCK.findall(README.read_text())
    joined = "".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def environment() -> dict[str, str]:
    """The environment of this process, our console script first on the path, without its emulated devices."""
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}


def test_readme_has_commands() -> None:
    assert len(shell_lines()) >= 8


@pytest.mark.timeout(420)
def test_readme_commands_run_in_order(scratch: Path) -> None:
    for line in shell_lines():
        done = subprocess.run(
            ["bash", "-c", line], cwd=scratch, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"`{line}` ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"

    script = "\n".join(PYTHON_BLOCK.findall(README.read_text()))
    assert script, "the README shows no Python"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=scratch, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"the README's Python ended with {done.returncode}:\n{done.stderr}"
    assert done.stdout.strip(), "the README's Python prints nothing"
