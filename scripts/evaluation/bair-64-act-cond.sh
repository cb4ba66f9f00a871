#!/usr/bin/env bash
# BAIR with actions: the fine-tuned model in MODEL, a folder of tokenizer/ and transformer/.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

MODEL=${MODEL:-$PRETRAINED/ivideogpt-bair-64-act-cond}
evaluate bair-64-act-cond --oxe_data_mixes_type bair --context_length 1 --segment_length 16 \
    --action_conditioned --action_dim 4
