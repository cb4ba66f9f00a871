#!/usr/bin/env bash
# Pre-training at 64 px where the first frame is the goal: the transformer's clips are the goal and 16 frames. The
# tokenizer of oxe-64-act-free.sh, in START, is fine-tuned to clips that are out of order.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

START=${START:-$PRETRAINED/ivideogpt-oxe-64-act-free}
train_tokenizer oxe-64-goal-cond-tokenizer 1e-4 --pretrained_model_name_or_path "$START/tokenizer" --resolution 64 \
    --context_length 2 --segment_horizon 16 --rand_shuffle \
    --oxe_data_mixes_type select_sthsth --sthsth_root_path "$STHSTH_ROOT_PATH" --max_train_steps 1000000
train_transformer oxe-64-goal-cond-transformer --resolution 64 --context_length 2 --segment_length 17 --goal_conditioned \
    --oxe_data_mixes_type select --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --max_train_steps 1000000
