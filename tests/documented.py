"""Commands as documents write them, and the parsers that they would meet."""

import re
import shlex
import subprocess
from pathlib import Path

from examples.train_in_dream import DreamArgs
from inference.plan import PlanArgs
from inference.play import PlayArgs
from inference.predict import PredictArgs
from ivideogpt.commands.evaluate import EvaluationArgs, TokenizerEvaluationArgs, parse_compared
from ivideogpt.commands.evaluate_policies import PolicyArgs
from ivideogpt.commands.export_env import ExportEnvArgs
from ivideogpt.commands.preview import PreviewArgs
from ivideogpt.commands.serve_env import ServeEnvArgs
from ivideogpt.commands.train_robot import RobotArgs
from ivideogpt.data.inspect.command import InspectArgs
from ivideogpt.data.inspect.validate import ValidateArgs
from ivideogpt.flags import parse
from ivideogpt.training.common.args import GptArgs, TokenizerArgs
from ivideogpt.training.export import ExportArgs
from ivideogpt.training.transformer.tokenize_command import TokenizeArgs
from mbrl.tools import compare_runs, export_world_model
from tests.datasets.scripts import load_script
from tests.mbrl.runs import parse_drq, parse_mbpo

ROOT = Path(__file__).parents[1]
MODULES = {
    ("ivideogpt.data", "inspect"): InspectArgs,
    ("ivideogpt.data", "preview"): PreviewArgs,
    ("ivideogpt.data", "validate"): ValidateArgs,
    ("ivideogpt.data", "tokenize"): TokenizeArgs,
    ("ivideogpt.envs", "export"): ExportEnvArgs,
    ("ivideogpt.envs", "serve"): ServeEnvArgs,
    ("ivideogpt.evaluation", "tokenizer"): TokenizerEvaluationArgs,
    ("ivideogpt.evaluation", "policies"): PolicyArgs,
    ("ivideogpt.evaluation",): EvaluationArgs,
    ("ivideogpt.training.export",): ExportArgs,
}
SCRIPTS = {
    "train_tokenizer.py": TokenizerArgs,
    "train_gpt.py": GptArgs,
    "train_robot.py": RobotArgs,
    "examples/train_in_dream.py": DreamArgs,
    "inference/plan.py": PlanArgs,
    "inference/play.py": PlayArgs,
    "inference/predict.py": PredictArgs,
}
MBRL = {
    "mbrl/tools/compare_runs.py": compare_runs.parse_arguments,
    "mbrl/tools/export_world_model.py": export_world_model.parse_arguments,
    "mbrl/train_metaworld_drq.py": parse_drq,
    "mbrl/train_metaworld_mbpo.py": parse_mbpo,
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Those in blocks and those in tables, without the variables and the processors that they are given."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"\| `(python [^`]+)` \|", text)
    return [words for line in lines if (words := _without_surroundings(shlex.split(line, comments=True)))]


def _without_surroundings(words: list[str]) -> list[str]:
    if words and "=$(" in words[0]:  # what a variable is set to is a command of the shell's own
        return []
    while words and "=" in words[0]:
        words = words[1:]
    return words[3:] if words[:2] == ["taskset", "-c"] else words


def check(command: list[str]) -> None:
    """As the command would read its arguments, from the repository's root."""
    program, *rest = command
    if program == "bash":
        subprocess.run(["bash", "-n", rest[0]], check=True)
        return
    if program == "accelerate":
        _, *rest = rest
        if rest[0] == "--config_file":
            assert Path(rest[1]).is_file()
            rest = rest[2:]
    else:
        assert program == "python"
    if rest[:2] == ["--num_processes", "4"]:
        rest = rest[2:]
    if rest[:3] == ["-m", "ivideogpt.evaluation", "compare"]:
        parse_compared(rest[3:])
    elif rest[0] == "-m":
        names = next(names for names in MODULES if tuple(rest[1 : 1 + len(names)]) == names)
        parse(MODULES[names], rest[1 + len(names) :])
    elif rest[0] in SCRIPTS:
        parse(SCRIPTS[rest[0]], rest[1:])
    elif rest[0] in MBRL:
        MBRL[rest[0]](rest[1:])
    else:
        script = load_script(Path(rest[0]).stem)
        (kind,) = (
            value
            for name, value in vars(script).items()
            if name.endswith("Args") and value.__module__ == script.__name__
        )
        parse(kind, rest[1:])
