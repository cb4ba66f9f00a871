#!/usr/bin/env bash
# RoboNet at 64 px: two context frames, ten predicted from 5-D actions.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

START=${START:-$PRETRAINED/ivideogpt-oxe-64-act-free}
train_tokenizer robonet_tokenizer_ft 1e-4 --pretrained_model_name_or_path "$START/tokenizer" --resolution 64 --context_length 2 \
    --segment_horizon 12 --rand_select --oxe_data_mixes_type tfds_robonet --max_train_steps 600005
finetune_transformer robonet_llama_ft "$START" --load_internal_llm --action_conditioned --action_dim 5 --resolution 64 \
    --context_length 2 --segment_length 12 --oxe_data_mixes_type tfds_robonet --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 --max_train_steps 600005
