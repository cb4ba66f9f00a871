"""Flags of the training scripts, and the checks that they fit together."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

from ivideogpt.data.formats.registry import find_format
from ivideogpt.errors import UserError
from ivideogpt.flags import ACTION_SPACES_HELP, ADAPTERS_HELP, REQUIRED, option, parse, redefine
from ivideogpt.paths import I3D_FILE, LPIPS_FOLDER, here_or_in_project

__all__ = ["GptArgs", "TokenizerArgs", "option", "parse"]

# Flags that only affect clips read as pixels.
PIXEL_FLAGS = (
    *("oxe_data_mixes_type", "dataset_size", "sthsth_root_path", "video_stepsize", "strong_aug", "no_aug"),
    *("dataloader_num_workers", "on_bad_episode", "cache_mb"),
)
TRACKERS = ("tensorboard", "wandb", "trackio")
PRECISIONS = ("no", "fp16", "bf16")
MAX_SEED = 2**31  # numpy takes 32 bits, and each process adds its rank
HISTORIES = ("true", "own")
RULES = ("likeliest", "expected_code")
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")

# A flag of either script, another one that it needs, and why.
NEEDS = (
    ("align_to_context", "pretrained_model_name_or_path", "copies a trained branch: train without it first, then give"),
    ("decoders_only", "pretrained_model_name_or_path", "needs a trained tokenizer: give"),
    ("still_weight", "codebook_decay", "keeps a code vector at zero: it needs"),
    ("reward_prediction", "action_conditioned", "needs"),
    ("action_recon", "action_conditioned", "needs"),
    ("success_prediction", "action_conditioned", "needs"),
    ("action_spaces", "action_conditioned", "needs"),
    ("action_adapters", "action_spaces", "needs"),
    ("symlog", "reward_prediction", "transforms rewards: it needs"),
    ("load_internal_llm", "pretrained_transformer_path", "needs"),
    ("lora", "pretrained_transformer_path", "adapts a trained transformer: give"),
    ("eval_only", "pretrained_transformer_path", "needs a trained transformer: give"),
    ("eval_token_store", "token_store", "replaces the test split: it goes with"),
)
# A flag of either script that does nothing without another one, or one of several.
SAMPLING = ("use_frame_metrics", "use_fvd")
DOES_NOTHING_WITHOUT = (
    ("reward_weight", ("reward_prediction",)),
    ("success_weight", ("success_prediction",)),
    ("action_dim", ("action_conditioned",)),
    ("lora_r", ("lora",)),
    ("lora_alpha", ("lora",)),
    ("lora_dropout", ("lora",)),
    ("segment_horizon", ("rand_select", "rand_shuffle")),
    ("i3d_path", ("use_fvd",)),
    ("eval_generate_times", SAMPLING),
    ("max_generate_batchsize", SAMPLING),
    ("max_decode_batchsize", SAMPLING),
)
# Flags of the GAN loss from step disc_start on. The paper's recipes also give a learning rate for it, but never begin.
GAN = ("disc_weight", "disc_depth", "discriminator_config_name_or_path")
# Two flags that do not go together, and why.
CLASHES = (
    ("strong_aug", "no_aug", "contradict each other"),
    ("rand_select", "rand_shuffle", "exclude each other"),
    ("restart_dead_codes", "selected_params", "change codebooks and freeze them"),
    ("codebook_decay", "selected_params", "change codebooks and freeze them"),
    ("action_conditioned", "goal_conditioned", "exclude each other: clips that start with their goal have no actions"),
    ("use_eval_dataset", "goal_conditioned", "exclude each other: the benchmarks' clips do not start with their goal"),
    ("eval_only", "resume_from_checkpoint", "exclude each other: an evaluation is a run of its own"),
    ("token_store", "dataset_path", "are two sources of clips"),
    ("token_store", "goal_conditioned", "exclude each other: stored clips do not start with their goal"),
    *(
        ("token_store", name, "exclude each other: a store holds tokens alone, and frames are needed")
        for name in ("use_eval_dataset", "use_frame_metrics", "use_fvd", "eval_only")
    ),
)


# Flags are inherited, so each is declared once. --help lists the fields of the last base first, as dataclasses do.


@dataclass(frozen=True, kw_only=True)
class ClipArgs:
    """Flags of the training clips."""

    dataset_path: str | None = option(
        None,
        "folder that holds one folder of .npz episodes per dataset, "
        "lerobot:<folder or hub id>[@<camera>][,<folder>...], or lance:<uri>[,<uri>...]",
    )
    sthsth_root_path: str | None = option(None, "frame folders of Something-Something v2")
    video_stepsize: int = option(1, "distance of frames, in units of 3 Hz frames of each dataset", minimum=1)
    dataloader_num_workers: int = option(0, "data worker processes", minimum=0)
    on_bad_episode: str = option("error", "a bad episode: stop, or sample another one", choices=("error", "skip"))
    cache_mb: int = option(64, "megabytes per data worker to cache arrays of compressed episodes", minimum=0)
    oxe_data_mixes_type: str = option("frac", "named mix of datasets, or folder:<name>[,<name>...] or folder:*")
    dataset_size: int | None = option(None, "keep that many distinct episodes", minimum=1)
    resolution: int = option(256, "frames are resolution x resolution pixels", minimum=1)
    context_length: int = option(1, "context frames t of a clip")
    segment_length: int = option(5, "frames T of a clip, context included")
    strong_aug: bool = option(False, "stronger augmentation")
    no_aug: bool = option(False, "no augmentation")


@dataclass(frozen=True, kw_only=True)
class OptimisationArgs:
    """Flags of the optimizer and of the machine."""

    gradient_accumulation_steps: int = option(1, "batches per phase", minimum=1)
    max_train_steps: int = option(1_000_000, "finished phases, of generator and discriminator in turn", minimum=1)
    num_train_epochs: int = option(1, "the data stream is endless: use --max_train_steps", inert=True)
    learning_rate: float = option(1e-4, "learning rate of the tokenizer", minimum=0)
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass")
    compile: bool = option(False, "torch.compile: faster on a GPU in long runs, but the first steps are slow")
    seed: int | None = option(None, "random seed (default: a random one, recorded in run.json)", minimum=0)
    mixed_precision: str | None = option(None, "autocast precision (default: that of accelerate)", choices=PRECISIONS)
    lpips_path: str = option(LPIPS_FOLDER, "folder of the LPIPS weights (vgg.pth, vgg16-397923af.pth)")


@dataclass(frozen=True, kw_only=True)
class RecordArgs:
    """Flags of a run's outputs, and of the run to resume."""

    output_dir: str = option("vqgan-output", "parent of the run folders <date>-<exp_name>")
    exp_name: str = option("tokenizer", "name of the run")
    report_to: str = option("tensorboard", "trackers, comma-separated: tensorboard, wandb, trackio, all or none")
    tracker_project_name: str = option("vqgan-training", "project name in the trackers")
    logging_dir: str = option("logs", "folder of tracker files inside the run folder")
    log_steps: int = option(50, "steps between lines of metrics", minimum=1)
    validation_steps: int = option(5000, "steps between validations, the first after step 1", minimum=1)
    max_eval_iters: int = option(100, "batches of a validation", minimum=1)
    skip_first_val: bool = option(False, "no validation after step 1")
    checkpointing_steps: int = option(5000, "steps between checkpoints", minimum=1)
    keep_last_n: int | None = option(None, "keep only so many checkpoints (default: all)", minimum=1)
    latest_checkpoint_only: bool = option(False, "the same as --keep_last_n 1")
    resume_from_checkpoint: str | None = option(None, "a checkpoint, a run folder, or 'latest'")
    resume_with_changes: bool = option(False, "let a resumed run change flags that affect training; noted in run.json")

    @property
    def checkpoints_kept(self) -> int | None:
        return 1 if self.latest_checkpoint_only else self.keep_last_n

    @property
    def trackers(self) -> list[str]:
        asked = self.report_to.split(",")
        return [name for name in TRACKERS if name in asked or ("all" in asked and _is_installed(name))]


@dataclass(frozen=True, kw_only=True)
class TrialArgs:
    """Flags for trial runs."""

    debug: bool = option(False, "tiny model, a few steps, stand-ins for missing data and weights")
    dry_run: bool = option(False, "build everything, report sizes and memory, then stop")


@dataclass(frozen=True, kw_only=True)
class TokenizerModelArgs:
    """Flags of the tokenizer and of its initial weights."""

    pretrained_model_name_or_path: str | None = option(None, "tokenizer folder or hub id to start from")
    model_config_name_or_path: str | None = option(
        None, "config.json, or its folder, to train from scratch (default: chosen by --resolution)"
    )
    model_type: str = option("ctx_vqgan", "kind of tokenizer", choices=("ctx_vqgan",))
    selected_params: bool = option(False, "freeze both codebooks")
    decoders_only: bool = option(False, "freeze encoders and codebooks: transformers of their tokens stay valid")
    cross_attention_dropout: float = option(0.1, "dropout of attention to the context frames")
    align_to_context: bool = option(False, "OVERWRITE the future branch by the context's; encode differences to it")


@dataclass(frozen=True, kw_only=True)
class TokenizerLossArgs:
    """Flags of the tokenizer's loss, and of codebook updates without a loss."""

    vae_loss: str = option("l1", "reconstruction loss", choices=("l1", "l2"))
    recon_weight: float = option(1.0, "weight of the reconstruction loss", minimum=0)
    perc_weight: float = option(1.0, "weight of LPIPS; needs its weight files unless it is 0", minimum=0)
    balanced_loss: bool = option(False, "weight frames by F/T (future) and t/T (context) in reconstruction and LPIPS")
    motion_weight: float = option(0.0, "extra weight where a frame differs from the last context frame", minimum=0)
    gradient_weight: float = option(0.0, "weight of the difference of image gradients (sharpness)", minimum=0)
    still_weight: float = option(0.0, "penalty on latents where nothing moves, so that tokens tell changes", minimum=0)
    disc_start: int = option(0, "first step of the GAN loss")
    disc_weight: float = option(0.8, "weight of the GAN loss")
    disc_depth: int = option(4, "number of convolutions of the discriminator")
    discriminator_config_name_or_path: str | None = option(None, "initial weights, as in unwrapped_model/discriminator")
    codebook_decay: float = option(0.0, "update code vectors by EMA of their latents with this decay (0: by gradients)")
    restart_dead_codes: int = option(0, "every N steps, move unused codes to encoder outputs; start from data (0: off)")


@dataclass(frozen=True, kw_only=True)
class TokenizerArgs(TrialArgs, RecordArgs, OptimisationArgs, TokenizerLossArgs, ClipArgs, TokenizerModelArgs):
    """Flags of ``train_tokenizer.py``."""

    # Data
    segment_horizon: int = option(16, "frames to sample a segment from with --rand_select or --rand_shuffle", minimum=1)
    rand_select: bool = option(False, "sample future frames from the horizon, in order")
    rand_shuffle: bool = option(False, "sample all frames from the horizon, in random order")

    # Optimisation
    train_batch_size: int = option(16, "clips per device and batch", minimum=1)
    discr_learning_rate: float = option(1e-4, "learning rate of the discriminator", minimum=0)
    scale_lr: bool = option(False, "multiply learning rates by devices x batch size x accumulation steps")
    lr_scheduler: str = option("constant_with_warmup", "learning-rate schedule", choices=SCHEDULES)
    discr_lr_scheduler: str = option("constant_with_warmup", "schedule of the discriminator", choices=SCHEDULES)
    lr_warmup_steps: int = option(500, "warm-up in optimizer updates", minimum=0)
    adam_beta1: float = option(0.9, "AdamW")
    adam_beta2: float = option(0.999, "AdamW")
    adam_weight_decay: float = option(0.0, "AdamW", minimum=0)
    adam_epsilon: float = option(1e-8, "AdamW", minimum=0)
    max_grad_norm: float = option(1.0, "clip gradients to this norm", minimum=0)
    use_8bit_adam: bool = option(False, "8-bit AdamW; needs bitsandbytes")
    use_ema: bool = option(False, "validate and export an EMA of the weights (ema_model/ in checkpoints)")
    allow_tf32: bool = option(False, "TF32 matrix products on CUDA; convolutions keep PyTorch's default")
    channels_last: bool = option(False, "channels-last memory format of images and convolutions")

    # Record
    log_grad_norm_steps: int = option(500, "steps between records of the gradient norm of each part", minimum=1)
    log_image_steps: int = option(100, "steps between image grids of training clips", minimum=1)
    start_global_step: int = option(0, "start counting at this step", minimum=0)

    # No effect any more
    dataset_name: str = option("robotic", "only robotic video is supported", inert=True)
    cache_dir: str | None = option(None, "set HF_HOME instead", inert=True)
    local_rank: int = option(-1, "set by the launcher in the environment", inert=True)
    enable_xformers_memory_efficient_attention: bool = option(False, "torch's own attention is used", inert=True)
    weighted_mse: float | None = option(None, "see --motion_weight", inert=True)
    weighted_gan: bool = option(False, "gone", inert=True)

    def validate(self) -> None:
        _check_what_both_share(self, "start_global_step")
        _check_shares(self, "codebook_decay", "cross_attention_dropout", "adam_beta1", "adam_beta2")
        if (self.rand_select or self.rand_shuffle) and self.segment_horizon < self.segment_length:
            horizon, length = self.segment_horizon, self.segment_length
            raise UserError(f"--segment_horizon {horizon} has no room for --segment_length {length}")
        changing = ("restart_dead_codes", "codebook_decay", "align_to_context", "cross_attention_dropout")
        if self.decoders_only and (given := [f"--{name}" for name in changing if getattr(self, name)]):
            raise UserError(
                f"--decoders_only keeps tokens as they are, {', '.join(given)} would change them: set to 0 or drop"
            )
        if self.use_8bit_adam and not _is_installed("bitsandbytes"):
            raise UserError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes, or leave the flag out")
        if self.use_8bit_adam and self.restart_dead_codes and not self.codebook_decay:
            raise UserError(
                "--restart_dead_codes clears the moments of code vectors, which --use_8bit_adam packs: drop one, or "
                "take the code vectors from the optimizer with --codebook_decay 0.99"
            )
        if self.disc_start < self.max_train_steps:
            self._check_discriminator()
        elif given := [f"--{name}" for name in GAN if getattr(self, name) != getattr(type(self), name)]:
            asked = f"--disc_start {self.disc_start} and --max_train_steps {self.max_train_steps}"
            warnings.warn(f"{', '.join(given)} does nothing: {asked} leave no step for the GAN loss", stacklevel=3)

    def _check_discriminator(self) -> None:
        size = self.resolution // 2**self.disc_depth
        if self.disc_depth < 1 or size < 2:
            raise UserError(
                f"--disc_depth {self.disc_depth} leaves {size} x {size} logits of frames at --resolution "
                f"{self.resolution}; give a depth of at least 1 that leaves 2 x 2"
            )
        weights = self.discriminator_config_name_or_path
        if weights is not None and not Path(weights).is_file():
            raise UserError(f"--discriminator_config_name_or_path {weights}: no such file")


@dataclass(frozen=True, kw_only=True)
class GptModelArgs:
    """Flags of the transformer and of its initial weights."""

    pretrained_model_name_or_path: str = option(REQUIRED, "trained tokenizer: folder or hub id")
    vqgan_type: str = option("ctx_vqgan", "kind of tokenizer", choices=("ctx_vqgan",))
    config_name: str = option("configs/llama/config.json", "architecture; initial weights bring their own")
    pretrained_transformer_path: str | None = option(None, "folder of initial weights, model.safetensors")
    load_internal_llm: bool = option(False, "take only the language model from --pretrained_transformer_path")
    stale_tokens: float = option(
        0.0, "history corruption: replace up to this share of history tokens by older ones, so that actions matter"
    )
    history: str = option(
        "true", "own: train on histories of the model's own tokens; true: less --stale_tokens", choices=HISTORIES
    )
    history_passes: int = option(3, "--history own: passes that replace tokens by the model's choice", minimum=1)
    history_from_start: float = option(
        0.6, "--history own: share of clips replaced from the first future frame; others from a random one", minimum=0
    )
    history_rule: str = option("likeliest", "--history own: likeliest code, or next to the mean vector", choices=RULES)
    llama_attn_drop: float | None = option(None, "attention dropout (default: that of the config)")
    action_conditioned: bool = option(False, "condition each frame on an action")
    action_dim: int = option(4, "dimension of the actions", minimum=1)
    action_spaces: str | None = option(None, f"{ACTION_SPACES_HELP}; --action_dim is not needed then")
    action_adapters: bool = option(False, ADAPTERS_HELP)
    action_recon: float | None = option(None, "weight of the reconstruction of actions", minimum=0)
    reward_prediction: bool = option(False, "predict rewards")
    success_prediction: bool = option(False, "predict the probability that a step succeeds (array success)")
    reward_weight: float = option(1.0, "weight of the reward's squared error beside the cross-entropy", minimum=0)
    success_weight: float = option(1.0, "weight of the success's cross-entropy", minimum=0)
    symlog: bool = option(False, "predict the symmetric logarithm of rewards")
    goal_conditioned: bool = option(False, "the first frame is the goal")
    lora: bool = option(False, "train only low-rank adapters of --pretrained_transformer_path, and the heads")
    lora_r: int = option(8, "rank of the adapters", minimum=1)
    lora_alpha: float = option(32, "scale of the adapters, divided by their rank", minimum=1)
    lora_dropout: float = option(0.0, "dropout of the adapters")
    token_store: str | None = option(None, "train from stored tokens instead of pixels: <folder>[,<folder>...]")
    eval_token_store: str | None = option(None, "such tokens of the test split, for validation with --token_store")


@dataclass(frozen=True, kw_only=True)
class GenerationArgs:
    """Flags of validations that sample futures."""

    use_eval_dataset: bool = option(False, "validate on the benchmark's evaluation clips instead of random clips")
    use_frame_metrics: bool = option(False, "validations also score sampled futures: PSNR, SSIM, MSE, LPIPS")
    use_fvd: bool = option(False, "validations also score sampled futures by FVD, which needs --i3d_path")
    eval_only: bool = option(False, "validate --pretrained_transformer_path once; needs no training data")
    i3d_path: str = option(I3D_FILE, "I3D network for FVD")
    eval_generate_times: int = option(1, "sampled futures per clip; the best one is scored", minimum=1)
    max_generate_batchsize: int | None = option(None, "futures sampled at a time (default: all of a batch)", minimum=1)
    max_decode_batchsize: int | None = option(None, "batch size of LPIPS in frames, and of I3D in clips", minimum=1)
    log_gif_interval: int = option(10, "validation batches between GIFs of sampled futures", minimum=1)


@dataclass(frozen=True, kw_only=True)
class GptArgs(TrialArgs, GenerationArgs, RecordArgs, OptimisationArgs, ClipArgs, GptModelArgs):
    """Flags of ``train_gpt.py``."""

    # Flags shared with the tokenizer, with other defaults
    oxe_data_mixes_type: str = redefine(ClipArgs, "oxe_data_mixes_type", "select")
    segment_length: int = redefine(ClipArgs, "segment_length", 2)
    dataloader_num_workers: int = redefine(ClipArgs, "dataloader_num_workers", 4)
    gradient_accumulation_steps: int = redefine(
        OptimisationArgs, "gradient_accumulation_steps", 1, help="batches per optimizer update"
    )
    max_train_steps: int = redefine(OptimisationArgs, "max_train_steps", 1_000_000, help="optimizer updates")
    learning_rate: float = redefine(OptimisationArgs, "learning_rate", 5e-5, help="peak learning rate")
    output_dir: str = redefine(RecordArgs, "output_dir", "trm-output")
    exp_name: str = redefine(RecordArgs, "exp_name", "transformer")
    tracker_project_name: str = redefine(RecordArgs, "tracker_project_name", "trm-training")
    log_steps: int = redefine(RecordArgs, "log_steps", 100)

    # Optimisation
    per_device_train_batch_size: int = option(8, "clips per device and batch", minimum=1)
    per_device_eval_batch_size: int | None = option(None, "the same in validation (default: training's)", minimum=1)
    weight_decay: float = option(0.0, "AdamW", minimum=0)
    embed_no_wd: bool = option(False, "no weight decay on biases, norms and the input embedding")
    lr_scheduler_type: str = option("constant_with_warmup", "learning-rate schedule", choices=SCHEDULES)
    num_warmup_steps: int = option(5000, "warm-up in optimizer updates", minimum=0)
    max_grad_norm: float | None = option(None, "clip gradients to this norm (default: no clipping)", minimum=0)

    # Record
    with_tracking: bool = option(True, "report to trackers")
    start_completed_steps: int = option(0, "start counting at this step", minimum=0)

    # No effect any more
    special_token: bool = option(False, "separators are always used", inert=True)
    trust_remote_code: bool = option(False, "no remote code is ever run", inert=True)

    def validate(self) -> None:
        _check_what_both_share(self, "start_completed_steps")
        _check_shares(self, "llama_attn_drop", "stale_tokens", "lora_dropout")
        self._check_history()
        if self.lora and not _is_installed("peft"):
            raise UserError("--lora needs peft: pip install -e '.[lora]'")
        if self.token_store is not None and self.token_store == self.eval_token_store:
            raise UserError("--eval_token_store is --token_store: validating clips of the training says nothing")
        if not self.config_path.exists():
            raise UserError(f"--config_name {self.config_name}: no such file")
        given = [f"--{name}" for name in PIXEL_FLAGS if getattr(self, name) != getattr(GptArgs, name)]
        if self.token_store and given:
            warnings.warn(f"with --token_store, which holds whole clips, {', '.join(given)} does nothing", stacklevel=3)

    def _check_history(self) -> None:
        if self.history_from_start > 1:
            raise UserError(f"--history_from_start is {self.history_from_start}: a share is at most 1")
        if self.history == "own" and self.stale_tokens:
            raise UserError("--history own and --stale_tokens both change the history: give one")
        if self.history == "own" and self.gradient_checkpointing:
            raise UserError("--history own needs a key-value cache, which --gradient_checkpointing rules out: drop one")
        names = [field.name for field in fields(self) if field.name.startswith("history_")]
        given = [f"--{name}" for name in names if getattr(self, name) != getattr(type(self), name)]
        if given and self.history != "own":
            raise UserError(f"{', '.join(given)} does nothing without --history own")

    @property
    def trackers(self) -> list[str]:
        return super().trackers if self.with_tracking else []

    @property
    def eval_batch_size(self) -> int:
        return self.per_device_eval_batch_size or self.per_device_train_batch_size

    @property
    def scores_samples(self) -> bool:
        """Tell whether validations sample futures."""
        return self.use_frame_metrics or self.use_fvd

    @property
    def config_path(self) -> Path:
        """Path of the architecture; without ``--config_name`` that of the initial weights, if they come with one."""
        if self.config_name == GptArgs.config_name and self.pretrained_transformer_path is not None:
            start = Path(self.pretrained_transformer_path)
            beside = (start / "transformer" / "config.json", start / "config.json")
            return next((path for path in beside if path.is_file()), here_or_in_project(self.config_name))
        return here_or_in_project(self.config_name)


def _check_what_both_share(args: TokenizerArgs | GptArgs, start: str) -> None:
    for name, needed, reason in NEEDS:
        if getattr(args, name, None) and not getattr(args, needed):
            raise UserError(f"--{name} {reason} --{needed}")
    for name, other, reason in CLASHES:
        if getattr(args, name, None) and getattr(args, other):
            raise UserError(f"--{name} and --{other} {reason}: give one")
    if not 1 <= args.context_length < args.segment_length:
        raise UserError(
            f"--context_length {args.context_length} and --segment_length {args.segment_length}: a clip needs at least "
            "one context frame and one future frame, so 1 <= context_length < segment_length"
        )
    if getattr(args, start) >= args.max_train_steps:
        raise UserError(
            f"--{start} {getattr(args, start)} leaves no step to do: --max_train_steps is {args.max_train_steps}, and "
            "counts from 0"
        )
    if args.max_grad_norm == 0:
        raise UserError("--max_grad_norm 0 would leave nothing of any gradient: give a large number for no limit")
    if "/" in args.exp_name:
        raise UserError(f"--exp_name {args.exp_name}: it is part of a folder's name, so it cannot have a slash")
    for name, others in DOES_NOTHING_WITHOUT:
        if getattr(args, name, None) != getattr(type(args), name, None) and not any(map(vars(args).get, others)):
            flags = " or ".join(f"--{other}" for other in others)
            warnings.warn(f"--{name} {getattr(args, name)} does nothing without {flags}", stacklevel=4)
    if args.seed is not None and args.seed >= MAX_SEED:
        raise UserError(f"--seed is {args.seed}: it must be less than {MAX_SEED}")
    for name in args.report_to.split(","):
        if name not in (known := (*TRACKERS, "all", "none")):
            raise UserError(f"--report_to {name}: expected {', '.join(known)}, or several with commas between them")
        if name not in ("all", "none") and not _is_installed(name):
            raise UserError(f"--report_to {name}: the package is not installed; pip install {name}, or choose another")
    if find_format(args.dataset_path) and args.oxe_data_mixes_type != type(args).oxe_data_mixes_type:
        warnings.warn(
            f"--oxe_data_mixes_type {args.oxe_data_mixes_type} has no effect: --dataset_path says what to train on",
            stacklevel=4,
        )


def _check_shares(args: TokenizerArgs | GptArgs, *names: str) -> None:
    """Check dropout and decay, which must be less than 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 0 and less than 1")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # the module is set to None in sys.modules
        return False
