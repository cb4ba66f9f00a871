"""``--debug`` and ``--dry_run``: any command can be tried on any machine, and every recipe is."""

import inspect
import json
import subprocess
from pathlib import Path

import pytest
from diffusers import VQModel

from ivideogpt.flags import parse
from ivideogpt.training.args import GptArgs, TokenizerArgs
from ivideogpt.training.build_gpt import build_gpt_trainer
from ivideogpt.training.build_tokenizer import build_tokenizer_trainer
from ivideogpt.training.debug import tiny_gpt_run, tiny_tokenizer_run
from ivideogpt.training.dry_run import report
from tests.training.runs import fit, metrics_of

ROOT = Path(__file__).parents[2]
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


def commands_of(recipe: str, output: Path, *flags: str) -> list[tuple[str, list[str]]]:
    """The commands that a recipe would launch: script and arguments."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LAUNCH": r"printf %s\n",
        "DATASET_PATH": str(output / "no-data"),
        "TOKENIZER_RUNS": str(output),
        "TRANSFORMER_RUNS": str(output),
        "EVALUATION_RUNS": str(output),
        "MIXED_PRECISION": "no",
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
    """Without data to train on; scores go to metrics.jsonl, and the weights stay where they are."""
    monkeypatch.chdir(ROOT)
    ((_, argv),) = commands_of(f"evaluation/{recipe}", tmp_path, "--debug", "--report_to", "none")
    trainer = build_gpt_trainer(tiny_gpt_run(parse(GptArgs, argv)))
    with trainer.run:
        trainer.evaluate()
    validation, evaluation = metrics_of(trainer.run.directory)
    assert "perplexity" in validation
    assert {"psnr", "ssim", "mse", "copy_psnr"} <= evaluation.keys()
    assert (trainer.run.directory / "evaluation" / "report.md").is_file()
    assert not list(trainer.run.directory.rglob("*.safetensors"))
    assert (tmp_path / f"{recipe.removesuffix('.sh')}-eval.log").is_file()


def trained(script: str, argv: list[str]) -> Path:
    kind, tiny, build = COMMANDS[script]
    return fit(build(tiny(parse(kind, argv))))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe, tmp_path, monkeypatch, fresh_accelerator):
    """Both commands of every published recipe train, on stand-ins for data and weights that nobody here has."""
    monkeypatch.chdir(ROOT)
    commands = commands_of(recipe, tmp_path, "--debug", "--report_to", "none")
    assert [script for script, _ in commands] == list(COMMANDS)
    for script, argv in commands:
        run = trained(script, argv)
        assert any(line["split"] == "validation" for line in metrics_of(run))


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
