"""Flags: every documented one exists with its default, and what cannot work is refused in one line."""

import dataclasses
import re
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from ivideogpt.errors import UserError
from ivideogpt.training.common.args import (
    ClipArgs,
    GptArgs,
    OptimisationArgs,
    RecordArgs,
    TokenizerArgs,
    TrialArgs,
    parse,
)
from ivideogpt.training.export import ExportArgs
from tests.documented import ROOT

GPT = ["--pretrained_model_name_or_path", "tokenizer"]
SHARED = (ClipArgs, OptimisationArgs, RecordArgs, TrialArgs)
NO_GAN = ["--disc_start", "1000005"]

# The published command lines: name -> default.
TOKENIZER_FLAGS = {
    "log_grad_norm_steps": 500, "log_steps": 50, "validation_steps": 5000, "log_image_steps": 100, "vae_loss": "l1",
    "pretrained_model_name_or_path": None, "model_config_name_or_path": None, "dataset_name": "robotic",
    "discriminator_config_name_or_path": None, "output_dir": "vqgan-output", "cache_dir": None, "seed": None,
    "resolution": 256, "train_batch_size": 16, "num_train_epochs": 1, "max_train_steps": 1000000,
    "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "discr_learning_rate": 1e-4,
    "learning_rate": 1e-4, "scale_lr": False, "lr_scheduler": "constant_with_warmup",
    "discr_lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 500, "use_8bit_adam": False, "allow_tf32": False,
    "use_ema": False, "dataloader_num_workers": 0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_weight_decay": 0,
    "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "logging_dir": "logs", "mixed_precision": None,
    "report_to": "tensorboard", "local_rank": -1, "checkpointing_steps": 5000, "resume_from_checkpoint": None,
    "enable_xformers_memory_efficient_attention": False, "tracker_project_name": "vqgan-training",
    "segment_length": 5, "context_length": 1, "segment_horizon": 16, "video_stepsize": 1, "rand_select": False,
    "rand_shuffle": False, "model_type": "ctx_vqgan", "dataset_path": None, "dataset_size": None, "weighted_mse": None,
    "weighted_gan": False, "disc_start": 0, "disc_weight": 0.8, "latest_checkpoint_only": False, "disc_depth": 4,
    "perc_weight": 1.0, "recon_weight": 1.0, "oxe_data_mixes_type": "frac", "strong_aug": False,
    "sthsth_root_path": None, "skip_first_val": False, "start_global_step": 0, "balanced_loss": False,
    "selected_params": False, "no_aug": False, "exp_name": "tokenizer",
}  # fmt: skip
GPT_FLAGS = {
    "config_name": "configs/llama/config.json", "llama_attn_drop": None, "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": None, "learning_rate": 5e-5, "weight_decay": 0.0, "num_train_epochs": 1,
    "max_train_steps": 1000000, "gradient_accumulation_steps": 1, "lr_scheduler_type": "constant_with_warmup",
    "num_warmup_steps": 5000, "output_dir": "trm-output", "seed": None, "vqgan_type": "ctx_vqgan",
    "pretrained_transformer_path": None, "load_internal_llm": False, "trust_remote_code": False,
    "checkpointing_steps": 5000, "resume_from_checkpoint": None, "with_tracking": True, "report_to": "tensorboard",
    "mixed_precision": None, "exp_name": "transformer", "lora": False, "lora_r": 8, "lora_alpha": 32,
    "lora_dropout": 0.0, "gradient_checkpointing": False, "max_grad_norm": None, "reward_prediction": False,
    "start_completed_steps": 0, "action_recon": None, "segment_length": 2, "context_length": 1, "video_stepsize": 1,
    "dataset_path": None, "dataset_size": None, "sthsth_root_path": None, "resolution": 256,
    "dataloader_num_workers": 4, "strong_aug": False, "no_aug": False, "oxe_data_mixes_type": "select",
    "log_steps": 100, "validation_steps": 5000, "skip_first_val": False, "latest_checkpoint_only": False,
    "special_token": False, "action_conditioned": False, "action_dim": 4, "embed_no_wd": False,
    "goal_conditioned": False, "max_eval_iters": 100, "use_eval_dataset": False,
    "i3d_path": "pretrained_models/i3d/i3d_torchscript.pt", "use_frame_metrics": False, "use_fvd": False,
    "eval_generate_times": 1, "max_generate_batchsize": None, "max_decode_batchsize": None, "eval_only": False,
    "log_gif_interval": 10,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "flags"), [(TokenizerArgs, TOKENIZER_FLAGS), (GptArgs, GPT_FLAGS)])
def test_documented_flags_keep_their_defaults(kind, flags):
    """A recipe that leaves a flag out must mean what it meant."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    assert {name: defaults.get(name, "absent") for name in flags} == flags


def test_flags_of_both_scripts_are_declared_once():
    """A help text, a choice or a check that is changed for one script and forgotten for the other."""
    tokenizer, gpt = ({field.name: field for field in dataclasses.fields(kind)} for kind in (TokenizerArgs, GptArgs))
    both = tokenizer.keys() & gpt.keys() - {"pretrained_model_name_or_path", "max_grad_norm"}  # optional in one of them
    shared = {name for base in SHARED for name in (field.name for field in dataclasses.fields(base))}
    assert both == shared
    for name in both:
        one, other = (dict(field.metadata) | {"help": ""} for field in (tokenizer[name], gpt[name]))
        assert one == other, name


def test_values_have_the_types_of_their_fields():
    args = parse(
        TokenizerArgs, [*NO_GAN, "--learning_rate", "5e-4", "--seed", "3", "--rand_select", "--vae_loss", "l2"]
    )
    assert (args.learning_rate, args.seed, args.rand_select, args.vae_loss) == (5e-4, 3, True, "l2")
    assert parse(GptArgs, [*GPT, "--with_tracking", "False"]).with_tracking is False


@pytest.mark.parametrize(
    ("kind", "argv", "message"),
    [
        (TokenizerArgs, ["--resolution", "64", "--disc_depth", "6"], "--disc_depth 6 leaves 1 x 1"),
        (TokenizerArgs, ["--discriminator_config_name_or_path", "nowhere.pth"], "nowhere.pth: no such file"),
        (TokenizerArgs, ["--context_length", "5", *NO_GAN], "context_length 5 and --segment_length 5"),
        (TokenizerArgs, ["--rand_select", "--rand_shuffle", *NO_GAN], "give one"),
        (TokenizerArgs, ["--rand_select", "--segment_length", "20", *NO_GAN], "--segment_horizon 16"),
        (TokenizerArgs, ["--model_type", "vqgan", *NO_GAN], "ctx_vqgan"),
        (TokenizerArgs, ["--train_batch_size", "0", *NO_GAN], "--train_batch_size is 0: it must be at least 1"),
        (TokenizerArgs, ["--recon_weight", "nan", *NO_GAN], "--recon_weight is nan: expected a finite number"),
        (TokenizerArgs, ["--seed", "x", *NO_GAN], "invalid int value: 'x'"),
        (TokenizerArgs, ["--seed", "-1", *NO_GAN], "--seed is -1: it must be at least 0"),
        (TokenizerArgs, ["--seed", str(2**32), *NO_GAN], "--seed is 4294967296: it must be less than"),
        (TokenizerArgs, ["--dataset_size", "0", *NO_GAN], "--dataset_size is 0: it must be at least 1"),
        (TokenizerArgs, ["--dataloader_num_workers", "-1", *NO_GAN], "--dataloader_num_workers is -1"),
        (
            TokenizerArgs,
            ["--cross_attention_dropout", "1.5", *NO_GAN],
            "--cross_attention_dropout is 1.5: .* less than 1",
        ),
        (TokenizerArgs, ["--codebook_decay", "1", *NO_GAN], "--codebook_decay is 1.0: .* less than 1"),
        (TokenizerArgs, ["--still_weight", "1", *NO_GAN], "--still_weight .* needs --codebook_decay"),
        (TokenizerArgs, ["--align_to_context", *NO_GAN], "--pretrained_model_name_or_path"),
        (TokenizerArgs, ["--decoders_only", *NO_GAN], "--pretrained_model_name_or_path"),
        (
            TokenizerArgs,
            ["--decoders_only", "--pretrained_model_name_or_path", "x", *NO_GAN],
            "--cross_attention_dropout would change them",
        ),
        (TokenizerArgs, ["--no_aug", "--strong_aug", *NO_GAN], "--strong_aug and --no_aug"),
        (TokenizerArgs, ["--on_bad_episode", "ignore", *NO_GAN], "'error', 'skip'"),
        (GptArgs, [*GPT, "--cache_mb", "-1"], "--cache_mb is -1"),
        (TokenizerArgs, ["--learning_rat", "1", *NO_GAN], "unrecognized arguments: --learning_rat"),
        (GptArgs, [], "--pretrained_model_name_or_path"),
        (GptArgs, [*GPT, "--lora"], "--lora adapts a trained transformer: give --pretrained_transformer_path"),
        (GptArgs, [*GPT, "--lora_dropout", "1"], "--lora_dropout is 1.0"),
        (GptArgs, [*GPT, "--no_aug", "--strong_aug"], "--strong_aug and --no_aug"),
        (GptArgs, [*GPT, "--history", "own", "--stale_tokens", "0.5"], "--history own and --stale_tokens"),
        (GptArgs, [*GPT, "--history", "own", "--history_from_start", "1.5"], "--history_from_start is 1.5"),
        (GptArgs, [*GPT, "--history", "own", "--gradient_checkpointing"], "--gradient_checkpointing rules out"),
        (GptArgs, [*GPT, "--history_passes", "2"], "--history_passes does nothing without --history own"),
        (GptArgs, [*GPT, "--llama_attn_drop", "-0.1"], "--llama_attn_drop is -0.1"),
        (
            GptArgs,
            [*GPT, "--token_store", "a", "--goal_conditioned"],
            "_store and --goal_conditioned .* start with their goal",
        ),
        (GptArgs, [*GPT, "--eval_token_store", "a"], "goes with --token_store"),
        (GptArgs, [*GPT, "--eval_only"], "--eval_only needs a trained transformer"),
        (GptArgs, [*GPT, "--token_store", "a", "--use_eval_dataset"], "--use_eval_dataset .* frames are needed"),
        (GptArgs, [*GPT, "--use_eval_dataset", "--goal_conditioned"], "do not start with their goal"),
        (GptArgs, [*GPT, "--start_completed_steps", "1000000"], "leaves no step to do"),
        (TokenizerArgs, [*NO_GAN, "--start_global_step", "9", "--max_train_steps", "9"], "leaves no step to do"),
        (GptArgs, [*GPT, "--reward_prediction"], "needs --action_conditioned"),
        (GptArgs, [*GPT, "--action_conditioned", "--goal_conditioned"], "--goal_conditioned"),
        (GptArgs, [*GPT, "--token_store", "a", "--dataset_path", "b"], "give one"),
        (GptArgs, [*GPT, "--load_internal_llm"], "--pretrained_transformer_path"),
        (GptArgs, [*GPT, "--config_name", "nowhere.json"], "nowhere.json"),
        (GptArgs, [*GPT, "--max_grad_norm", "0"], "--max_grad_norm 0 would leave nothing of any gradient"),
        (GptArgs, [*GPT, "--exp_name", "a/b"], "--exp_name a/b: .* cannot have a slash"),
        (GptArgs, [*GPT, "--token_store", "a", "--eval_token_store", "a"], "--eval_token_store is --token_store"),
        (TokenizerArgs, ["--discr_learning_rate", "-1", *NO_GAN], "--discr_learning_rate is -1.0"),
    ],
)
def test_refused(kind, argv, message):
    """Wrong flags cost hours if they are noticed after the data is loaded, or never."""
    with pytest.raises(UserError, match=message):
        parse(kind, argv)


def test_8bit_adam_needs_a_package_and_leaves_code_vectors_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        parse(TokenizerArgs, ["--use_8bit_adam", *NO_GAN])
    found = ModuleType("bitsandbytes")
    found.__spec__ = ModuleSpec("bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", found)
    with pytest.raises(UserError, match=r"--codebook_decay 0\.99"):
        parse(TokenizerArgs, ["--use_8bit_adam", "--restart_dead_codes", "9", *NO_GAN])


def test_a_tokenizer_is_exported_without_sampling():
    with pytest.raises(UserError, match="--temperature, --top_k does nothing without --transformer"):
        parse(ExportArgs, ["--tokenizer", "a", "--output", "b", "--top_k", "3", "--temperature", "0.5"])


def test_inert_flags_warn():
    """Nothing that the user asks for is ignored in silence."""
    with pytest.warns(UserWarning, match="--special_token has no effect"):
        parse(GptArgs, [*GPT, "--special_token"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse(GptArgs, GPT)


@pytest.mark.parametrize(
    ("kind", "argv", "message"),
    [
        (
            GptArgs,
            [*GPT, "--token_store", "a", "--no_aug", "--dataset_size", "9"],
            "--dataset_size, --no_aug does nothing",
        ),
        (GptArgs, [*GPT, "--reward_weight", "2"], "--reward_weight 2.0 does nothing without --reward_prediction"),
        (GptArgs, [*GPT, "--action_dim", "7"], "--action_dim 7 does nothing without --action_conditioned"),
        (
            GptArgs,
            [*GPT, "--eval_generate_times", "9"],
            "--eval_generate_times 9 does nothing without --use_frame_metrics or --use_fvd",
        ),
        (
            TokenizerArgs,
            [*NO_GAN, "--segment_horizon", "20"],
            "--segment_horizon 20 does nothing without --rand_select or --rand_shuffle",
        ),
        (
            TokenizerArgs,
            [*NO_GAN, "--disc_weight", "2", "--discriminator_config_name_or_path", "weights"],
            "--disc_weight, --discriminator_config_name_or_path does nothing: --disc_start 1000005",
        ),
        (
            GptArgs,
            [*GPT, "--dataset_path", "lerobot:a", "--oxe_data_mixes_type", "bair"],
            "--oxe_data_mixes_type bair has no effect",
        ),
    ],
)
def test_flags_that_others_make_useless_warn(kind, argv, message):
    with pytest.warns(UserWarning, match=message):
        parse(kind, argv)


def test_default_config_is_found_from_anywhere(tmp_path, monkeypatch):
    """A default must not depend on the folder that the command is run from."""
    monkeypatch.chdir(tmp_path)
    assert parse(GptArgs, GPT).config_path.is_file()


def test_initial_weights_bring_their_architecture(tmp_path):
    """Fine-tuning a model of another size failed with a list of tensors that did not fit."""
    (tmp_path / "config.json").write_text("{}")
    weights = ["--pretrained_transformer_path", str(tmp_path)]
    assert parse(GptArgs, [*GPT, *weights]).config_path == tmp_path / "config.json"
    named = parse(GptArgs, [*GPT, *weights, "--config_name", "configs/llama/config_tiny.json"])
    assert named.config_path.name == "config_tiny.json"
    (tmp_path / "transformer").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "transformer" / "config.json")  # a model's folder
    assert parse(GptArgs, [*GPT, *weights]).config_path == tmp_path / "transformer" / "config.json"
    (tmp_path / "transformer" / "config.json").unlink()
    assert parse(GptArgs, [*GPT, *weights]).config_path.name == "config.json"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~/a", "/home/me/a"), ("~", "/home/me"), ("lerobot:~/a,~/b@front", "lerobot:/home/me/a,/home/me/b@front"),
        ("a~", "a~"), ("a/~/b", "a/~/b"), ("~nobody_at_all/a", "~nobody_at_all/a"),
    ],
)  # fmt: skip
def test_the_home_folder_is_found_in_every_form_of_a_flag(given, meant, monkeypatch):
    """Shells leave it alone behind "=", and a folder named ~ was made."""
    monkeypatch.setenv("HOME", "/home/me")
    for argv in ([f"--dataset_path={given}"], ["--dataset_path", given]):
        assert parse(GptArgs, [*GPT, *argv]).dataset_path == meant


def test_no_command_has_a_parser_of_its_own():
    """What the shared one does, such as finding the home folder, would be missing there."""
    own = re.compile(r"argparse\.ArgumentParser\(")
    folders = [ROOT / name for name in ("ivideogpt", "mbrl", "inference", "datasets")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path for path in files if own.search(path.read_text())] == []
