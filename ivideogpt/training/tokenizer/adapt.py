"""A tokenizer made to go with the clips of a run, or refused."""

from __future__ import annotations

from ivideogpt.errors import UserError
from ivideogpt.vq_model import CompressiveVQModel


def adapt_tokenizer(tokenizer: CompressiveVQModel, context_length: int, resolution: int) -> None:
    """Shrink the tokenizer to ``context_length``.

    Raises:
        UserError: it was trained with less context, or for another resolution.
    """
    tokenizer.set_context_length(context_length)
    made_for = tokenizer.config.resolution
    if made_for != resolution:
        raise UserError(f"the tokenizer is for {made_for} px, not {resolution}: give --resolution {made_for}")
