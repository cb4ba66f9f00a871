#!/usr/bin/env bash
# Pre-training at 256 px on Open X-Embodiment, from the public aMUSEd-256 VQ-VAE in pretrained_models/amused/vqvae.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

train_tokenizer oxe-256-act-free-tokenizer 5e-4 --resolution 256 --context_length 2 --segment_horizon 16 --rand_select \
    --pretrained_model_name_or_path "$PRETRAINED/amused/vqvae" --model_config_name_or_path configs/ctx_vae \
    --oxe_data_mixes_type select --train_batch_size 2 --gradient_accumulation_steps 4 --disc_start 250000 \
    --max_train_steps 1000000
train_transformer oxe-256-act-free-transformer --resolution 256 --context_length 2 --segment_length 16 \
    --oxe_data_mixes_type select --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_train_steps 1000000
