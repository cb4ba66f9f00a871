"""Play episodes of a simulator by planned, random and scripted actions; write rows, GIFs and a report.

Shapes: T steps of an episode, H planned steps, D action dimension, h w pixels.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from ivideogpt.data.clips.transforms import unit_range
from ivideogpt.devices import choose_device
from ivideogpt.errors import UserError
from ivideogpt.evaluation.prediction_report import model_facts
from ivideogpt.evaluation.report import MARKDOWN_FILE, markdown_table
from ivideogpt.files import ROWS_FILE, KeptRows, file_stem, write_text
from ivideogpt.planning import (
    PLANNERS,
    Classifier,
    LatentError,
    Objective,
    Plan,
    Planner,
    Reward,
    SessionDynamics,
    SquaredError,
    Success,
)
from ivideogpt.planning.vp2_files import CLASSIFIER_SIDE, Goal, load_classifier, read_goals
from ivideogpt.precision import precision
from ivideogpt.video_io import Pixels, side_by_side, to_pixels, write_gif
from ivideogpt.world_model import WorldModel
from mbrl.envs.env_settings import EnvSettings, canonical_task, episode_seed
from mbrl.envs.played_episode import Act, PlayedEpisode, check_actions, play_episode
from mbrl.envs.users_code import users_function

if TYPE_CHECKING:
    from inference.plan import PlanArgs

BASELINES = ("scripted", "random")
# Flags that may differ between the rows of one file. Of the last two, the files' contents may not.
FREE_FLAGS = (
    "pretrained_model_name_or_path", "task", "planner", "episodes", "output_path", "device", "goals", "classifiers",
)  # fmt: skip


def run(args: PlanArgs) -> None:
    model = load_model(args)
    if model.action_dim is not None:
        build_planner(args, model.action_dim)  # a setting that does not fit is found before anything is played
    tasks = {canonical_task(task): read_files(args, i, model) for i, task in enumerate(args.task)}
    rows = KeptRows(Path(args.output_path), PlanRow, shared_settings(args, model))
    for task, files in tasks.items():
        check_files(rows, task, files)
    for task, files in tasks.items():
        settings = EnvSettings(task, model.metadata.resolution, args.action_repeat, args.camera)
        with closing(settings.make()) as agent_env:
            env = agent_env.env
            if files.goals and not hasattr(env, "reset_to"):
                raise UserError(f"--goals: {type(env).__name__} has no method reset_to, which begins in a given state")
            check_actions(args.pretrained_model_name_or_path, model.action_dim, env.action_space)
            for number in range(args.episodes):
                play_missing(args, model, env, task, number, rows, files)
    write_text(rows.folder / MARKDOWN_FILE, report(rows))
    print(f"{MARKDOWN_FILE}, {ROWS_FILE} and GIFs are in {rows.folder}")


def load_model(args: PlanArgs) -> WorldModel:
    """Load the model; UserError if it has no head for this objective."""
    dtype = precision(args.dtype)
    device = choose_device(args.device)
    path = args.pretrained_model_name_or_path
    model = WorldModel.from_pretrained(path, device, dtype, args.backend, args.action_space)
    heads = {"reward": model.reward_head, "success": model.success_head}
    if args.objective in heads and heads[args.objective] is None:
        raise UserError(f"--objective {args.objective}: the model has no such head; plan for a goal image instead")
    return model


@dataclass(frozen=True)
class TaskFiles:
    """Contents of the files of VP2 for a task: nothing, where none are given."""

    goals: Sequence[Goal] = ()
    classifier: nn.Module | None = None
    checksum: str = ""


def read_files(args: PlanArgs, index: int, model: WorldModel) -> TaskFiles:
    """Read the files of a task, which has a place in --task; UserError if they do not fit."""
    side = model.metadata.resolution
    paths = [Path(files[index]) for files in (args.goals, args.classifiers) if files]
    goals = read_goals(Path(args.goals[index]), side) if args.goals else []
    if goals and len(goals) < args.episodes:
        raise UserError(f"--episodes is {args.episodes}, but {args.goals[index]} has {len(goals)} goals")
    classifier = load_classifier(Path(args.classifiers[index])) if args.classifiers else None
    if classifier is not None and side != CLASSIFIER_SIDE:
        raise UserError(f"--classifiers read frames of {CLASSIFIER_SIDE} pixels, and the model's have {side}")
    return TaskFiles(goals, classifier, " ".join(map(checksum, paths)))


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shared_settings(args: PlanArgs, model: WorldModel) -> dict[str, Any]:
    """Return what all rows of a folder share."""
    asked = {name: value for name, value in asdict(args).items() if name not in FREE_FLAGS}
    asked |= {"goals": "VP2's" if args.goals else "scripted", "classifiers": bool(args.classifiers)}
    name = Path(args.pretrained_model_name_or_path).name
    return {"model": name, **asked, **model_facts(model)}


@dataclass(frozen=True)
class PlanRow:
    """An episode of the simulator. Distances to the goal image are roots of mean squared errors of pixels in [0, 1]."""

    task: str
    episode: int
    policy: str
    success: bool
    total_reward: float
    start_distance: float
    least_distance: float
    goal_distance: float
    seconds_per_decision: float | None
    files: str = ""  # checksums of the task's files of VP2


def check_files(rows: KeptRows[PlanRow], task: str, files: TaskFiles) -> None:
    """Raise UserError if rows of a task come from other goals or another classifier."""
    if any(row.task == task and row.files != files.checksum for row in rows.rows):
        raise UserError(
            f"{rows.folder} holds episodes of {task} with other --goals or --classifiers: name another --output_path"
        )


def play_missing(
    args: PlanArgs,
    model: WorldModel,
    env: gymnasium.Env,
    task: str,
    number: int,
    rows: KeptRows[PlanRow],
    files: TaskFiles,
) -> None:
    """Play an episode by each policy that has no row yet. Without given goals the scripted one makes the goal."""
    baselines = BASELINES[1:] if files.goals else BASELINES
    played = {row.policy for row in rows.rows if (row.task, row.episode) == (task, number)}
    missing = [policy for policy in (*baselines, args.planner) if policy not in played]
    if not missing:
        return
    seed, by_script = episode_seed(args.seed, "plan", number), None
    if files.goals:
        goal = files.goals[number]
    else:
        by_script = play_episode(env, scripted(env), seed, args.episode_length)
        goal = Goal(by_script.observations[-1])
    for policy in missing:
        episode, seconds = by_script, None
        if policy != "scripted":
            controller = build_controller(policy, args, model, env, goal.image, seed, files.classifier)
            episode = play_episode(env, controller, seed, args.episode_length, state=goal.start)
            if isinstance(controller, PlanningController):
                seconds = float(np.mean(controller.seconds))
                video = controller.beside(episode.observations, goal.image)
                write_gif(rows.folder / f"{video_name(task, policy, number)}.gif", video)
        assert episode is not None
        facts = episode_facts(episode, goal.image)
        rows.add([PlanRow(task, number, policy, **facts, seconds_per_decision=seconds, files=files.checksum)])
        print(f"{task} {number} {policy}: " + ", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)


def video_name(task: str, policy: str, number: int) -> str:
    return file_stem(f"{task}-{policy}-{number}")


def episode_facts(episode: PlayedEpisode, goal: Pixels) -> dict[str, Any]:
    distances = [distance(frame, goal) for frame in episode.observations]
    return {
        "success": bool(episode.successes.any()),
        "total_reward": float(sum(episode.rewards)),
        "start_distance": distances[0],
        "least_distance": min(distances),
        "goal_distance": distances[-1],
    }


def build_controller(
    policy: str,
    args: PlanArgs,
    model: WorldModel,
    env: gymnasium.Env,
    goal: Pixels,
    seed: int,
    classifier: nn.Module | None,
) -> Act:
    if policy == "random":
        rng = np.random.default_rng(seed)
        return lambda frames: rng.uniform(-1, 1, env.action_space.shape)
    return PlanningController(args, model, build_objective(args, model, goal, classifier), seed)


def scripted(env: gymnasium.Env) -> Act:
    """Return the scripted policy of the episode that begins; UserError if the environment has none."""
    if not hasattr(env, "scripted_policy"):
        raise UserError(f"{type(env).__name__} has no method scripted_policy, whose episode ends with the goal image")
    policy = users_function(f"scripted policy of {type(env).__name__}", env.scripted_policy(), "nothing")
    return lambda frames: policy()


class PlanningController:
    """Plans every few steps from the latest frames; remembers what it imagined and how long decisions took."""

    def __init__(self, args: PlanArgs, model: WorldModel, objective: Objective, seed: int) -> None:
        self._model, self._every, self._idle, self._seed = model, args.replan_every, args.idle_steps, seed
        assert model.action_dim is not None
        self._planner, self._objective = build_planner(args, model.action_dim), objective
        self._generator = torch.Generator().manual_seed(seed)
        self._plan: Plan | None = None
        self.seconds: list[float] = []  # one a decision
        self.imagined: list[Pixels] = []  # (h, w, 3), one a step

    def __call__(self, frames: list[Pixels]) -> np.ndarray:
        if len(frames) <= self._idle:
            self.imagined.append(frames[-1])
            return np.zeros(len(self._planner.low))
        step = (len(frames) - 1 - self._idle) % self._every
        if step == 0:
            self._decide(frames)
        assert self._plan is not None
        return self._plan.actions[step].numpy()

    def _decide(self, frames: list[Pixels]) -> None:
        started = time.perf_counter()
        context = to_frames(np.stack(frames[-self._model.metadata.context_length :]))
        with_frames = self._objective.reads_frames
        dynamics = SessionDynamics(self._model, context, seed=self._seed, with_frames=with_frames)
        self._plan = self._planner.plan(dynamics, self._objective, self._generator, self._plan, self._every)
        self.seconds.append(time.perf_counter() - started)
        predicted = replace(dynamics, with_frames=True)(self._plan.actions[None, : self._every]).frames
        assert predicted is not None
        self.imagined += list(to_pixels(predicted[0]))

    def beside(self, frames: Pixels, goal: Pixels) -> Pixels:
        """Return what happened, what was imagined of it, and the goal, side by side: (T + 1, h, 3 w, 3)."""
        imagined = np.stack([frames[0], *self.imagined])[: len(frames)]
        return side_by_side([frames, imagined, np.broadcast_to(goal, frames.shape)])


def build_planner(args: PlanArgs, action_dim: int) -> Planner:
    given: dict[str, Any] = {} if args.num_iterations is None else {"num_iterations": args.num_iterations}
    return PLANNERS[args.planner](
        low=(-1.0,) * action_dim,
        high=(1.0,) * action_dim,
        init_std=args.init_std[0] if len(args.init_std) == 1 else args.init_std,
        horizon=args.horizon,
        num_candidates=args.num_candidates,
        max_seconds=args.budget_seconds,
        **given,
    )


def build_objective(args: PlanArgs, model: WorldModel, goal: Pixels, classifier: nn.Module | None) -> Objective:
    image = to_frames(goal[None])[0]
    half = 0.5 * SquaredError(image)
    objectives = {
        "goal": SquaredError(image),
        "vp2": half if classifier is None else half + 10 * Classifier(classifier),
        "latent": LatentError(model.tokenizer, image),
        "reward": Reward(),
        "success": Success(),
    }
    return objectives[args.objective]


def to_frames(pixels: Pixels) -> Tensor:
    """Convert pixels (T, h, w, 3) uint8 to frames (T, 3, h, w) in [0, 1]."""
    return unit_range(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def distance(frame: Pixels, goal: Pixels) -> float:
    """Return the root of the mean squared difference of pixels in [0, 1]."""
    return float(np.sqrt(np.mean((frame.astype(np.float64) - goal) ** 2)) / 255)


# ---- report

COLUMNS = {  # heading -> key of a row, decimals
    "success rate": ("success", 2),
    "return": ("total_reward", 0),
    "distance to the goal at the start": ("start_distance", 3),
    "least": ("least_distance", 3),
    "at the end": ("goal_distance", 3),
    "seconds a decision": ("seconds_per_decision", 1),
}
EXPLANATION = """All policies begin in the same states. The scripted policy knows the simulator's state; the image
that it ends with is the goal of the others, unless goals were given. A success is an episode with at least one
successful step: VP2's score, the least of its steps, is -1 then, and 0 otherwise. The distance to the goal is the root
of the mean squared difference of pixels in [0, 1]. Decisions were timed on the machine that made this report. GIFs show
what happened, what had been imagined of it, and the goal."""


def report(rows: KeptRows[PlanRow]) -> str:
    """Return the report in Markdown."""
    groups: dict[tuple[str, str], list[PlanRow]] = {}
    for row in sorted(rows.rows, key=lambda row: (row.task, row.policy, row.episode)):
        groups.setdefault((row.task, row.policy), []).append(row)
    table = [
        [*group, str(len(played)), *(cell(played, *column) for column in COLUMNS.values())]
        for group, played in groups.items()
    ]
    planned = [row for row in rows.rows if row.policy not in BASELINES]
    names = sorted(video_name(row.task, row.policy, row.episode) for row in planned)
    videos = [f"![{name}]({name}.gif)" for name in names]
    facts = [f"- {name}: `{value}`" for name, value in rows.settings.items() if name != "metadata"]
    header = ("task", "policy", "episodes", *COLUMNS)
    tables = [success_rates(rows.rows), markdown_table(header, table)]
    parts = ["# Planning in the simulator", EXPLANATION, *tables, "## Episodes", *videos]
    return "\n\n".join([*parts, "## Made with", "\n".join(facts)]) + "\n"


def success_rates(rows: Sequence[PlanRow]) -> str:
    """Return the table of success rates: a row for each task and one for all episodes, a column for each policy."""
    tasks, policies = sorted({row.task for row in rows}), sorted({row.policy for row in rows})
    table = []
    for name, chosen in (*((task, [task]) for task in tasks), ("all", tasks)):
        columns = [[row for row in rows if row.task in chosen and row.policy == policy] for policy in policies]
        table.append([name, *(cell(column, "success", 2) for column in columns)])
    return markdown_table(("success rate", *policies), table)


def cell(rows: Sequence[PlanRow], key: str, decimals: int) -> str:
    values = [value for row in rows if (value := getattr(row, key)) is not None]
    return f"{np.mean(values):.{decimals}f}" if values else "-"
