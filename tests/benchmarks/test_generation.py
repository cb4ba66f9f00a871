"""The benchmark's command, on as little as it takes, and what its numbers rest on: an honest baseline, true counts."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import released
from benchmarks.generation_floor import floor, measure_rates
from benchmarks.measuring import Timer
from ivideogpt import Sampling
from tests.commands import run_python
from tests.parity.formulas import actions
from tests.parity.networks import world_model
from tests.test_world_model import context_of

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "generation.py"
GREEDY = Sampling(greedy=True)


def test_the_benchmark_measures_both_ways(tmp_path):
    """A benchmark that nobody runs breaks with the first change of what it measures."""
    output = tmp_path / "out" / "results.json"
    flags = f"""
        --models tiny-64 --batches 1 --samples 2 --dtypes float32 --frames 2 --baseline_frames 1 --repeats 1
        --device cpu --agreement --output {output}
    """.split()
    run = run_python(SCRIPT, *flags, cwd=tmp_path)
    run.check_returncode()
    record = json.loads(output.read_text())

    assert [(result["clips"], result["samples"]) for result in record["results"]] == [(1, 1), (1, 2)]
    for result in record["results"]:
        baseline, ours = result["ways"]["released"], result["ways"]["float32"]
        assert result["ways"].keys() == {"released", "float32"}
        assert (baseline["frames_measured"], baseline["ratio"]) == (1, 1)
        assert ours["ratio"] == pytest.approx(baseline["rollout_s"] / ours["rollout_s"])
        assert ours["frames_per_s"] == pytest.approx(2 * result["samples"] / ours["rollout_s"])
        assert ours["parts_s"].keys() == baseline["parts_s"].keys() == {"encode", "prefill", "passes", "frames"}
        assert 0 < ours["step_s"]["median"] <= ours["step_s"]["p95"] < ours["first_frame_s"]
        assert ours["share_of_floor"] == pytest.approx(ours["floor_s"] / ours["rollout_s"])

    agreement = {row["way"]: row for row in record["agreement"]}
    assert agreement.keys() == {"released", "float32"}
    assert agreement["released"]["equal_tokens"] == 1
    assert agreement["released"]["psnr"] > 60
    assert agreement["float32"]["equal_tokens"] > 0.9
    for part in ("| tiny-64 | 1 x 1 | released |", "| tiny-64 | 1 x 2 | float32 |", "predicted 1 of 2 frames"):
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


def test_operations_of_the_floor_are_those_of_the_network(monkeypatch):
    """On a machine that reads in no time, the floor is the operations of the network alone."""
    model = world_model(action_dim=4)
    monkeypatch.setattr("benchmarks.generation_floor.measure_rates", lambda device, dtype: (float("inf"), 1.0))
    llm, layout = released.huggingface_model(model), model.tokenizer.layout(1)
    ids = torch.zeros(1, layout.prompt_length - 1, dtype=torch.int64)
    context = context_of(1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        llm.model(ids)
        for _ in range(layout.dynamics_tokens):
            llm(ids[:, :1])
        decoded = model.tokenizer.decode_context(model.tokenizer.context_codes(context))
        codes = torch.zeros(1, 1, layout.dynamics_tokens, dtype=torch.int64)
        model.tokenizer.decode_dynamics(codes, decoded.features)
    counted = counter.get_total_flops()
    assert 0.8 * counted < floor(model, 1, 1, frames=1) < 1.001 * counted, "without attention, norms as products"
    assert floor(model, 3, 1, frames=1) == pytest.approx(3 * floor(model, 1, 1, frames=1))


def test_bytes_of_the_floor_do_not_grow_with_the_samples_of_a_prompt(monkeypatch):
    """Weights and a clip's prompt are read once a pass, whatever the number of samples."""
    monkeypatch.setattr("benchmarks.generation_floor.measure_rates", lambda device, dtype: (1.0, float("inf")))
    model = world_model(action_dim=4)
    assert floor(model, 1, 5, frames=2) < 1.1 * floor(model, 1, 1, frames=2)


def test_rates_are_measured():
    assert min(measure_rates(torch.device("cpu"), torch.float32)) > 0
