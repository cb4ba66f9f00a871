"""Every command of the README is parsed by the command that it calls, and its Python is run."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from inference.predict import PredictArgs
from ivideogpt.evaluation.__main__ import EvaluationArgs
from ivideogpt.flags import parse
from ivideogpt.training.args import GptArgs, TokenizerArgs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BUNDLED_TRANSFORMER = ROOT / "pretrained_models/ivideogpt-metaworld-64-tiny/transformer/model.safetensors"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def parse_recorder(argv: list[str]) -> object:
    return runpy.run_path(str(ROOT / "datasets" / "record_metaworld.py"))["parse_args"](argv)


PARSERS = {
    "inference/predict.py": lambda argv: parse(PredictArgs, argv),
    "datasets/record_metaworld.py": parse_recorder,
    "-m ivideogpt.evaluation": lambda argv: parse(EvaluationArgs, argv),
    "train_tokenizer.py": lambda argv: parse(TokenizerArgs, argv),
    "train_gpt.py": lambda argv: parse(GptArgs, argv),
}


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command)[:60])
def test_command(command, monkeypatch):
    """A renamed flag or a moved script makes the first thing that a newcomer tries fail."""
    monkeypatch.chdir(ROOT)
    program, *rest = command
    if program == "bash":
        subprocess.run(["bash", "-n", *rest], check=True)
    else:
        assert program in ("python", "accelerate")
        script, *argv = rest[1:] if program == "accelerate" else rest
        if script == "-m":
            script, argv = f"-m {argv[0]}", argv[1:]
        PARSERS[script](argv)


@pytest.mark.skipif(not BUNDLED_TRANSFORMER.exists(), reason=f"{BUNDLED_TRANSFORMER} is not there yet")
def test_python():
    """The example in the README is what people copy."""
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_file_map_and_links():
    """The map names what is there."""
    file_map = README.partition("## Where things are")[2]
    paths = re.findall(r"^([\w/.-]+)  ", file_map, re.MULTILINE) + re.findall(r"\]\(([\w/.-]+)\)", README)
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_named_files_exist():
    """Commands in running text are commands, too."""
    named = re.findall(r"`bash (\S+)`", README) + re.findall(r"inference/samples/[\w.-]+", README)
    assert not [path for path in named if not (ROOT / path).is_file()]
