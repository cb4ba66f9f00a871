"""Small token stores: clip i holds tokens, actions and rewards of value i."""

import torch

from ivideogpt.data.tokens.token_store import (
    StoredSource,
    TokenBatch,
    TokenStore,
    TokenStoreMeta,
    TokenStoreWriter,
    state_checksum,
)
from ivideogpt.layout import TokenLayout

LAYOUT = TokenLayout(1, 2, context_codes=100, dynamics_codes=60, context_tokens=4, dynamics_tokens=2)
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
META = TokenStoreMeta(
    layout=LAYOUT,
    num_clips=20,
    num_passes=2,
    augmentation="weak",
    seed=3,
    clips_per_shard=6,
    action_dim=2,
    has_rewards=True,
    sources=(StoredSource("coffee-push", 3, 10),),
    split="train",
    video_stepsize=1,
    stride=2,
    episodes="3 episodes",
    tokenizer=state_checksum(WEIGHTS),
    precision="no",
)


def clips(numbers, offset=0):
    """Clip i holds tokens, actions and rewards of value i."""
    numbers = torch.as_tensor(list(numbers))
    tokens = (numbers[:, None] + offset).expand(-1, LAYOUT.sequence_length)
    return TokenBatch(tokens, numbers[:, None, None].float().expand(-1, 3, 2), numbers[:, None].float().expand(-1, 3))


def write(folder, meta=META, offset=0, upto=None):
    """All shards that are not there, or the first few of them."""
    writer = TokenStoreWriter(folder, meta)
    writer.begin()
    for shard in writer.missing()[:upto]:
        numbers = meta.clips_of(shard)
        writer.write(shard, [clips(numbers[:4], offset), clips(numbers[4:], offset)])
    if not writer.missing():
        writer.finish()
    return TokenStore(folder)
