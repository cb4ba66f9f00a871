"""scripts/environment.sh with interpreters and packages that only pretend, in a repository of two empty files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "environment.sh"

# Says that it is some version. Asked for an environment it makes one whose python has a pip that installs nothing.
INTERPRETER = """#!/usr/bin/env bash
case "$*" in
-c*) exec {python} -c "import sys; sys.version_info = tuple(map(int, '{version}.0'.split('.'))); $2" ;;
*--version) echo "Python {version}" ;;
"-m venv "*)
    echo "$*"
    folder="${{@: -1}}"
    if [ "$3" = --clear ]; then rm -r "$folder"; fi
    mkdir -p "$folder/bin" && touch "$folder/pyvenv.cfg"
    printf '#!/usr/bin/env bash\\n' >"$folder/bin/python" && chmod +x "$folder/bin/python" ;;
esac
"""


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        (folder / name).touch()
    return folder


@pytest.fixture
def source(repository, tmp_path):
    """Sources the script where these interpreters and other commands are all there is."""

    def source(
        interpreters: dict[str, str], then: str = "true", commands: dict[str, str] | None = None, **environment: str
    ) -> subprocess.CompletedProcess:
        path = tmp_path / "path"
        path.mkdir(exist_ok=True)
        for tool in ("bash", "env", "cat", "cksum", "dirname", "mkdir", "touch", "chmod", "rm"):
            (path / tool).unlink(missing_ok=True)
            (path / tool).symlink_to(shutil.which(tool))
        for name, version in interpreters.items():
            (path / name).write_text(INTERPRETER.format(python=sys.executable, version=version))
            (path / name).chmod(0o755)
        for name, script in (commands or {}).items():
            (path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
            (path / name).chmod(0o755)
        script = f"source {repository}/scripts/environment.sh; {then}"
        command = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(command, env={"PATH": str(path)} | environment, capture_output=True, text=True)

    return source


@pytest.mark.parametrize(
    ("interpreters", "chosen"),
    [
        ({"python3": "3.14", "python3.11": "3.11", "python3.13": "3.13"}, "3.11"),
        ({"python3": "3.12"}, "3.12"),
        ({"python3": "3.10", "python3.13": "3.13"}, "3.13"),
    ],
)
def test_an_interpreter_that_everything_installs_on(source, interpreters, chosen):
    """MuJoCo has no wheels for 3.14: it would be built from source, after minutes, and fail."""
    done = source(interpreters)
    assert done.returncode == 0, done.stderr
    assert f"with Python {chosen}" in done.stdout


@pytest.mark.parametrize("interpreters", [{"python3": "3.14"}, {"python3": "3.10"}, {}])
def test_no_such_interpreter(source, interpreters):
    done = source(interpreters)
    assert done.returncode != 0
    assert done.stderr.startswith("error: Python 3.11, 3.12 or 3.13 is needed; name one with PYTHON=")


def test_the_interpreter_that_was_named_is_named(source):
    done = source({"python3": "3.12", "other": "3.14"}, PYTHON="other")
    assert done.returncode != 0
    assert "other is none of them" in done.stderr


def test_a_half_made_environment_is_made_again(source, repository):
    """Without pip, which is put in last, every later run would fail until somebody deletes the folder by hand."""
    venv = repository / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (venv / "bin" / "python").chmod(0o755)
    first, second = source({"python3": "3.12"}), source({"python3": "3.12"})
    assert first.returncode == second.returncode == 0, first.stderr
    assert "-m venv --clear" in first.stdout
    assert "-m venv" not in second.stdout


def test_a_folder_that_is_no_environment_keeps_its_files(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    done = source({"python3": "3.12"}, VENV=str(tmp_path / "mine"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "thesis.tex").exists()


APT = {"apt-get": 'echo "apt-get $*" >&2', "id": "echo 0"}


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (APT, ["apt-get update -qq", "apt-get install -y -qq --no-install-recommends chromium"]),
        (APT | {"google-chrome": ""}, []),
        (APT | {"id": "echo 1000", "sudo": "exit 1"}, ["note: nothing for tests in a browser (chromium): tests of"]),
        (APT | {"apt-get": "exit 100"}, ["note: nothing for tests in a browser (chromium): tests of"]),
        ({"id": "echo 0"}, ["note: nothing for tests in a browser (chromium): tests of"]),
    ],
)
def test_a_browser_is_installed_where_it_is_missing_and_may_be(source, commands, said):
    """Tests of pages were skipped in silence; a machine that lets nobody install must still run the others."""
    done = source({"python3": "3.12"}, "install_browser", commands)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(said)
    assert all(map(str.startswith, lines, said)), lines
