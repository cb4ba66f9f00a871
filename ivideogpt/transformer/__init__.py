"""The transformer: tokens and actions to next tokens and rewards."""

from ivideogpt.transformer.action_model import HeadModelWithAction
from ivideogpt.transformer.backends import DecodeBackend, TorchBackend, check_backend, open_backend, register_backend
from ivideogpt.transformer.decoder import DecoderMark, FrameDecoder, FrameModel
from ivideogpt.transformer.language_model import KeysAndValues, LlamaConfig, LlamaForCausalLM, rotary_embedding
from ivideogpt.transformer.llama import KVCache, LlamaWeights
from ivideogpt.transformer.sampling import SAMPLING_RULES, RandomStreams, Sampling, drawn_seed, expected_codes, sample

__all__ = [
    "SAMPLING_RULES",
    "DecodeBackend",
    "DecoderMark",
    "FrameDecoder",
    "FrameModel",
    "HeadModelWithAction",
    "KVCache",
    "KeysAndValues",
    "LlamaConfig",
    "LlamaForCausalLM",
    "LlamaWeights",
    "RandomStreams",
    "Sampling",
    "TorchBackend",
    "check_backend",
    "drawn_seed",
    "expected_codes",
    "open_backend",
    "register_backend",
    "rotary_embedding",
    "sample",
]
