"""``--debug`` and ``--dry_run``: any command can be tried on any machine, and every recipe is."""

import inspect
import json
import subprocess
from pathlib import Path

import pytest
from diffusers import VQModel

from ivideogpt.flags import parse
from ivideogpt.training.common import trial_runs
from ivideogpt.training.common.args import GptArgs, TokenizerArgs
from ivideogpt.training.common.trial_runs import report, tiny_gpt_run, tiny_tokenizer_run
from ivideogpt.training.tokenizer.build import build_tokenizer_trainer
from ivideogpt.training.transformer.build import build_gpt_trainer
from tests.training.runs import fit, metrics_of, without

ROOT = Path(__file__).parents[3]
RECIPES = sorted(
    str(path.relative_to(ROOT / "scripts"))
    for folder in ("pretrain", "finetune")
    for path in (ROOT / "scripts" / folder).glob("*.sh")
    if not path.name.startswith("metaworld")
)
COMMANDS = {
    "train_tokenizer.py": (TokenizerArgs, tiny_tokenizer_run, build_tokenizer_trainer),
    "train_gpt.py": (GptArgs, tiny_gpt_run, build_gpt_trainer),
}


def commands_of(recipe: str, output: Path, *flags: str, **variables: str) -> list[tuple[str, list[str]]]:
    """The commands that a recipe would launch: script and arguments."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LAUNCH": r"printf %s\n",
        "DATASET_PATH": str(output / "no-data"),
        "TOKENIZER_RUNS": str(output),
        "TRANSFORMER_RUNS": str(output),
        "EVALUATION_RUNS": str(output),
        "MIXED_PRECISION": "no",
        "TOKENIZER_ARGS": "--report_to none",
        "TRANSFORMER_ARGS": "--report_to none",
        **variables,
    }
    script = ["bash", str(ROOT / "scripts" / recipe), *flags]
    printed = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout
    commands: list[tuple[str, list[str]]] = []
    for word in printed.splitlines():
        if word in COMMANDS:
            commands.append((word, []))
        else:
            commands[-1][1].append(word)
    return commands


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "scripts" / "evaluation").iterdir()))
def test_evaluation_recipe(recipe, tmp_path, monkeypatch):
    """Without data to train on; scores go to metrics.jsonl, and the weights stay where they are.

    One with actions and one without are run, the third is built.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(trial_runs, "CLIPS", 1)
    ((_, argv),) = commands_of(f"evaluation/{recipe}", tmp_path, "--debug")
    trainer = build_gpt_trainer(tiny_gpt_run(parse(GptArgs, argv)))
    assert trainer.evaluation_clips is not None
    assert (tmp_path / f"{recipe.removesuffix('.sh')}-eval.log").is_file()
    if recipe.startswith("robonet"):
        return
    with trainer.run:
        trainer.evaluate()
    validation, evaluation = metrics_of(trainer.run.directory)
    assert "perplexity" in validation
    assert {"psnr", "ssim", "mse", "copy_psnr"} <= evaluation.keys()
    assert (trainer.run.directory / "evaluation" / "report.md").is_file()
    assert not list(trainer.run.directory.rglob("*.safetensors"))


WHOLE_RUNS = {"finetune/bair-64-act-cond.sh", "pretrain/oxe-64-goal-cond.sh", "pretrain/oxe-64-act-free.sh"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe, tmp_path, monkeypatch, fresh_accelerator):
    """Both commands of every published recipe update, on stand-ins for data and weights that nobody here has.

    One of each kind trains to the end, with validations and checkpoints.
    """
    monkeypatch.chdir(ROOT)
    for name, less in (("STEPS", 2), ("CLIPS", 1)):
        monkeypatch.setattr(trial_runs, name, less)
    commands = commands_of(recipe, tmp_path, "--debug")
    smaller = ["--segment_length", "5"] if "256" in recipe else []  # large frames take most of the time
    assert [script for script, _ in commands] == list(COMMANDS)
    for script, argv in commands:
        kind, tiny, build = COMMANDS[script]
        trainer = build(tiny(parse(kind, [*argv, *smaller])))
        if recipe in WHOLE_RUNS:
            assert any(line["split"] == "validation" for line in metrics_of(fit(trainer)))
        else:
            update = trainer.generator_phase if script == "train_tokenizer.py" else trainer.update
            assert update()["loss"].isfinite()


def test_debug_uses_what_is_there(clips, tiny_world_model, tmp_path):
    """A user's own episodes and weights are what is to be tried."""
    argv = f"""
        --dataset_path {clips} --oxe_data_mixes_type folder:* --resolution 64 --context_length 2 --segment_length 5
        --pretrained_model_name_or_path {tiny_world_model / "tokenizer"} --action_conditioned
        --pretrained_transformer_path {tiny_world_model / "transformer"} --output_dir {tmp_path} --debug
        --config_name {tiny_world_model / "transformer" / "config.json"}
    """
    asked = parse(GptArgs, argv.split())
    args = tiny_gpt_run(asked)
    kept = ("dataset_path", "pretrained_model_name_or_path", "pretrained_transformer_path", "config_name")
    assert [getattr(args, name) for name in kept] == [getattr(asked, name) for name in kept]
    assert args.max_train_steps < 10
    assert not (tmp_path / "debug").exists()


def test_debug_says_what_it_replaces(tmp_path, caplog):
    """A path with a typing error must not pass for a dataset that trains."""
    argv = f"--dataset_path {tmp_path}/typo --resolution 64 --output_dir {tmp_path} --debug --start_global_step 7"
    args = tiny_tokenizer_run(parse(TokenizerArgs, [*argv.split(), "--context_length", "2"]))
    assert f"{tmp_path}/typo is not there" in caplog.text
    assert (args.output_dir, args.start_global_step) == (str(tmp_path / "debug"), 0)
    assert args.perc_weight == 0
    assert "--debug: --perc_weight 0 instead of 1.0. LPIPS weights missing" in caplog.text


def test_debug_takes_a_few_steps_as_asked_and_says_when_it_does_not(tmp_path, caplog):
    """``--max_train_steps 6`` became 4 without a word."""
    argv = f"--dataset_path {tmp_path} --resolution 64 --output_dir {tmp_path} --debug --max_train_steps".split()
    for asked, steps in ((2, 2), (6, 6), (101, 4)):
        caplog.clear()
        args = parse(TokenizerArgs, [*argv, str(asked), "--disc_start", "200"])
        assert tiny_tokenizer_run(args).max_train_steps == steps
        assert f"{steps} steps" in caplog.text
        assert ("not --max_train_steps 101" in caplog.text) == (asked == 101)
    argv = [*argv, "3", "--pretrained_model_name_or_path", "nowhere"]
    assert tiny_gpt_run(parse(GptArgs, argv)).max_train_steps == 3


def test_debug_starts_from_an_ordinary_vqvae_that_is_there(tokenizer_config, clips, tmp_path):
    """Its own architecture is the one that fits its weights."""
    config = json.loads(tokenizer_config.read_text())
    names = inspect.signature(VQModel.__init__).parameters
    VQModel(**{name: config[name] for name in names & config.keys()}).save_pretrained(tmp_path / "vqvae")
    argv = f"""
        --dataset_path {clips} --oxe_data_mixes_type folder:* --resolution 64 --context_length 2 --debug
        --pretrained_model_name_or_path {tmp_path / "vqvae"} --model_config_name_or_path {tokenizer_config}
        --output_dir {tmp_path} --report_to none
    """
    build_tokenizer_trainer(tiny_tokenizer_run(parse(TokenizerArgs, argv.split())))


@pytest.mark.parametrize("recipe", [*RECIPES, "evaluation/bair-64-act-cond.sh"])
def test_further_flags_reach_one_command(recipe, tmp_path):
    """Steps or a learning rate that were meant for the tokenizer changed the transformer, too."""
    variables = {"TOKENIZER_ARGS": "--max_train_steps 7 --perc_weight 0", "TRANSFORMER_ARGS": "--max_train_steps 8"}
    commands = dict(commands_of(recipe, tmp_path, "--resume_from_checkpoint", "latest", **variables))
    for script, expected in (("train_tokenizer.py", "7 --perc_weight 0"), ("train_gpt.py", "8")):
        if script in commands:
            ending = f"--max_train_steps {expected} --resume_from_checkpoint latest"
            assert " ".join(commands[script]).endswith(ending)
    assert "train_gpt.py" in commands
    command = ["bash", str(ROOT / "scripts" / recipe), "--debug", "--learning_rate", "1"]
    refused = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "--learning_rate: a recipe takes" in refused.stderr
    assert "TOKENIZER_ARGS" in refused.stderr
    assert "TRANSFORMER_ARGS" in refused.stderr


def test_the_goal_conditioned_tokenizer_is_fine_tuned(tmp_path):
    """From scratch it would take a million steps at a learning rate that was made for something else."""
    for start, expected in (("", "pretrained_models/ivideogpt-oxe-64-act-free/tokenizer"), ("mine", "mine/tokenizer")):
        (_, tokenizer), (_, transformer) = commands_of("pretrain/oxe-64-goal-cond.sh", tmp_path, START=start)
        assert tokenizer[tokenizer.index("--pretrained_model_name_or_path") + 1] == expected
        assert "--pretrained_transformer_path" not in transformer


@pytest.mark.parametrize("script", ["pretrain/oxe-64-act-free.sh"])
def test_a_recipe_takes_the_tokenizer_that_it_trained(script, tmp_path):
    """Not a run under the same name that never finished, or that only tried the command."""
    finished, killed = (tmp_path / f"2026-01-0{day}-00:00:00-oxe-64-act-free-tokenizer" for day in (1, 2))
    (finished / "unwrapped_model").mkdir(parents=True)
    killed.mkdir()
    tried = tmp_path / "debug" / "2026-01-03-00:00:00-oxe-64-act-free-tokenizer" / "unwrapped_model"
    tried.mkdir(parents=True)
    for flags, expected in (((), finished / "unwrapped_model"), (("--debug",), tried)):
        _, (_, argv) = commands_of(script, tmp_path, *flags)
        assert argv[argv.index("--pretrained_model_name_or_path") + 1] == str(expected)
    assert [name for name, _ in commands_of(script, tmp_path / "empty", "--dry_run")] == ["train_tokenizer.py"]


def test_dry_run_builds_and_writes_nothing(tmp_path, monkeypatch):
    """How many weights, and what they take."""
    (script, argv), _ = commands_of("finetune/bair-64-act-cond.sh", tmp_path / "runs", "--debug")
    kind, tiny, build = COMMANDS[script]
    args = tiny(parse(kind, argv))
    before = sorted(tmp_path.rglob("*"))
    lines = report(build(args)).splitlines()
    assert sorted(tmp_path.rglob("*")) == before
    assert f"would write {tmp_path / 'runs' / 'debug'}" in lines[0]
    assert "clips: 8 frames of 64 px, of which 1 context" in lines
    (tokenizer,) = (line for line in lines if line.startswith("tokenizer: "))
    assert tokenizer.split()[1] == tokenizer.split()[4]  # all of it is trained


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ([], {}, "no"),
        ([], {"ACCELERATE_MIXED_PRECISION": "bf16"}, "bf16"),
        (["--mixed_precision", "no"], {"ACCELERATE_MIXED_PRECISION": "bf16"}, "no"),
    ],
)
def test_dry_run_shows_the_precision_that_will_be_used(tokenizer_command, monkeypatch, flags, environment, expected):
    """It said None where accelerate launch decides."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = without(tokenizer_command, "--mixed_precision")
    args = parse(TokenizerArgs, [*command, *flags, "--max_train_steps", "1"])
    assert f", precision {expected}\n" in report(build_tokenizer_trainer(args))


SLOW_PYTHON = """#!/bin/bash
echo "$2 $3" >>"$LOG"
trap 'echo saved >>"$LOG"; exit 143' TERM
sleep 30 &
wait
"""


def test_the_bundled_model_s_recipe_ends_in_time_and_lets_its_command_save(tmp_path):
    """On a machine that is lent for minutes, what is not saved by then is lost."""
    (tmp_path / "python").write_text(SLOW_PYTHON)
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(tmp_path / "log"), "SECONDS": "59"}
    script = ["bash", str(ROOT / "scripts" / "pretrain" / "metaworld-64-tiny.sh"), "--minutes", "1"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (124, "stopped after 1 minutes: run it again to go on\n")
    assert (tmp_path / "log").read_text() == "--tasks button-press-topdown-wall\nsaved\n"
    refused = subprocess.run([*script[:-1], "soon"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
