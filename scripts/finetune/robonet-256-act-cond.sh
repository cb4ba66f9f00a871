#!/usr/bin/env bash
# RoboNet at 256 px: two context frames, ten predicted from 5-D actions.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

START=${START:-$PRETRAINED/ivideogpt-oxe-256-act-free}
train_tokenizer robonet_tokenizer_ft 1e-4 --pretrained_model_name_or_path "$START/tokenizer" --resolution 256 --context_length 2 \
    --segment_horizon 12 --rand_select --no_aug --oxe_data_mixes_type tfds_robonet --train_batch_size 2 \
    --gradient_accumulation_steps 4 --max_train_steps 200005
finetune_transformer robonet_llama_ft "$START" --load_internal_llm --action_conditioned --action_dim 5 --resolution 256 \
    --context_length 2 --segment_length 12 --oxe_data_mixes_type tfds_robonet --per_device_train_batch_size 4 \
    --gradient_accumulation_steps 2 --max_train_steps 600005
