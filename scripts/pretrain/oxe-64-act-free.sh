#!/usr/bin/env bash
# Pre-training at 64 px on Open X-Embodiment and Something-Something v2, without actions.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

train_tokenizer oxe-64-act-free-tokenizer 5e-4 --resolution 64 --context_length 2 --segment_horizon 16 --rand_select \
    --oxe_data_mixes_type select_sthsth --sthsth_root_path "$STHSTH_ROOT_PATH" --max_train_steps 1000000
train_transformer oxe-64-act-free-transformer --resolution 64 --context_length 2 --segment_length 16 \
    --oxe_data_mixes_type select --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --max_train_steps 1000000
