#!/usr/bin/env bash
# BAIR without actions: the fine-tuned model in MODEL, a folder of tokenizer/ and transformer/.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

MODEL=${MODEL:-$PRETRAINED/ivideogpt-bair-64-act-free}
evaluate bair-64-act-free --oxe_data_mixes_type bair --context_length 1 --segment_length 16
