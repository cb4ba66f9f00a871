"""The one loader and saver of checkpoints: folders, hub ids, configs. Strict; float32 unless asked otherwise.

::

    <model>/ivideogpt.json                             what the model was trained on; absent in released ones
    <model>/tokenizer/config.json, diffusion_pytorch_model.safetensors
    <model>/transformer/config.json, model.safetensors

Action-conditioned transformers are recognised by the prefix ``llm.`` of their tensors, their heads by theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.files import write_text
from ivideogpt.layout import TokenLayout
from ivideogpt.model_configs import CONFIG_FILE, KINDS, config_file, described_by, read_config
from ivideogpt.state_dicts import (
    load_strict,
    read_tensors,
    resolve_folder,
    save_tensors,
    tensor_names,
    weights_file,
    without_values,
)
from ivideogpt.transformer import HeadModelWithAction, LlamaConfig, LlamaForCausalLM, rotary_embedding
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.vq_model.strict_model import WEIGHTS_FILE

logger = logging.getLogger(__name__)

Transformer: TypeAlias = LlamaForCausalLM | HeadModelWithAction

TOKENIZER_WEIGHTS = WEIGHTS_FILE
TRANSFORMER_WEIGHTS = "model.safetensors"
LLM_PREFIX = "llm."
PLAIN_PARTS = {"encoder", "quant_conv", "quantize", "post_quant_conv", "decoder"}
OPTIONAL_HEADS = ("reward_linear", "action_recon_linear", "success_linear")


# ---- folders and the hub


def model_folder(path_or_hub_id: str | Path) -> Path:
    """The parent of ``tokenizer/`` and ``transformer/``; the tokenizer's own folder may be given in its place."""
    folder = resolve_folder(path_or_hub_id)
    if not (folder / "tokenizer").is_dir() and (folder.resolve().parent / "transformer").is_dir():
        return folder.resolve().parent
    return folder


def tokenizer_folder(path_or_hub_id: str | Path) -> Path:
    """The folder of the tokenizer's files: of a model folder, of a training run's folder, or given directly."""
    folder = resolve_folder(path_or_hub_id)
    has_own = (folder / CONFIG_FILE).is_file()
    candidates = [folder / "tokenizer"] + ([] if has_own else [folder / "unwrapped_model"])
    return next((candidate for candidate in candidates if candidate.is_dir()), folder)


def transformer_folder(path_or_hub_id: str | Path) -> Path:
    """The folder of the transformer's files: of a model folder, or given directly."""
    folder = resolve_folder(path_or_hub_id)
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


# ---- tokenizer


def load_tokenizer(path_or_hub_id: str | Path, dtype: torch.dtype | None = None) -> CompressiveVQModel:
    """The tokenizer of a model folder, a run folder, its own folder, or a hub id, in eval mode."""
    folder = tokenizer_folder(path_or_hub_id)
    if (folder / TRANSFORMER_WEIGHTS).is_file() and not (folder / TOKENIZER_WEIGHTS).is_file():
        raise UserError(
            f"{folder} has a transformer and no tokenizer: make a model folder of both with python -m "
            f"ivideogpt.training.export --tokenizer <its tokenizer> --transformer {folder} --output <folder>"
        )
    return CompressiveVQModel.from_pretrained(folder, torch_dtype=dtype or torch.float32)


def is_plain_tokenizer(path_or_hub_id: str | Path) -> bool:
    """Return whether the folder holds an ordinary VQ-VAE, such as aMUSEd's: the context branch and nothing else."""
    file = tokenizer_folder(path_or_hub_id) / TOKENIZER_WEIGHTS
    return file.is_file() and {name.partition(".")[0] for name in tensor_names(file)} == PLAIN_PARTS


def initialise_from_plain_tokenizer(tokenizer: CompressiveVQModel, path_or_hub_id: str | Path) -> None:
    """Load an ordinary VQ-VAE into a new tokenizer. The future branch is a copy; the rest is logged."""
    file = tokenizer_folder(path_or_hub_id) / TOKENIZER_WEIGHTS
    may_lack = [name for name in tokenizer.state_dict() if name.partition(".")[0] not in PLAIN_PARTS]
    load_strict(tokenizer, read_tensors(file), str(file), may_lack)
    fresh = tokenizer.init_modules()
    logger.info("taken from %s: %s; starting fresh: %s", file, ", ".join(sorted(PLAIN_PARTS)), ", ".join(fresh))


# ---- transformer


def read_llama_config(path: str | Path) -> LlamaConfig:
    """The architecture in a config file, or in ``config.json`` of a folder; whatever else it says is ignored."""
    file, values = config_file(path), read_config(path)
    if values.get("model_type", "llama") != "llama":
        raise UserError(f"{file} describes a {values['model_type']} model, expected model_type llama")
    if values.get("tie_word_embeddings"):
        raise UserError(f"{file}: tie_word_embeddings is true, and this model's head has weights of its own: set false")
    # released configs also carry a half-precision dtype, token ids outside the vocabulary and generation settings
    names = KINDS.keys() & {field.name for field in fields(LlamaConfig)}
    with described_by(file):
        return LlamaConfig(**{name: value for name, value in values.items() if name in names})


def build_transformer(
    config: LlamaConfig,
    layout: TokenLayout,
    action_dim: int | None = None,
    reward_prediction: bool = False,
    action_recon: float | None = None,
    success_prediction: bool = False,
) -> Transformer:
    """Build a new transformer with random weights for clips of ``layout``, whose vocabulary replaces the config's.

    An ``action_dim`` makes it action-conditioned; heads exist for such models only. ``config`` is not changed.
    """
    config = deepcopy(config)
    config.vocab_size = layout.vocab_size
    llm = LlamaForCausalLM(config)
    if action_dim is None:
        return llm
    return HeadModelWithAction(
        llm,
        action_dim=action_dim,
        prelude_tokens_num=layout.prompt_length - 1,
        tokens_num_per_dyna=layout.dynamics_tokens,
        context=layout.context_frames,
        segment_length=layout.num_frames,
        reward_prediction=reward_prediction,
        action_recon=action_recon,
        success_prediction=success_prediction,
    )


def load_transformer(path_or_hub_id: str | Path, layout: TokenLayout, dtype: torch.dtype | None = None) -> Transformer:
    """Load the transformer of a model folder, its own folder, or a hub id, in eval mode.

    Args:
        layout: the tokenizer's, for clips of the model's segment length.
        dtype: float32 if not given, whatever the files say.
    """
    folder = transformer_folder(path_or_hub_id)
    config = read_llama_config(folder)
    if config.vocab_size != layout.vocab_size:
        raise UserError(
            f"the transformer in {folder} has a vocabulary of {config.vocab_size}, but the tokenizer's is "
            f"{layout.vocab_size} ({layout.context_codes} context codes + {layout.dynamics_codes} dynamics codes + "
            "2 separators); they do not belong together"
        )
    file = weights_file(folder, TRANSFORMER_WEIGHTS)
    tensors = read_tensors(file, dtype or torch.float32)
    with described_by(folder / CONFIG_FILE), without_values():
        transformer = build_transformer(config, layout, **_heads_in(tensors, file))
    load_strict(transformer, tensors, str(file), assign=True)
    model = language_model(transformer).model
    with described_by(folder / CONFIG_FILE):
        model.rotary_emb = rotary_embedding(config)  # no file stores the buffers
    return transformer.eval()


def initialise_transformer(
    transformer: Transformer, path_or_hub_id: str | Path, load_internal_llm: bool = False
) -> list[str]:
    """Load a starting point of training into a new transformer. Returns and logs the parts that the file lacks.

    Optional heads that the new transformer does not have are left out, and logged, too.
    ``load_internal_llm`` takes only the language model, from either kind of file, and ``action_linear`` if it fits.
    """
    file = weights_file(transformer_folder(path_or_hub_id), TRANSFORMER_WEIGHTS)
    tensors = read_tensors(file)
    if load_internal_llm:
        loaded = _load_internal_llm(transformer, tensors, file)
    else:
        kinds = {True: "action-conditioned", False: "action-free"}
        wanted = isinstance(transformer, HeadModelWithAction)
        if _is_action_conditioned(tensors) != wanted:
            raise UserError(
                f"{file} is {kinds[not wanted]} and the new transformer {kinds[wanted]}; "
                "load_internal_llm takes only the language model from it"
            )
        own, stored = ({_part(name) for name in names} for names in (transformer.state_dict(), tensors))
        unwanted = [head for head in OPTIONAL_HEADS if head in stored - own]
        for head in unwanted:
            logger.info("%s of %s is left out, as this run trains no such head", head, file)
        tensors = {name: tensor for name, tensor in tensors.items() if _part(name) not in unwanted}
        absent = set(OPTIONAL_HEADS) - stored
        may_lack = [name for name in transformer.state_dict() if _part(name) in absent]
        load_strict(transformer, tensors, str(file), may_lack)
        loaded = set(tensors)
    fresh = sorted({_part(name) for name in transformer.state_dict() if name not in loaded})
    for part in fresh:
        logger.info("%s is not taken from %s and starts fresh", part, file)
    return fresh


def _part(name: str) -> str:
    return name.partition(".")[0]


def save_transformer(
    transformer: nn.Module,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a transformer's folder. ``tensors`` stand in for its own, where it has only a part of them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG_FILE, language_model(transformer).config.to_json_string())
    save_tensors(transformer.state_dict() if tensors is None else tensors, folder / TRANSFORMER_WEIGHTS, dtype)


def language_model(transformer: nn.Module) -> LlamaForCausalLM:
    """Return the LLaMA itself, of either kind of transformer."""
    return transformer.llm if isinstance(transformer, HeadModelWithAction) else cast(LlamaForCausalLM, transformer)


def _heads_in(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """Return the heads of an action-conditioned file as arguments of :func:`build_transformer`."""
    if not _is_action_conditioned(tensors):
        return {}
    if "action_linear.weight" not in tensors:
        raise UserError(f"{file} has tensors that start with {LLM_PREFIX}, but lacks action_linear.weight")
    return dict(
        action_dim=tensors["action_linear.weight"].shape[-1],
        reward_prediction="reward_linear.weight" in tensors,
        success_prediction="success_linear.weight" in tensors,
        action_recon=1.0 if "action_recon_linear.weight" in tensors else None,  # the weight in the loss is in no file
    )


def _load_internal_llm(transformer: Transformer, tensors: Mapping[str, Tensor], file: Path) -> set[str]:
    """Load only the language model. Returns the names that were loaded, as the transformer calls them."""
    prefix = LLM_PREFIX if _is_action_conditioned(tensors) else ""
    llm_tensors = {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
    load_strict(language_model(transformer), llm_tensors, str(file))
    if not isinstance(transformer, HeadModelWithAction):
        return set(llm_tensors)
    loaded = {LLM_PREFIX + name for name in llm_tensors}
    prefix = "action_linear."
    linear = {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
    if "weight" in linear and linear["weight"].shape == transformer.action_linear.weight.shape:
        load_strict(transformer.action_linear, linear, f"action_linear of {file}")
        loaded |= {f"action_linear.{name}" for name in linear}
    return loaded


def _is_action_conditioned(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(LLM_PREFIX) for name in tensors)
