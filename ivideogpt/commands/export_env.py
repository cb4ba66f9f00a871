"""``python -m ivideogpt.envs export``: its flags, and the folder that it writes. Cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError, require
from ivideogpt.flags import REQUIRED, option, parse

USAGE = "python -m ivideogpt.envs export"


@dataclass(frozen=True, kw_only=True)
class ExportEnvArgs:
    """Write an environment as a folder: model, contexts, env.py with make_env, README.md, requirements.txt."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a world model that takes actions")
    dataset_path: str = option(
        REQUIRED, "episodes that contexts are cut from: a folder of .npz files or of such folders, or lerobot:<folder>"
    )
    oxe_data_mixes_type: str = option("folder:*", "datasets: a named mix, folder:<name>[,<name>...] or folder:*")
    output: str = option(REQUIRED, "folder to write, a new one or an empty one")
    functions: str | None = option(
        None, "Python file with reward(frames) or success(frames) or both, in place of the model's heads; it is copied"
    )
    num_contexts: int = option(64, "starts of episodes to keep", minimum=1)
    horizon: int | None = option(None, "steps of an episode (default: the frames the model was trained on)", minimum=1)
    task: str = option("", "description of the task, for language policies and the README")
    seed: int = option(0, "random seed of the choice of contexts", minimum=0)

    def validate(self) -> None:
        folder = Path(self.output)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--output {self.output} exists: name a new folder, or an empty one")


def main(argv: Sequence[str]) -> None:
    """Write the folder; the first word is the command's name, of which there is one."""
    if argv[:1] != ["export"]:
        if argv[:1] in (["-h"], ["--help"]):
            print(f"usage: {USAGE} ...\n\n{USAGE} --help lists its flags")
            return
        raise UserError(f"unknown command {' '.join(argv[:1])!r}; expected {USAGE} ...")
    args = parse(ExportEnvArgs, argv[1:])
    require("gymnasium", extra="envs")
    from ivideogpt.envs import RecordedContexts, WorldModelVectorEnv
    from ivideogpt.envs.hub import read_functions, write_folder
    from ivideogpt.envs.registration import load_model

    functions = None if args.functions is None else Path(args.functions)
    given: dict[str, Any] = {} if functions is None else dict(read_functions(functions))
    contexts = RecordedContexts(args.dataset_path, args.oxe_data_mixes_type)
    model = load_model(args.pretrained_model_name_or_path, "cpu", "float32")
    env = WorldModelVectorEnv(model, contexts, horizon=args.horizon, task=args.task, **given)
    write_folder(Path(args.output), env, contexts, args.num_contexts, args.seed, functions)
    print(f"environment: {args.output}")
