"""Compiled passes against torch's own kernels."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

from ivideogpt.transformer import CachedLlama, native
from tests.parity.formulas import fill
from tests.parity.networks import llama_config

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


def both(dtype: torch.dtype, monkeypatch, **changes) -> tuple[CachedLlama, CachedLlama]:
    """The same weights by compiled code and by torch."""
    model = fill(LlamaForCausalLM(llama_config(**changes))).to(dtype)
    compiled = CachedLlama(model)
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        plain = CachedLlama(model)
    assert compiled.native is not None
    assert plain.native is None
    return compiled, plain


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(114, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 11, native.MAX_LANES, native.MAX_LANES + 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 2}, {"hidden_size": 256, "head_dim": 64}, {"hidden_size": 320, "head_dim": 80}],
    ids=["multi-head", "grouped-query", "heads of 64", "heads of 80"],
)
@torch.no_grad()
def test_any_number_of_rows(rows, changes, monkeypatch):
    """Each number of lanes takes its own path through registers; above the most, torch does the products."""
    outputs = []
    for llama in both(torch.float32, monkeypatch, **changes):
        cache = llama.new_cache(rows, 64)
        llama.forward(llama.embed(ids(rows, 37)), cache)
        outputs.append(llama.logits(llama.forward(llama.embed(ids(rows, 1)), cache)))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7])
@torch.no_grad()
def test_bfloat16_weights_are_read_as_they_are(length, monkeypatch):
    """Compiled sums are float32: they are nearer to the rounded weights' exact result than torch's."""
    compiled, plain = both(torch.bfloat16, monkeypatch)
    model = LlamaForCausalLM(llama_config())
    model.load_state_dict(compiled.llm.float().state_dict())
    compiled.llm.to(torch.bfloat16)
    exact = CachedLlama(model)
    errors, outputs = [], []
    for llama in (exact, compiled, plain):
        cache = llama.new_cache(3, 64)
        llama.forward(llama.embed(ids(3, 30)), cache)
        outputs.append(llama.logits(llama.forward(llama.embed(ids(3, length)), cache)).float())
    errors = [(output - outputs[0]).abs().max() for output in outputs[1:]]
    assert errors[0] <= errors[1] * 1.5
    assert errors[0] < 0.02 * outputs[0].abs().max()


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("head_dim", [16, 64, 80])
@torch.no_grad()
def test_groups_of_samples_at_different_places(num_samples, head_dim, monkeypatch):
    """Two prompts, of which one begins anew; 40 samples are more lanes than compiled products take."""
    results = []
    for llama in both(torch.float32, monkeypatch, hidden_size=4 * head_dim, head_dim=head_dim):
        cache = llama.new_cache(2, 64)
        llama.forward(llama.embed(ids(2, 33)), cache)
        cache = cache.expand(num_samples, share=llama.shares_prompts)
        llama.forward(llama.embed(ids(2 * num_samples, 2)), cache)
        aside = llama.new_cache(num_samples, 40)
        llama.forward(llama.embed(ids(1, 33)).expand(num_samples, -1, -1), aside)
        cache.replace(torch.arange(num_samples, 2 * num_samples), aside)
        passes = [llama.forward(llama.embed(ids(2 * num_samples, length)), cache) for length in (2, 1, 1)]
        results.append(llama.logits(torch.cat(passes, dim=1)))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("multiplies_bfloat16", [True, False])
@torch.no_grad()
def test_products_of_many_rows_with_bfloat16_weights(multiplies_bfloat16, monkeypatch):
    """On processors with units for them, and on those where weights are widened first."""
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: multiplies_bfloat16)
    rows, results = native.MAX_LANES + 6, []
    compiled, _ = both(torch.bfloat16, monkeypatch)
    exact = CachedLlama(LlamaForCausalLM(llama_config()))
    exact.llm.load_state_dict(compiled.llm.state_dict())
    exact.refresh()
    for llama in (exact, compiled):
        cache = llama.new_cache(rows // 2, 64)
        llama.forward(llama.embed(ids(rows // 2, 33)), cache)
        cache = cache.expand(2, share=llama.shares_prompts)
        results.append(llama.logits(llama.forward(llama.embed(ids(rows, 1)), cache)).float())
    torch.testing.assert_close(*results, atol=0.05 * float(results[0].abs().max()), rtol=0)


@torch.no_grad()
def test_torchs_default_type_changes_nothing(monkeypatch):
    """Room for floats that is half as large as they are would be written past its end."""
    compiled, plain = both(torch.float32, monkeypatch)
    outputs = []
    torch.set_default_dtype(torch.bfloat16)
    try:
        for llama in (compiled, plain):
            cache = llama.new_cache(3, 64)
            llama.forward(llama.embed(ids(3, 30)), cache)
            outputs.append(llama.logits(llama.forward(llama.embed(ids(3, 2)), cache)))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


def test_weights_of_mixed_types_are_left_to_torch():
    model = LlamaForCausalLM(llama_config()).to(torch.bfloat16)
    model.model.norm.float()
    assert CachedLlama(model).native is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_samples_that_share_a_prompt_see_their_own_past(dtype, monkeypatch):
    """Expanded twice, the second time after the rows have parted."""
    results = []
    for llama in both(dtype, monkeypatch):
        cache = llama.new_cache(2, 64)
        llama.forward(llama.embed(ids(2, 33)), cache)
        cache = cache.expand(2, share=llama.shares_prompts)
        llama.forward(llama.embed(ids(4, 1)), cache)
        cache = cache.expand(3, share=llama.shares_prompts)
        assert (cache.owners is not None) == llama.shares_prompts
        results.append(llama.forward(llama.embed(ids(12, 2)), cache).float())
        kept = cache.select(torch.arange(6, 12))
        results[-1] = torch.cat([results[-1][6:], llama.forward(llama.embed(ids(6, 1)), kept).float()], dim=1)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)


def test_widths_that_do_not_fit_registers_are_left_to_torch():
    assert CachedLlama(LlamaForCausalLM(llama_config(intermediate_size=100))).native is None


COUNT_THREADS = """
import threading, torch
from pathlib import Path
from ivideogpt.transformer import native
torch.set_num_threads(2)
torch.randn(600, 600) @ torch.randn(600, 600)
before = len(list(Path("/proc/self/task").iterdir()))
library = native.library()
x, weight, out = torch.randn(1, 64), torch.randn(512, 64), torch.empty(1, 512)
library.llama_linear(*map(native._pointer, (x, weight)), 0, native._pointer(out), 1, 64, 512, 2)
torch.testing.assert_close(out, x @ weight.T)
print(len(list(Path("/proc/self/task").iterdir())) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_compiled_code_works_with_the_threads_that_torch_has():
    """A second set of threads would fight with torch's over the cores."""
    done = subprocess.run([sys.executable, "-c", COUNT_THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_torch_decodes_and_the_log_says_so(compiler, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert native.library.__wrapped__() is None
    assert "decoding with torch's own kernels" in caplog.text


def test_the_switch_turns_compiled_code_off(monkeypatch, caplog):
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.library.__wrapped__() is None
    assert not caplog.records


def test_a_build_leaves_one_file_and_is_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = native._built()
    stamp = built.stat().st_mtime_ns
    assert native._built() == built
    assert built.stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "ivideogpt").iterdir()] == [built.name]
    assert os.access(built, os.R_OK)
