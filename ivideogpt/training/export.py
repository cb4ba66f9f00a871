"""``python -m ivideogpt.training.export``: put a trained tokenizer and a trained transformer into one model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ivideogpt.errors import UserError, cli
from ivideogpt.flags import REQUIRED, SAMPLING_RULES, option, parse

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
        """Accept any combination."""


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(ExportArgs, argv)
    import torch

    from ivideogpt.metadata import ModelMetadata
    from ivideogpt.pretrained import load_tokenizer, load_transformer, transformer_folder
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
    layout = tokenizer.layout(metadata.segment_length - metadata.context_length)
    WorldModel(tokenizer, load_transformer(folder, layout), metadata).save_pretrained(args.output, dtype)
    print(f"model folder: {args.output}")


if __name__ == "__main__":
    cli(main)
