"""The stages from a robot's recordings to a world model. Each runs the commands that docs/data.md describes.

A stage that is done has an entry in ``stages.json``; an interrupted one goes on by what its commands have saved.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from ivideogpt.action_spaces import ActionSpace, ActionSpaces, usable_std
from ivideogpt.commands.robot_estimate import estimate, hours
from ivideogpt.commands.robot_input import Words, conversion, flags
from ivideogpt.commands.robot_page import write_page
from ivideogpt.commands.train_robot import PRESETS, RobotArgs
from ivideogpt.data.catalog import REFERENCE_STEP, TEST_EVERY, dataset_info, files_below, has_npz_files
from ivideogpt.data.formats.episodes import Episode
from ivideogpt.data.formats.registry import NamedEpisodes, find_episodes
from ivideogpt.data.inspect.command import DatasetReport, InspectArgs, as_text, inspect_dataset
from ivideogpt.data.tokens.token_store import TokenStore
from ivideogpt.devices import choose_device, has_bfloat16_units
from ivideogpt.errors import UserError
from ivideogpt.files import SETTINGS_FILE, check_settings, read_json, write_json
from ivideogpt.metrics.lpips import missing_weights
from ivideogpt.paths import LPIPS_FOLDER, PROJECT, here_or_in_project
from ivideogpt.precision import forced_bfloat16
from ivideogpt.pretrained import load_tokenizer, model_folder
from ivideogpt.training.additions.history_corruption import find_still_code

DONE = "stages.json"
LEFT_OUT = "left_out"  # folder of converted episodes that are not trained on
NAMED = 3  # number of files in a message
LOOKED_AT = 20  # episodes, before the others are converted
CLIP, SHORTEST_CLIP = 16, 6  # frames
TOKENIZER_CLIP, HORIZON = 6, 16  # frames of a tokenizer's clip, and those that it is drawn from
FAMILIAR = 20.0  # dB: a tokenizer that reconstructs new pictures worse than this has not seen any like them
FAR = 4  # times the steps for such a tokenizer

RUN_RECIPE = (
    *("--checkpointing_steps", 250, "--keep_last_n", 2, "--validation_steps", 1000, "--max_eval_iters", 10),
    *("--skip_first_val", "--log_steps", 20, "--report_to", "none", "--resume_from_checkpoint", "latest"),
)
TOKENIZER_RECIPE = (
    *("--vae_loss", "l2", "--recon_weight", 20, "--motion_weight", 3, "--gradient_weight", 0.5, "--no_aug"),
    *("--codebook_decay", 0.99, "--restart_dead_codes", 100, "--lr_scheduler", "cosine", "--log_image_steps", 1000),
    *("--still_weight", 1),
)
TRANSFORMER_RECIPE = (
    *("--weight_decay", 0.01, "--embed_no_wd", "--max_grad_norm", 1.0, "--lr_scheduler_type", "cosine"),
)
OWN_HISTORY = ("--history", "own", "--history_rule", "expected_code")
STALE_HISTORY = ("--stale_tokens", 0.9)  # with a tokenizer that has no code that stands still


def train(args: RobotArgs) -> None:
    """Go through all stages that are not done yet.

    Raises:
        UserError: a stage's command failed, or the episodes would spoil a model.
    """
    device = choose_device("auto")
    preset = args.preset or ("gpu" if device.type == "cuda" else "cpu")
    if PRESETS[preset].on_gpu and device.type != "cuda":
        raise UserError("--preset gpu: no GPU is available here; choose try or cpu")
    training = RobotTraining(args, preset)
    print(f"{args.robot} with preset {preset}, to {args.folder}", flush=True)
    if training.stages.keys() - training.done:  # measuring takes a while itself
        given = training.start, training.preset, training.mixed_precision, args.segment_length or CLIP, TOKENIZER_CLIP
        times = estimate(*given, device)
        left = {name.replace("_", " "): seconds for name, seconds in times.items() if name not in training.done}
        parts = ", ".join(f"{name} {hours(seconds)}" for name, seconds in left.items())
        if "train tokenizer" in left:
            parts += f"; {hours((FAR - 1) * left['train tokenizer'])} more if it knows no such pictures"
        print(f"about {hours(sum(left.values()))} without conversion: {parts or 'seconds'}", flush=True)
    if not args.dry_run:
        training.run()


class RobotTraining:
    """A robot's folder, and the stages that fill it. What a stage returns, later ones read from ``done``."""

    def __init__(self, args: RobotArgs, preset: str) -> None:
        self.args, self.folder, self.preset = args, args.folder, PRESETS[preset]
        self.start = model_folder(args.pretrained_model_name_or_path)
        if not (self.start / "transformer").is_dir():
            raise UserError(f"--pretrained_model_name_or_path {self.start}: has no transformer/; name a world model")
        tokenizer = load_tokenizer(self.start)
        self.resolution, self.context_length = tokenizer.config.resolution, tokenizer.context_length
        if args.segment_length is not None and args.segment_length <= self.context_length:
            given = f"--segment_length {args.segment_length}"
            raise UserError(f"{given}: the model has {self.context_length} context frames; give more frames than that")
        self.data, self.model = self.folder / "data", self.folder / "model"
        self.spaces = self.folder / "action_spaces.json"
        self.conversion = conversion(args, self.data, self.resolution)
        done = self.folder / DONE
        self.done: dict[str, Any] = read_json(done, "delete it to go through all stages again") if done.exists() else {}
        noted, changeable = {**args.noted(), "preset": preset}, () if "convert" in self.done else ("segment_length",)
        self.settings = check_settings(self.folder / SETTINGS_FILE, noted, changeable=changeable)

    @property
    def stages(self) -> dict[str, Callable[[], Mapping[str, Any]]]:
        early = (self.look, self.convert, self.train_tokenizer, self.tokenize)
        return {stage.__name__: stage for stage in (*early, self.train_transformer, self.export, self.report)}

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SETTINGS_FILE, self.settings)
        for number, (name, stage) in enumerate(self.stages.items(), 1):
            title = f"{number}/{len(self.stages)} {name.replace('_', ' ')}"
            print(f"== {title}{': done before' if name in self.done else ''}", flush=True)
            if name not in self.done:
                self.done[name] = stage()
                write_json(self.folder / DONE, self.done)
        page = write_page(self.folder, self.args.robot, self.done["train_tokenizer"])
        print(f"model: {self.model}\npictures and scores: {page}")

    # ---- the stages

    def look(self) -> Mapping[str, Any]:
        """Convert some episodes and look at them, before hours are spent on all."""
        number = min(self.preset.most_episodes or LOOKED_AT, LOOKED_AT)
        self.convert_first(number)
        looking = InspectArgs(path=str(self.data), max_episodes=LOOKED_AT)
        reports = [inspect_dataset(dataset, looking) for dataset in self.datasets()]
        print(*map(as_text, reports), sep="\n\n")
        self.say_which_are_short()
        run_command("-m", "ivideogpt.data", "preview", self.data, *flags(output_path=self.folder / "preview"))
        faults = spoiling(reports)
        if faults and not self.args.anyway:
            raise UserError(
                f"training cannot make up for this: {'; '.join(faults)}. Correct the recordings and remove "
                f"{self.folder}, or train with --anyway"
            )
        return {"faults": faults}

    def convert(self) -> Mapping[str, Any]:
        self.convert_first(self.preset.most_episodes)
        steps = {data.name: dataset_info(data.name).step(self.video_stepsize) for data in self.datasets()}
        found = {data.name: open_all(data, steps[data.name], self.shortest) for data in self.datasets()}
        short = [Path(episode.path) for each in found.values() for episode in each.short]
        self.leave_out(short, f"shorter than a clip of {self.shortest} frames")
        opened = {name: each.long for name, each in found.items()}
        episodes = [episode for each in opened.values() for episode in each]
        if len(dims := {episode.action_dim for episode in episodes}) > 1:
            raise UserError(f"actions of {' and '.join(sorted(map(str, dims)))} dimensions: train one model for each")
        usable = min(episode.num_frames // steps[name] for name in opened for episode in opened[name])
        frames = self.args.segment_length or max(min(CLIP, usable), self.shortest)
        num_frames = sum(episode.num_frames for episode in episodes)
        tested = [(each.num_frames, steps[name]) for name in opened for each in opened[name][::TEST_EVERY]]
        clips = sum(length // (frames * step) or 1 for length, step in tested)
        print(f"{len(episodes)} episodes, {num_frames} frames, clips of {frames}, {clips} of them to test on")
        if None not in dims:
            action_space(self.args.robot, opened).write(self.spaces)
        return {
            "segment_length": frames,
            "num_frames": num_frames,
            "action_dim": dims.pop(),
            "report_clips": min(clips, self.preset.report_clips),
            "mixed_precision": self.mixed_precision,  # runs stay with it, on whatever machine they go on
        }

    def train_tokenizer(self) -> Mapping[str, Any]:
        """Train the given tokenizer on the new pictures; keep it as it is if that does not make it better on them."""
        before = self.reconstruction(self.start, "before")
        steps = self.preset.tokenizer_steps
        if before < FAMILIAR:
            steps *= FAR
            print(
                f"the tokenizer reconstructs these pictures at {before:.1f} dB, less than {FAMILIAR:g}: it knows other "
                f"ones, and is trained {FAR} times as long; a model of similar pictures would need less"
            )
        length = min(self.segment_length, TOKENIZER_CLIP)
        horizon = max(length, min(self.segment_length, HORIZON))
        self.train(
            "train_tokenizer.py",
            *(*self.clips, *self.clip_form(length), "--rand_select", *TOKENIZER_RECIPE),
            *flags(pretrained_model_name_or_path=self.start, segment_horizon=horizon, exp_name="tokenizer"),
            *flags(train_batch_size=self.preset.tokenizer_batch, max_train_steps=steps, disc_start=steps + 1),
            *flags(
                lr_warmup_steps=steps // 20, perc_weight=0 if missing_weights(here_or_in_project(LPIPS_FOLDER)) else 1
            ),
        )
        trained = self.newest("tokenizer", "unwrapped_model") / "unwrapped_model"
        after = self.reconstruction(trained, "after")
        print(f"test frames are reconstructed at {before:.2f} dB before, {after:.2f} dB after training")
        if after <= before:
            print("the tokenizer stays as it was: training has not made it better on them")
        return {"path": str((trained if after > before else self.start).resolve()), "before": before, "after": after}

    def tokenize(self) -> Mapping[str, Any]:
        stride = max(round(self.done["convert"]["num_frames"] * self.preset.passes / self.preset.most_clips), 1)
        spaces = flags(action_spaces=self.spaces if self.spaces.exists() else None)
        for split, more in (("train", flags(num_passes=self.preset.passes, stride=stride)), ("test", ())):
            named = flags(segment_length=self.segment_length, split=split, output=self.folder / "tokens" / split)
            model = flags(pretrained_model_name_or_path=self.tokenizer)
            run_command("-m", "ivideogpt.data", "tokenize", *model, *self.clips, *named, *more, *spaces)
        return {"stride": stride}

    def train_transformer(self) -> Mapping[str, Any]:
        steps, batch, stores = self.preset.transformer_steps, self.preset.transformer_batch, self.folder / "tokens"
        # own histories begin with frames in which nothing moves
        is_own = find_still_code(load_tokenizer(self.tokenizer).dynamics_quantize.embedding.weight) is not None
        self.train(
            "train_gpt.py",
            *(*self.clip_form(self.segment_length), *self.heads(), *TRANSFORMER_RECIPE),
            *(OWN_HISTORY if is_own else STALE_HISTORY),
            *flags(pretrained_model_name_or_path=self.tokenizer, exp_name="transformer"),
            *("--load_internal_llm", *flags(pretrained_transformer_path=self.start / "transformer")),
            *flags(token_store=stores / "train", eval_token_store=stores / "test", max_train_steps=steps),
            *flags(per_device_train_batch_size=batch, num_warmup_steps=steps // 20),
            *flags(per_device_eval_batch_size=min(batch, len(TokenStore(stores / "test")))),
        )
        return {"own_history": is_own}

    def export(self) -> Mapping[str, Any]:
        run = self.newest("transformer", "model.safetensors")
        named = flags(tokenizer=self.tokenizer, transformer=run, output=self.model)
        is_own = self.done["train_transformer"].get("own_history", False)
        rule = flags(sampling_rule="expected_code") if is_own else flags(top_k=1)
        run_command("-m", "ivideogpt.training.export", *named, *rule)
        return {}

    def report(self) -> Mapping[str, Any]:
        self.evaluate("report", self.model, *self.clips)
        return {}

    # ---- what the stages share

    def convert_first(self, number: int | None) -> None:
        """Convert so many episodes, or all, and leave out those whose recording is gone: converters only add."""
        run_command(*self.conversion.command, *flags(max_num_episodes=number))
        if self.conversion.expected is not None:
            gone = set(files_below(self.data, {".npz"})) - self.conversion.expected()
            self.leave_out(sorted(gone), "whose recordings are gone")

    def leave_out(self, files: Sequence[Path], reason: str) -> None:
        """Move episodes to where no stage reads them, and name the first ones."""
        if files:
            print(f"left out, to {self.folder / LEFT_OUT}: {number_and_names(files)} {reason}")
        for file in files:
            place = self.folder / LEFT_OUT / file.relative_to(self.data)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)

    def say_which_are_short(self) -> None:
        short = []
        for data in self.datasets():
            step = dataset_info(data.name).step(self.video_stepsize)
            for number in range(len(data.episodes)):
                with suppress(UserError):  # inspection has named the unreadable ones
                    if data.episodes.open(number).num_frames // step < self.shortest:
                        short.append(Path(data.episodes.name(number)))
        if short:
            print(f"will be left out: {number_and_names(short)} shorter than a clip of {self.shortest} frames")

    @property
    def shortest(self) -> int:
        """Return the number of frames, as far apart as those of a clip, that an episode needs to be trained on."""
        return self.args.segment_length or max(SHORTEST_CLIP, self.context_length + 1)

    @property
    def segment_length(self) -> int:
        return int(self.done["convert"]["segment_length"])

    @property
    def mixed_precision(self) -> str:
        if "convert" in self.done:
            return str(self.done["convert"].get("mixed_precision", "bf16" if self.preset.on_gpu else "no"))
        forced = forced_bfloat16()
        return "bf16" if self.preset.on_gpu or (has_bfloat16_units() if forced is None else forced) else "no"

    @property
    def tokenizer(self) -> str:
        return str(self.done["train_tokenizer"]["path"])

    @property
    def clips(self) -> Words:
        """Return the flags of all episodes' clips, whose frames are ``--frame_step`` apart."""
        return flags(dataset_path=self.data, oxe_data_mixes_type="folder:*", video_stepsize=self.video_stepsize)

    @property
    def video_stepsize(self) -> int:
        """Return ``--frame_step`` in the unit of the data commands; public data sets keep their own pace as 1.

        Raises:
            UserError: no number gives each data set the pace that it has alone.
        """
        paced, every = self.args.frame_step, self.args.frame_step * REFERENCE_STEP
        folders = [path for path in sorted(self.data.iterdir()) if path.is_dir() and has_npz_files(path)]
        infos = [dataset_info(path.name) for path in folders]
        alone = {info.name: info.step(paced if info.base_step > 1 else every) for info in infos}
        for stepsize in (every, paced):
            if all(info.step(stepsize) == alone[info.name] for info in infos):
                return stepsize
        listed = ", ".join(f"{step} of {name}" for name, step in alone.items())
        told = f"--frame_step {self.args.frame_step} means every {listed}, which no one training does"
        raise UserError(f"{told}: leave it out, or train a model for each")

    def clip_form(self, segment_length: int) -> Words:
        return flags(resolution=self.resolution, context_length=self.context_length, segment_length=segment_length)

    def datasets(self) -> list[NamedEpisodes]:
        return find_episodes(str(self.data))

    def heads(self) -> Words:
        """Return the flags of actions, rewards and successes, as far as all episodes have them."""
        dim = self.done["convert"]["action_dim"]
        if dim is None:
            print("the episodes have no actions: the model will predict what happens next, and cannot be steered")
            return ()
        meta = TokenStore(self.folder / "tokens" / "train").meta
        rewards = ("--reward_prediction", "--symlog", *flags(reward_weight=0.05)) if meta.has_rewards else ()
        successes = ("--success_prediction", *flags(success_weight=0.1)) if meta.has_successes else ()
        dimension = flags(action_dim=None if meta.action_spaces else dim)  # the spaces say it
        return ("--action_conditioned", *dimension, *rewards, *successes)

    def train(self, script: str, *words: object) -> None:
        # on one GPU it would be a process between, which dies of a signal and leaves the training without one
        launcher = ("-m", "accelerate.commands.launch") if torch.cuda.device_count() > 1 and self.preset.on_gpu else ()
        named = flags(output_dir=self.folder / "runs", seed=self.args.seed, learning_rate=self.preset.learning_rate)
        run_command(*launcher, script, *words, *named, *flags(mixed_precision=self.mixed_precision), *RUN_RECIPE)

    def newest(self, name: str, has: str) -> Path:
        """Return the newest run of a name that has this part of a finished one."""
        found = sorted((self.folder / "runs").glob(f"*-{name}/{has}"))
        if not found:
            raise UserError(f"{self.folder / 'runs'}: no finished run of the {name}; run the same command again")
        return found[-1].parent

    def reconstruction(self, tokenizer: object, when: str) -> float:
        """Measure a tokenizer by the PSNR, in dB, of test frames, half of it that of context frames."""
        report = self.evaluate(
            f"tokenizer-{when}", tokenizer, "tokenizer", *self.clips, segment_length=self.segment_length
        )
        return sum(report["scores"]["all datasets"][part]["psnr"]["mean"] for part in ("context", "future")) / 2

    def evaluate(self, output: str, model: object, *words: object, **named: object) -> Mapping[str, Any]:
        folder = self.folder / output
        named |= {
            "pretrained_model_name_or_path": model,
            "num_clips": self.done["convert"]["report_clips"],
            "output_path": folder,
        }
        run_command("-m", "ivideogpt.evaluation", *words, *flags(**named))
        return read_json(folder / "report.json")


@dataclass(frozen=True)
class OpenEpisodes:
    """The episodes of a data set: those that are long enough to be trained on, and the others."""

    long: list[Episode]
    short: list[Episode]


def open_all(data: NamedEpisodes, step: int, shortest: int) -> OpenEpisodes:
    """Open all episodes, and read all but the frames of long ones: a fault there would end a later stage, after hours.

    Long ones have ``shortest`` frames that are ``step`` apart.

    Raises:
        UserError: one cannot be read, only some have rewards or successes, or none is left to train or to test on.
    """
    if os.sep in data.name:
        raise UserError(f"{data.name} is a folder in a folder: give a folder of episodes, or one of such folders")
    opened = [data.episodes.open(number) for number in range(len(data.episodes))]
    found = OpenEpisodes([], [])
    for episode in opened:
        (found.long if episode.num_frames // step >= shortest else found.short).append(episode)
    if len(found.long) < 2:
        apart = f" {step} apart" * (step > 1)
        raise UserError(
            f"{data.name}: {len(found.long)} of {len(opened)} episodes have the {shortest} frames{apart} of a clip, "
            "expected at least two, of which the first is kept to test on: add some, or change --segment_length"
        )
    for episode in found.long:
        episode.verify_series()
        for what in ("has_rewards", "has_successes"):
            if getattr(episode, what) != getattr(found.long[0], what):
                told = f"{episode.path} and {found.long[0].path}: only one of them {what.replace('_', ' ')}"
                raise UserError(f"{told}; expected all episodes of {data.name} to have them, or none")
    return found


def number_and_names(files: Sequence[Path]) -> str:
    more = f" and {len(files) - NAMED} more" * (len(files) > NAMED)
    return f"{len(files)} episode{'s' * (len(files) > 1)} ({', '.join(map(str, files[:NAMED]))}{more})"


def action_space(robot: str, opened: Mapping[str, Sequence[Episode]]) -> ActionSpaces:
    """Return the robot's action space: networks learn little from numbers that are very small, large or far from 0."""
    episodes = [episode for each in opened.values() for episode in each]
    actions = np.concatenate([episode.actions(np.arange(episode.num_frames - 1)) for episode in episodes])
    mean, std, largest = actions.mean(0, np.float64), actions.std(0, np.float64), np.abs(actions).max(0)
    stds = tuple(map(usable_std, std.tolist(), largest.tolist()))
    space = ActionSpace(robot, len(mean), tuple(mean.tolist()), stds, datasets=tuple(opened))
    return ActionSpaces((space,))


def spoiling(reports: Sequence[DatasetReport]) -> list[str]:
    dims = {len(report.actions) for report in reports}
    several = [f"data sets with {' and '.join(map(str, sorted(dims)))} action dimensions"] if len(dims) > 1 else []
    return several + [fault for report in reports for fault in (*report.spoiling, *report.unreadable)]


# ---- other commands


def run_command(*argv: object) -> None:
    """Run ``python <argv>`` as a user would, with signals passed on; scripts are those of the project.

    Raises:
        UserError: it failed, after it has said why.
    """
    words = [str(word) for word in argv]
    print(f"$ python {shlex.join(words)}", flush=True)
    status = call([sys.executable, *(str(PROJECT / word) if word.endswith(".py") else word for word in words)])
    if status:
        stopped = "was stopped" if status < 0 or status > 128 else f"failed with exit code {status}"
        raise UserError(f"the command above {stopped}; the same train_robot.py goes on from there")


def call(command: Sequence[str]) -> int:
    """Run a command in a process group of its own, so that each signal reaches it once: by us."""
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))  # for -m, from any directory
    child = subprocess.Popen(command, process_group=0, env={**os.environ, "PYTHONPATH": path})

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, forward))
        return child.wait()
