#!/usr/bin/env bash
# Makes the bundled model from nothing: records Meta-World episodes, trains its tokenizer, then its transformer.
# Run it again to go on after an interruption. --minutes N ends it after N minutes, with a checkpoint to go on from.
# Paths and sizes come from the environment:
#   DATA=... RUNS=... MODEL=... EPISODES=100 PLAIN_STEPS=... ALIGNED_STEPS=... TRANSFORMER_STEPS=... OWN_STEPS=... LONG_STEPS=... bash scripts/pretrain/metaworld-64-tiny.sh
MINUTES=
if [ "${1:-}" = --minutes ] && [[ "${2:-}" =~ ^[1-9][0-9]*$ ]]; then
    MINUTES=$2
    shift 2
fi
MIXED_PRECISION=${MIXED_PRECISION:-no} # bf16 on a GPU, or on a CPU that has it (AMX, AVX-512 with bf16)
# A GPU: accelerate launch. Two CPU cores: python -m torch.distributed.run --standalone --nproc_per_node 2, with
# OMP_NUM_THREADS=1 and half the clips per process; processes use cores better than threads do.
LAUNCH=${LAUNCH:-python}
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
if [ -n "$COMMON_ARGS" ]; then
    echo "error: $0 takes --minutes N alone; see its first lines for what the environment may say" >&2
    exit 2
fi

# Runs a command, in the time that is left. Every command here saves its work at SIGTERM and goes on with it later.
timed() {
    local left=$((MINUTES * 60 - SECONDS)) status=0
    if [ -z "$MINUTES" ]; then
        "$@"
        return
    fi
    if ((left > 0)); then
        timeout --signal=TERM --kill-after=120 "$left" "$@" &
        trap "kill -TERM $!" INT # timeout keeps Ctrl-C from the command
        wait $! || status=$?
    fi
    if ((left <= 0 || status == 124 || status == 137)); then
        echo "stopped after $MINUTES minutes: run it again to go on" >&2
        exit 124
    fi
    return $status
}

DATA=${DATA:-data/metaworld}
HELD_OUT=${HELD_OUT:-data/metaworld-heldout}
RUNS=${RUNS:-log_metaworld}
MODEL=${MODEL:-pretrained_models/ivideogpt-metaworld-64-tiny}
HELD_OUT_TASKS=${HELD_OUT_TASKS:-${TASKS:-button-press-topdown-wall coffee-push door-lock hammer handle-pull-side plate-slide drawer-open window-close push faucet-open}}
TASKS=${TASKS:-$HELD_OUT_TASKS reach drawer-close window-open faucet-close button-press}
EPISODES=${EPISODES:-100} # of each task
HELD_OUT_EPISODES=${HELD_OUT_EPISODES:-12}
PLAIN_STEPS=${PLAIN_STEPS:-4000} # phases of the tokenizer's first stage, of which half are updates
ALIGNED_STEPS=${ALIGNED_STEPS:-4000} # and of its second
TRANSFORMER_STEPS=${TRANSFORMER_STEPS:-8000} # of the transformer's first stage
OWN_STEPS=${OWN_STEPS:-25000} # of its second
LONG_STEPS=${LONG_STEPS:-2000} # and of its third
STRIDE=${STRIDE:-12} # frames from one stored clip of an episode to the next
TOKENIZER_BATCH=${TOKENIZER_BATCH:-4} # clips per process
TRANSFORMER_BATCH=${TRANSFORMER_BATCH:-4}

TOKENIZER_NAME=metaworld-64-tiny-tokenizer
TRANSFORMER_NAME=metaworld-64-tiny-transformer

read -ra tasks <<<"$TASKS"
read -ra held_out_tasks <<<"$HELD_OUT_TASKS"
timed python datasets/record_metaworld.py --tasks "${tasks[@]}" --output_path "$DATA" --num_episodes "$EPISODES" --seed 0
timed python datasets/record_metaworld.py --tasks "${held_out_tasks[@]}" --output_path "$HELD_OUT" --num_episodes "$HELD_OUT_EPISODES" --seed 1000

train_tokenizer() { # name, phases, how to start
    local name=$1 steps=$2
    shift 2
    timed $LAUNCH train_tokenizer.py --exp_name "$name" --output_dir "$RUNS" --seed 0 --mixed_precision "$MIXED_PRECISION" \
        --resolution 64 --context_length 2 --dataset_path "$DATA" --oxe_data_mixes_type "folder:*" --no_aug \
        --segment_length 6 --segment_horizon 16 --rand_select --train_batch_size "$TOKENIZER_BATCH" \
        --learning_rate 1e-3 --lr_scheduler cosine --lr_warmup_steps 100 --max_train_steps "$steps" \
        --disc_start 1000005 --channels_last --cross_attention_dropout 0 --vae_loss l2 --recon_weight 20 --motion_weight 3 \
        --gradient_weight 0.5 --restart_dead_codes 100 --codebook_decay 0.99 --log_image_steps 2000 --validation_steps 2000 \
        --max_eval_iters 20 --skip_first_val --checkpointing_steps 500 --keep_last_n 2 --resume_from_checkpoint latest \
        --perc_weight 0 "$@" $TOKENIZER_ARGS
}

# First it learns to see. Then its halves for future frames start anew, from the difference to the context.
train_tokenizer "$TOKENIZER_NAME-plain" "$PLAIN_STEPS" --model_config_name_or_path configs/ctx_vae64_tiny
train_tokenizer "$TOKENIZER_NAME" "$ALIGNED_STEPS" --align_to_context --still_weight 1 \
    --pretrained_model_name_or_path "$(newest_run "$RUNS" "$TOKENIZER_NAME-plain" unwrapped_model)/unwrapped_model"

# The bundled weights are 16-bit. Tokens are made with those, so that the transformer sees what its users will see.
timed python -m ivideogpt.training.export --tokenizer "$(newest_run "$RUNS" "$TOKENIZER_NAME" unwrapped_model)" --output "$RUNS/exported" --dtype float16

for split in train test; do
    timed python -m ivideogpt.data tokenize --pretrained_model_name_or_path "$RUNS/exported/tokenizer" --dataset_path "$DATA" \
        --segment_length 32 --stride "$STRIDE" --split "$split" --output "$RUNS/tokens/$split"
done

train_transformer() { # name, steps, frames of a clip, how to start and what to read as history
    local name=$1 steps=$2 frames=$3
    shift 3
    timed $LAUNCH train_gpt.py --exp_name "$name" --output_dir "$RUNS" --seed 0 --mixed_precision "$MIXED_PRECISION" \
        --pretrained_model_name_or_path "$RUNS/exported/tokenizer" \
        --token_store "$RUNS/tokens/train" --eval_token_store "$RUNS/tokens/test" \
        --resolution 64 --context_length 2 --segment_length "$frames" --action_conditioned --action_dim 4 \
        --per_device_train_batch_size "$TRANSFORMER_BATCH" --num_warmup_steps 100 --weight_decay 0.01 --embed_no_wd --max_grad_norm 1.0 \
        --max_train_steps "$steps" --validation_steps 1000 --max_eval_iters 20 --checkpointing_steps 500 --keep_last_n 2 \
        --resume_from_checkpoint latest "$@" $TRANSFORMER_ARGS
}

# First from histories of older tokens. Then, with heads for reward and success, from histories of its own. Then on as
# many frames as it has positions for: what it predicts behind those of its training is guesswork.
train_transformer "$TRANSFORMER_NAME-stale" "$TRANSFORMER_STEPS" 16 --config_name configs/llama/config_tiny.json --stale_tokens 0.9 \
    --learning_rate 1e-3 --lr_scheduler_type cosine
own_histories() { # name, steps, frames of a clip, name of the run to start from
    train_transformer "$1" "$2" "$3" --pretrained_transformer_path "$(newest_run "$RUNS" "$4" model.safetensors)" \
        --history own --history_rule expected_code --reward_prediction --success_prediction --symlog --reward_weight 0.05 --success_weight 0.1 \
        --learning_rate 4e-4 "${@:5}"
}
own_histories "$TRANSFORMER_NAME-own" "$OWN_STEPS" 16 "$TRANSFORMER_NAME-stale" --lr_scheduler_type constant_with_warmup
own_histories "$TRANSFORMER_NAME" "$LONG_STEPS" 32 "$TRANSFORMER_NAME-own" --lr_scheduler_type linear

timed python -m ivideogpt.training.export --tokenizer "$RUNS/exported/tokenizer" --transformer "$(newest_run "$RUNS" "$TRANSFORMER_NAME" model.safetensors)" \
    --output "$MODEL" --dtype float16 --sampling_rule expected_code
timed python -m ivideogpt.evaluation --pretrained_model_name_or_path "$MODEL" --dataset_path "$HELD_OUT" --split all --num_clips "${NUM_CLIPS:-120}" \
    --segment_length 16 --output_path "$RUNS/evaluation"
echo "finished: $MODEL"
