"""Put together what ``inference/play.py`` serves: the model, and where games may begin."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from inference.predict import BUNDLED_SAMPLES
from ivideogpt.data.dataset_mixes import METAWORLD_TASKS
from ivideogpt.devices import choose_device
from ivideogpt.errors import UserError
from ivideogpt.paths import BUNDLED_MODEL
from ivideogpt.play.autopilots import AUTOPILOTS, policy_on_frames
from ivideogpt.play.server import PlayServer
from ivideogpt.play.starts import find_starts
from ivideogpt.precision import precision
from ivideogpt.web import serve
from ivideogpt.world_model import WorldModel
from mbrl.envs.env_settings import ACTION_DIM, PAPER_TASKS, canonical_task

if TYPE_CHECKING:
    from inference.play import PlayArgs

NO_SIMULATOR = "Meta-World is not installed, so no simulator moves beside the dream: pip install -e '.[mbrl]' adds it."
OTHER_ROBOT = "This model is not of Meta-World's robot, so no simulator moves beside the dream."
UNNAMED_ROBOT = (
    "This model does not say which robot it is of. The simulator beside the dream is Meta-World's, which takes "
    f"{ACTION_DIM} numbers, too: if the model is of another robot, only recorded episodes (--dataset_path) tell."
)


def run(args: PlayArgs, bound: socket.socket, has_simulator: bool) -> None:
    dtype = precision(args.dtype)
    path = args.pretrained_model_name_or_path
    asked = [canonical_task(task) for task in args.task or ()]
    model = WorldModel.from_pretrained(path, choose_device(args.device), dtype, args.backend, args.action_space)
    metadata = model.metadata.for_space(args.action_space)
    fits = metadata.action_dim == ACTION_DIM and not metadata.goal_conditioned
    space = model.metadata.find_space(args.action_space)
    is_metaworld = space is None or any(name.removesuffix("-v3") in METAWORLD_TASKS for name in space.datasets)
    if asked and not fits:
        raise UserError(f"--task was given, but {path} has not the {ACTION_DIM} actions of Meta-World: leave it out")
    if args.dataset_path is None and metadata.action_dim not in (None, ACTION_DIM):
        raise UserError(
            f"{path} takes actions of {metadata.action_dim} numbers, the bundled episodes have {ACTION_DIM}: give "
            "--dataset_path"
        )
    if args.agent:
        offer_agent(args.agent, model)
    simulated, close = [], None
    if fits and has_simulator and (asked or is_metaworld):
        from inference.simulator import Simulators

        simulators = Simulators(metadata)
        simulated = [simulators.choice(task) for task in asked or PAPER_TASKS]
        close = simulators.close
    if args.dataset_path is None:
        bundled = find_starts(str(BUNDLED_SAMPLES), model.metadata, "Recorded episodes", args.action_space)
        choices = [*simulated, *bundled]
    else:
        episodes = find_starts(args.dataset_path, model.metadata, action_space=args.action_space)
        choices = [*simulated, *episodes] if asked else [*episodes, *simulated]
    is_known = asked or space is not None or Path(path).resolve() == BUNDLED_MODEL.resolve()
    if simulated:
        note = "" if is_known else UNNAMED_ROBOT
    else:
        note = OTHER_ROBOT if has_simulator else NO_SIMULATOR
    server = PlayServer(model, Path(path).name, choices, args.max_sessions, note, close)
    serve(server.app, args, bound, "play")


def offer_agent(run_dir: str, model: WorldModel) -> None:
    """Add the agent of a run to the autopilots."""
    from mbrl.agent.saved_agent import trained_agent

    if model.action_dim is None:
        raise UserError("--agent was given, but this model takes no actions: leave it out")
    agent = trained_agent(Path(run_dir), model.metadata.resolution, model.action_dim, model.device)
    AUTOPILOTS["agent"] = policy_on_frames("Trained agent", agent.act, agent.frame_stack)
