#!/usr/bin/env bash
# VP2's Robosuite: two context frames, ten predicted from 4-D actions.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

START=${START:-$PRETRAINED/ivideogpt-oxe-64-act-free}
train_tokenizer vp2_robosuite_tokenizer_ft 1e-4 --pretrained_model_name_or_path "$START/tokenizer" --resolution 64 \
    --context_length 2 --segment_horizon 12 --rand_select --oxe_data_mixes_type vp2_robosuite --max_train_steps 200005
finetune_transformer vp2_robosuite_llama_ft "$START" --load_internal_llm --action_conditioned --action_dim 4 --resolution 64 \
    --context_length 2 --segment_length 12 --oxe_data_mixes_type vp2_robosuite --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 --max_train_steps 200005
