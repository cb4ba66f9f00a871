"""``python -m ivideogpt.envs export``: its flags, and the folder that it writes. Cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivideogpt.errors import UserError, require
from ivideogpt.files import check_folder_can_be_written
from ivideogpt.flags import ACTION_SPACE_HELP, REQUIRED, option, parse

if TYPE_CHECKING:
    from ivideogpt.envs import RecordedContexts, WorldModelVectorEnv


@dataclass(frozen=True, kw_only=True)
class EnvFlags:
    """Flags of all commands that make an environment."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a world model that takes actions")
    dataset_path: str = option(
        REQUIRED,
        "episodes that contexts are cut from: a folder of .npz files or of such folders, lerobot:<folder>, lance:<uri>",
    )
    oxe_data_mixes_type: str = option("folder:*", "datasets: a named mix, folder:<name>[,<name>...] or folder:*")
    functions: str | None = option(
        None, "Python file with reward(frames) or success(frames) or both, in place of the model's heads"
    )
    action_space: str | None = option(None, ACTION_SPACE_HELP)
    horizon: int | None = option(None, "steps of an episode (default: the frames the model was trained on)", minimum=1)
    task: str = option("", "description of the task, for language policies")

    def contexts(self) -> RecordedContexts:
        from ivideogpt.envs import RecordedContexts

        return RecordedContexts(self.dataset_path, self.oxe_data_mixes_type)

    def make_env(self, num_envs: int, device: str, dtype: str, **settings: Any) -> WorldModelVectorEnv:
        """Load the model and make the environment; ``settings`` are further ones of it."""
        require("gymnasium", extra="envs")
        from ivideogpt.envs.hub import read_functions
        from ivideogpt.envs.registration import make_vector_env

        given: dict[str, Any] = {} if self.functions is None else dict(read_functions(Path(self.functions)))
        settings |= {"horizon": self.horizon, "task": self.task, "device": device, "dtype": dtype, **given}
        settings |= {"action_space": self.action_space}
        return make_vector_env(self.pretrained_model_name_or_path, self.contexts(), num_envs, **settings)


@dataclass(frozen=True, kw_only=True)
class ExportEnvArgs(EnvFlags):
    """Write an environment as a folder: model, contexts, functions, env.py with make_env, README.md, requirements."""

    output: str = option(REQUIRED, "folder to write, a new one or an empty one")
    num_contexts: int = option(64, "starts of episodes to keep", minimum=1)
    seed: int = option(0, "random seed of the choice of contexts", minimum=0)

    def validate(self) -> None:
        folder = Path(self.output)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--output {self.output} exists: name a new folder, or an empty one")
        check_folder_can_be_written(folder, "--output")


def main(argv: Sequence[str]) -> None:
    args = parse(ExportEnvArgs, argv)
    env = args.make_env(1, "cpu", "float32")
    from ivideogpt.envs.hub import write_folder

    functions = None if args.functions is None else Path(args.functions)
    write_folder(Path(args.output), env, args.contexts(), args.num_contexts, args.seed, functions)
    print(f"environment: {args.output}")
