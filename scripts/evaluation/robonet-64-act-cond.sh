#!/usr/bin/env bash
# RoboNet with actions: the fine-tuned model in MODEL, a folder of tokenizer/ and transformer/.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

MODEL=${MODEL:-$PRETRAINED/ivideogpt-robonet-64-act-cond}
evaluate robonet-64-act-cond --oxe_data_mixes_type tfds_robonet --context_length 2 --segment_length 12 \
    --action_conditioned --action_dim 5
