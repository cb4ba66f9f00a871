"""``python -m ivideogpt.data tokenize``: flags, read before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ivideogpt.errors import UserError
from ivideogpt.flags import ACTION_SPACES_HELP, ADAPTERS_HELP, REQUIRED, option, parse, redefine
from ivideogpt.training.common.args import ClipArgs


@dataclass(frozen=True, kw_only=True)
class TokenizeArgs:
    """Store every clip of a dataset as tokens."""

    pretrained_model_name_or_path: str = option(REQUIRED, "tokenizer folder or hub id")
    dataset_path: str | None = redefine(ClipArgs, "dataset_path", None)
    oxe_data_mixes_type: str = option("folder:*", "mix of datasets, whose weights do not count: every clip is stored")
    sthsth_root_path: str | None = redefine(ClipArgs, "sthsth_root_path", None)
    segment_length: int = option(16, "frames of a clip", minimum=1)
    context_length: int | None = option(None, "context frames (default: the tokenizer's)", minimum=1)
    video_stepsize: int = option(1, "distance of frames, in units of 3 Hz frames of each dataset", minimum=1)
    stride: int = option(1, "native frames from the start of a clip to the next one's", minimum=1)
    split: str = option("train", "split of the episodes", choices=("train", "test"))
    action_spaces: str | None = option(None, ACTION_SPACES_HELP)
    action_adapters: bool = option(False, ADAPTERS_HELP)
    num_passes: int = option(1, "copies of every clip: the first unchanged, all others augmented", minimum=1)
    strong_aug: bool = option(False, "stronger augmentation in the later passes")
    seed: int = option(0, "random seed of the augmentation", minimum=0)
    output: str = option(REQUIRED, "folder of the store; an unfinished one goes on")
    clips_per_shard: int = option(1024, "an interruption loses the work on one shard", minimum=1)
    batch_size: int = option(16, "clips at a time", minimum=1)
    dataloader_num_workers: int = option(0, "data worker processes", minimum=0)
    on_bad_episode: str = redefine(ClipArgs, "on_bad_episode", "error", help="a bad episode: stop, or leave it out")
    cache_mb: int = redefine(ClipArgs, "cache_mb", 64)
    mixed_precision: str = option("no", "tokens are those of float32", choices=("no", "bf16"), inert=True)
    device: str | None = option(None, "device of the tokenizer (default: cuda if available, else cpu)")

    def validate(self) -> None:
        """The tokenizer's context, which the segment length has to exceed, is not known yet."""
        if self.num_passes > 1 and self.split == "test":
            raise UserError("--num_passes augments, which --split test never is: store it in one pass")
        if self.action_adapters and self.action_spaces is None:
            raise UserError("--action_adapters needs --action_spaces")
        if self.strong_aug and self.num_passes == 1:
            raise UserError("--strong_aug is for the passes after the first: it needs --num_passes of at least 2")


def main(argv: Sequence[str]) -> None:
    args = parse(TokenizeArgs, argv)
    from ivideogpt.training.transformer.tokenize_dataset import tokenize

    tokenize(args)
