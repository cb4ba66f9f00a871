#!/usr/bin/env bash
# As oxe-64-act-free.sh with the medium transformer (436 M parameters). TOKENIZER=... takes the one of that recipe.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

train_tokenizer oxe-64-act-free-medium-tokenizer 5e-4 --resolution 64 --context_length 2 --segment_horizon 16 --rand_select \
    --oxe_data_mixes_type select_sthsth --sthsth_root_path "$STHSTH_ROOT_PATH" --max_train_steps 1000000
train_transformer oxe-64-act-free-medium-transformer --config_name configs/llama/config_medium.json --max_grad_norm 1.0 \
    --resolution 64 --context_length 2 --segment_length 16 --oxe_data_mixes_type select \
    --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --max_train_steps 1000000
