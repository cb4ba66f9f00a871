# Sourced by the recipes: goes to the repository's root and gives them what they share.
# Paths, further flags and what differs from machine to machine come from the environment. A recipe's own arguments mean
# the same to all of its commands: --debug tries them on anything, --dry_run builds them, --resume_from_checkpoint latest
# goes on after a stop. There are no others.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TOKENIZER_ARGS=${TOKENIZER_ARGS:-} # further flags of train_tokenizer.py, such as --perc_weight 0, which goes without LPIPS
TRANSFORMER_ARGS=${TRANSFORMER_ARGS:-} # further flags of train_gpt.py
DATASET_PATH=${DATASET_PATH:-data/oxe} # one folder of .npz episodes per dataset; DATASET.yaml names the benchmarks' folders
STHSTH_ROOT_PATH=${STHSTH_ROOT_PATH:-data/sthsth} # frame folders of Something-Something v2
PRETRAINED=${PRETRAINED:-pretrained_models}
START=${START:-} # the pre-trained model to fine-tune, a folder of tokenizer/ and transformer/ (default: the recipe's, in PRETRAINED)
TOKENIZER_RUNS=${TOKENIZER_RUNS:-log_vqgan}
TRANSFORMER_RUNS=${TRANSFORMER_RUNS:-log_trm}
EVALUATION_RUNS=${EVALUATION_RUNS:-log_eval}
TOKENIZER=${TOKENIZER:-} # a trained tokenizer: its training is skipped
NUM_WORKERS=${NUM_WORKERS:-16}
MIXED_PRECISION=${MIXED_PRECISION:-bf16}
LAUNCH=${LAUNCH:-accelerate launch}

DEBUG= # where such runs are kept apart
DRY_RUN=
COMMON_ARGS=$*
while [ $# -gt 0 ]; do
    case "$1 ${2:-}" in
    "--debug "*) DEBUG=/debug ;;
    "--dry_run "*) DRY_RUN=1 ;;
    "--resume_from_checkpoint latest") shift ;;
    *)
        echo "error: $0 $1: a recipe takes --debug, --dry_run and --resume_from_checkpoint latest; flags of train_tokenizer.py" \
            "go into the variable TOKENIZER_ARGS, flags of train_gpt.py into TRANSFORMER_ARGS" >&2
        exit 2
        ;;
    esac
    shift
done

newest_run() { # folder of runs, name of the experiment, a file that a finished run has
    local newest
    newest=$(ls -td "$1"/????-??-??-??:??:??-"$2"/"$3" 2>/dev/null | head -n 1 || true)
    echo "${newest:+$(dirname "$newest")}"
}

train_tokenizer() { # name of the experiment, learning rate, further flags
    local name=$1 learning_rate=$2
    shift 2
    if [ -n "$TOKENIZER" ]; then
        return
    fi
    $LAUNCH train_tokenizer.py --exp_name "$name" --output_dir "$TOKENIZER_RUNS" --seed 0 --mixed_precision "$MIXED_PRECISION" \
        --model_type ctx_vqgan --dataset_path "$DATASET_PATH" --dataloader_num_workers "$NUM_WORKERS" --video_stepsize 1 \
        --segment_length 8 --train_batch_size 16 --gradient_accumulation_steps 1 --disc_start 1000005 \
        --learning_rate "$learning_rate" --discr_learning_rate "$learning_rate" "$@" $TOKENIZER_ARGS $COMMON_ARGS
    TOKENIZER=$(newest_run "$TOKENIZER_RUNS$DEBUG" "$name" unwrapped_model)/unwrapped_model
}

train_transformer() { # name of the experiment, further flags
    local name=$1
    shift
    if [ -n "$DRY_RUN" ] && [ ! -d "$TOKENIZER" ] && [ -z "$DEBUG" ]; then
        echo "the transformer's dry run needs a trained tokenizer: TOKENIZER=<folder> bash $0 --dry_run"
        return
    fi
    $LAUNCH train_gpt.py --exp_name "$name" --output_dir "$TRANSFORMER_RUNS" --seed 0 --mixed_precision "$MIXED_PRECISION" \
        --vqgan_type ctx_vqgan --pretrained_model_name_or_path "$TOKENIZER" --config_name configs/llama/config.json \
        --dataset_path "$DATASET_PATH" --dataloader_num_workers "$NUM_WORKERS" --video_stepsize 1 \
        --learning_rate 1e-4 --lr_scheduler_type cosine --weight_decay 0.01 --llama_attn_drop 0.1 --embed_no_wd "$@" $TRANSFORMER_ARGS $COMMON_ARGS
}

finetune_transformer() { # name of the experiment, folder of the pre-trained model, further flags
    local name=$1 pretrained=$2
    shift 2
    train_transformer "$name" --pretrained_transformer_path "$pretrained/transformer" \
        --use_eval_dataset --use_fvd --use_frame_metrics "$@"
}

evaluate() { # name, flags: 100 futures of every test clip of a benchmark, by the published protocol
    local name=$1
    shift
    mkdir -p "$EVALUATION_RUNS"
    $LAUNCH train_gpt.py --exp_name "$name-eval" --output_dir "$EVALUATION_RUNS" --seed 0 --mixed_precision "$MIXED_PRECISION" \
        --vqgan_type ctx_vqgan --pretrained_model_name_or_path "$MODEL/tokenizer" --config_name configs/llama/config.json \
        --pretrained_transformer_path "$MODEL/transformer" --dataloader_num_workers "$NUM_WORKERS" --resolution 64 \
        --per_device_train_batch_size 16 --eval_only --use_eval_dataset --use_fvd --use_frame_metrics \
        --eval_generate_times 100 --max_generate_batchsize 80 --max_decode_batchsize 16 "$@" \
        $TRANSFORMER_ARGS $COMMON_ARGS 2>&1 | tee "$EVALUATION_RUNS/$name-eval.log"
}
