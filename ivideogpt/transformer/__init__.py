"""The transformer: tokens and actions to next tokens and rewards."""

from ivideogpt.transformer.action_model import HeadModelWithAction
from ivideogpt.transformer.backends.cuda_graph import GraphPool
from ivideogpt.transformer.decoder import FrameDecoder
from ivideogpt.transformer.frame_model import FrameModel
from ivideogpt.transformer.language_model import KeysAndValues, LlamaConfig, LlamaForCausalLM, rotary_embedding
from ivideogpt.transformer.llama import CachedLlama
from ivideogpt.transformer.sampling import SAMPLING_RULES, RandomStreams, Sampling, drawn_seed, expected_codes, sample

__all__ = [
    "SAMPLING_RULES",
    "CachedLlama",
    "FrameDecoder",
    "FrameModel",
    "GraphPool",
    "HeadModelWithAction",
    "KeysAndValues",
    "LlamaConfig",
    "LlamaForCausalLM",
    "RandomStreams",
    "Sampling",
    "drawn_seed",
    "expected_codes",
    "rotary_embedding",
    "sample",
]
