"""``python -m ivideogpt.training.export``: put a trained tokenizer and a trained transformer into one model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ivideogpt.errors import UserError, cli
from ivideogpt.files import read_json
from ivideogpt.flags import REQUIRED, SAMPLING_RULES, option, parse
from ivideogpt.runs.resume import RECORD

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Write a model folder. Without a transformer only its tokenizer, so that a transformer can be trained on that."""

    tokenizer: str = option(REQUIRED, "run folder of train_tokenizer.py, or the tokenizer's own")
    transformer: str | None = option(None, "run folder of train_gpt.py, or one of its checkpoints")
    output: str = option(REQUIRED, "model folder to write")
    dtype: str = option("float32", "precision of the files", choices=DTYPES)
    temperature: float | None = option(None, "default sampling temperature of the exported model")
    top_k: int | None = option(None, "default top-k of the exported model; 1 takes the likeliest tokens", minimum=1)
    sampling_rule: str | None = option(
        None, "expected_code: take the code nearest to the mean vector, unless users say other", choices=SAMPLING_RULES
    )

    def validate(self) -> None:
        chosen = ("temperature", "top_k", "sampling_rule")
        if self.transformer is None and (given := [f"--{name}" for name in chosen if getattr(self, name) is not None]):
            raise UserError(f"{', '.join(given)} does nothing without --transformer: a tokenizer alone samples nothing")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(ExportArgs, argv)
    import torch

    from ivideogpt.metadata import ModelMetadata
    from ivideogpt.pretrained import load_tokenizer, load_transformer, transformer_folder
    from ivideogpt.training.common.models import adapt_tokenizer
    from ivideogpt.world_model import WorldModel

    dtype = getattr(torch, args.dtype)
    tokenizer = load_tokenizer(args.tokenizer)
    if args.transformer is None:
        tokenizer.save_pretrained(Path(args.output) / "tokenizer", dtype)
        print(f"tokenizer: {args.output}")
        return
    folder = transformer_folder(args.transformer)
    metadata = ModelMetadata.read(folder)
    if metadata is None:
        raise UserError(f"{folder} has no ivideogpt.json: name a folder that train_gpt.py wrote")
    asked = dict(temperature=args.temperature, top_k=args.top_k, rule=args.sampling_rule)
    metadata = replace(metadata, generation=metadata.generation.with_flags(**asked))
    check_tokenizer(folder, tokenizer.state_dict())
    adapt_tokenizer(tokenizer, metadata.context_length, metadata.resolution, "name that of the transformer's run")
    layout = tokenizer.layout(metadata.segment_length - metadata.context_length)
    WorldModel(tokenizer, load_transformer(folder, layout), metadata).save_pretrained(args.output, dtype)
    print(f"model folder: {args.output}")


def check_tokenizer(transformer: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if the transformer's run, where it has a record, was on tokens of another tokenizer."""
    from ivideogpt.data.tokens.token_store import token_checksum

    folders = (transformer, *transformer.parents[:2])  # a checkpoint is in the run's folder, or in one of its folders
    record = next((folder / RECORD for folder in folders if (folder / RECORD).exists()), None)
    known = None if record is None else read_json(record).get("tokens_of")
    if known not in (None, token_checksum(tensors)):
        raise UserError(f"{record}: the transformer was trained on tokens of another tokenizer; name that one")


if __name__ == "__main__":
    cli(main)
