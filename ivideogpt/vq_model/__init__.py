"""Tokenizer networks: the compressive VQ model, its discriminator, and LPIPS under its historical name."""

from ivideogpt.vq_model.compressive_vq_model import (
    CompressiveVQModel,
    CompressiveVQOutput,
    ContextCache,
    EncodedContext,
)
from ivideogpt.vq_model.conditional_vae import ContextFeatures
from ivideogpt.vq_model.discriminator import Discriminator
from ivideogpt.vq_model.lpips import LPIPS
from ivideogpt.vq_model.quantizer import VectorQuantizer

__all__ = [
    "LPIPS",
    "CompressiveVQModel",
    "CompressiveVQOutput",
    "ContextCache",
    "ContextFeatures",
    "Discriminator",
    "EncodedContext",
    "VectorQuantizer",
]
