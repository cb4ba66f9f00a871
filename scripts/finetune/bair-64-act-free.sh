#!/usr/bin/env bash
# BAIR robot pushing: one context frame, fifteen predicted without actions.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

START=${START:-$PRETRAINED/ivideogpt-oxe-64-act-free}
train_tokenizer bair_tokenizer_ft 1e-4 --pretrained_model_name_or_path "$START/tokenizer" --resolution 64 --context_length 1 \
    --segment_horizon 16 --rand_select --oxe_data_mixes_type bair --max_train_steps 200005
finetune_transformer bair_llama_ft "$START" --resolution 64 --context_length 1 --segment_length 16 \
    --oxe_data_mixes_type bair --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --max_train_steps 70005
