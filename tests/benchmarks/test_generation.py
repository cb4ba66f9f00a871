"""The benchmark's command, on as little as it takes, and what its numbers rest on: an honest baseline, true counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import released
from benchmarks.generation_floor import Transformer
from benchmarks.timer import Timer
from ivideogpt import Sampling
from tests.parity.formulas import actions
from tests.parity.networks import world_model
from tests.test_world_model import context_of

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "generation.py"
GREEDY = Sampling(greedy=True)


def test_the_benchmark_measures_both_ways(tmp_path):
    """A benchmark that nobody runs breaks with the first change of what it measures."""
    output = tmp_path / "out" / "results.json"
    flags = f"""
        --models tiny-64 --batches 1 --samples 2 --dtypes bfloat16 --frames 2 --baseline_frames 1 --repeats 1
        --device cpu --agreement --output {output}
    """.split()
    run = subprocess.run([sys.executable, SCRIPT, *flags], cwd=tmp_path, capture_output=True, text=True, check=True)
    record = json.loads(output.read_text())

    assert [(result["clips"], result["samples"]) for result in record["results"]] == [(1, 1), (1, 2)]
    for result in record["results"]:
        baseline, ours = result["ways"]["released"], result["ways"]["bfloat16"]
        assert result["ways"].keys() == {"released", "bfloat16"}
        assert (baseline["frames_measured"], baseline["ratio"]) == (1, 1)
        assert ours["ratio"] == pytest.approx(baseline["rollout_s"] / ours["rollout_s"])
        assert ours["frames_per_s"] == pytest.approx(2 * result["samples"] / ours["rollout_s"])
        assert ours["parts_s"].keys() == baseline["parts_s"].keys() == {"encode", "prefill", "passes", "frames"}
        assert ours["parts_s"].keys() == ours["floor_s"].keys()
        assert 0 < ours["step_s"]["median"] <= ours["step_s"]["p95"] < ours["first_frame_s"]
        assert all(way["peak_bytes"] > 0 for way in result["ways"].values())
        assert ours["share_of_floor"] > 0
    assert record["rates_per_s"].keys() == {"bfloat16"}

    agreement = {row["way"]: row for row in record["agreement"]}
    assert agreement.keys() == {"released", "bfloat16"}
    assert agreement["released"]["equal_context_tokens"] == agreement["released"]["equal_tokens"] == 1
    assert agreement["released"]["psnr"] > 60 > agreement["bfloat16"]["psnr"]
    for part in ("| tiny-64 | 1 x 1 | released |", "| tiny-64 | 1 x 2 | bfloat16 |", "predicted 1 of 2 frames"):
        assert part in run.stdout


@pytest.mark.parametrize("num_samples", [1, 2])
def test_the_baseline_predicts_what_our_engine_predicts(num_samples):
    """A baseline that computes something else may take any time."""
    model, context, of_future = world_model(action_dim=4), context_of(2), actions(2, 3, 4)
    rollout = model.predict(context, of_future, num_samples=num_samples, sampling=GREEDY)
    generated = released.generate(model, context, of_future, num_samples, GREEDY, Timer(torch.device("cpu")))
    assert torch.equal(generated.tokens, rollout.tokens.flatten(0, 1))
    torch.testing.assert_close(generated.frames[:, 2:], rollout.frames.flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_unmeasured_frames_of_the_baseline_are_scaled_by_what_they_process():
    layout = world_model(action_dim=4).tokenizer.layout(2)
    timer = Timer(torch.device("cpu"), {"encode": 1.0, "prefill": 1.0, "passes": 1.0})
    released.scale_to(layout, 1, timer)
    assert timer.seconds == {"encode": 1, "prefill": (514 + 531) / 514, "passes": 2}


def test_operations_of_the_floor_are_those_of_the_network():
    """One pass over a prompt, and one more position after it."""
    model = world_model(action_dim=4)
    llm, layout = released.huggingface_model(model), model.tokenizer.layout(1)
    llm.config._attn_implementation = "eager"  # whose products are counted on a CPU, masked or not
    prefill, passes = Transformer.of(model).work(layout, clips=2, samples=3)
    ids = torch.zeros(2, layout.prompt_length - 1, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as of_prefill:
        cache = llm.model(ids, use_cache=True).past_key_values
    half_of_attention = 2 * Transformer.of(model).query_width * 2 * ids.shape[1] ** 2
    assert prefill.flops == pytest.approx(of_prefill.get_total_flops() - half_of_attention, rel=0.02)
    with torch.no_grad(), FlopCounterMode(display=False) as of_pass:
        llm(ids[:, :1], past_key_values=cache)
    assert len(passes) == 16
    assert passes[0].flops == pytest.approx(3 * of_pass.get_total_flops(), rel=0.02)
