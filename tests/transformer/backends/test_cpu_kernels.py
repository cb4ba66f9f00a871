"""Compiled passes against torch's own kernels."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivideogpt.errors import UserError
from ivideogpt.transformer import DecodeBackend, LlamaForCausalLM, LlamaWeights, TorchBackend, open_backend
from ivideogpt.transformer.backends.cpu_kernels import kernels as native
from ivideogpt.transformer.backends.cpu_kernels.backend import CpuKernelsBackend
from tests.parity.formulas import fill
from tests.parity.networks import llama_config

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


def both(dtype: torch.dtype, **changes) -> tuple[CpuKernelsBackend, TorchBackend]:
    """The same weights by compiled code and by torch."""
    weights = LlamaWeights(fill(LlamaForCausalLM(llama_config(**changes))).to(dtype))
    return CpuKernelsBackend(weights), TorchBackend(weights)


def run(backend: DecodeBackend, rows: torch.Tensor, cache) -> torch.Tensor:
    """One pass over token ids (B, n)."""
    return backend.forward(backend.weights.embed(rows), cache)


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(114, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 11, native.MAX_LANES, native.MAX_LANES + 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 2}, {"hidden_size": 256, "head_dim": 64}, {"hidden_size": 320, "head_dim": 80}],
    ids=["multi-head", "grouped-query", "heads of 64", "heads of 80"],
)
@torch.no_grad()
def test_any_number_of_rows(rows, changes):
    """Each number of lanes takes its own path through registers; above the most, torch does the products."""
    outputs = []
    for backend in both(torch.float32, **changes):
        cache = backend.new_cache(rows, 64)
        run(backend, ids(rows, 37), cache)
        outputs.append(backend.logits(run(backend, ids(rows, 1), cache)))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7])
@torch.no_grad()
def test_bfloat16_weights_are_read_as_they_are(length):
    """Compiled sums are float32: they are nearer to the rounded weights' exact result than torch's."""
    compiled, plain = both(torch.bfloat16)
    model = LlamaForCausalLM(llama_config())
    model.load_state_dict(compiled.weights.llm.float().state_dict())
    compiled.weights.llm.to(torch.bfloat16)
    exact = TorchBackend(LlamaWeights(model))
    errors, outputs = [], []
    for backend in (exact, compiled, plain):
        cache = backend.new_cache(3, 64)
        run(backend, ids(3, 30), cache)
        outputs.append(backend.logits(run(backend, ids(3, length), cache)).float())
    errors = [(output - outputs[0]).abs().max() for output in outputs[1:]]
    assert errors[0] <= errors[1] * 1.5
    assert errors[0] < 0.02 * outputs[0].abs().max()


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("head_dim", [16, 64, 80])
@torch.no_grad()
def test_groups_of_samples_at_different_places(num_samples, head_dim):
    """Two prompts, of which one begins anew; 40 samples are more lanes than compiled products take."""
    results = []
    for backend in both(torch.float32, hidden_size=4 * head_dim, head_dim=head_dim):
        cache = backend.new_cache(2, 64)
        run(backend, ids(2, 33), cache)
        cache = cache.expand(num_samples)
        run(backend, ids(2 * num_samples, 2), cache)
        prompt = backend.new_cache(1, 40)
        run(backend, ids(1, 33), prompt)
        cache.overwrite(torch.arange(num_samples, 2 * num_samples), prompt)
        passes = [run(backend, ids(2 * num_samples, length), cache) for length in (2, 1, 1)]
        results.append(backend.logits(torch.cat(passes, dim=1)))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("multiplies_bfloat16", [True, False])
@torch.no_grad()
def test_products_of_many_rows_with_bfloat16_weights(multiplies_bfloat16, monkeypatch):
    """On processors with units for them, and on those where weights are widened first."""
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: multiplies_bfloat16)
    rows, results = native.MAX_LANES + 6, []
    compiled, _ = both(torch.bfloat16)
    exact = TorchBackend(LlamaWeights(LlamaForCausalLM(llama_config())))
    exact.weights.llm.load_state_dict(compiled.weights.llm.state_dict())
    exact.weights.refresh()
    for backend in (exact, compiled):
        cache = backend.new_cache(rows // 2, 64)
        run(backend, ids(rows // 2, 33), cache)
        cache = cache.expand(2)
        results.append(backend.logits(run(backend, ids(rows, 1), cache)).float())
    torch.testing.assert_close(*results, atol=0.05 * float(results[0].abs().max()), rtol=0)


@torch.no_grad()
def test_torchs_default_type_changes_nothing():
    """Room for floats that is half as large as they are would be written past its end."""
    compiled, plain = both(torch.float32)
    outputs = []
    torch.set_default_dtype(torch.bfloat16)
    try:
        for backend in (compiled, plain):
            cache = backend.new_cache(3, 64)
            run(backend, ids(3, 30), cache)
            outputs.append(backend.logits(run(backend, ids(3, 2), cache)))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


def test_weights_of_mixed_types_are_left_to_torch():
    model = LlamaForCausalLM(llama_config()).to(torch.bfloat16)
    model.model.norm.float()
    assert type(open_backend("auto", model)) is TorchBackend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_samples_that_share_a_prompt_see_their_own_past(dtype):
    """Expanded twice, the second time after the rows have parted."""
    results = []
    for backend in both(dtype):
        cache = backend.new_cache(2, 64)
        run(backend, ids(2, 33), cache)
        cache = cache.expand(2)
        run(backend, ids(4, 1), cache)
        cache = cache.expand(3)
        assert hasattr(cache, "owners") == isinstance(backend, CpuKernelsBackend)
        results.append(run(backend, ids(12, 2), cache).float())
        kept = cache.select(torch.arange(6, 12))
        results[-1] = torch.cat([results[-1][6:], run(backend, ids(6, 1), kept).float()], dim=1)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)


def test_widths_that_do_not_fit_registers_are_left_to_torch():
    model = LlamaForCausalLM(llama_config(intermediate_size=100))
    assert type(open_backend("auto", model)) is TorchBackend
    with pytest.raises(UserError, match="widths that are multiples of 16"):
        open_backend("cpu_kernels", model)


COUNT_THREADS = """
import threading, torch
from pathlib import Path
from ivideogpt.transformer.backends.cpu_kernels import kernels as native
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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ivideogpt"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder with the library and its checksum, compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        native._build(native._library_file())
        return native._library_file().parent


@pytest.fixture
def cached(cache, compiled):
    """The library as an earlier process has left it."""
    shutil.copytree(compiled, cache)
    return native._library_file()


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch, compiled):
    """A compiler that makes the library in no time. Returns the file that lists its calls."""
    (library,) = compiled.glob("*.so")
    calls, script = tmp_path / "calls", tmp_path / "fake-g++"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\nfor last; do :; done\n[ "$1" = -shared ] && cp {library} "$last"\ntrue\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    calls.touch()
    return calls


def load() -> object:
    return native.library.__wrapped__()


COMPILERS = {
    "no-such-compiler": "there is no no-such-compiler",
    "false": "returned non-zero exit status 1",
    "true": "true made no library",
    "g++ 'unclosed": "which is no command: No closing quotation",
}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_without_a_working_compiler_torch_decodes_and_the_log_says_so(compiler, cache, monkeypatch, caplog):
    """One line, and no traceback of the splitting of CXX."""
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING):
        assert load() is None
    (record,) = caplog.records
    assert "decoding with torch's own kernels" in record.getMessage()
    assert COMPILERS[compiler] in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("compiler", [*COMPILERS, " "])
def test_a_cached_library_needs_no_compiler(compiler, cached, monkeypatch, caplog):
    """Machines that only run models have none; the library must not be lost with it."""
    monkeypatch.setenv("CXX", compiler)
    assert load() is not None
    assert not caplog.records


def test_a_blank_compiler_is_the_default_one(monkeypatch):
    monkeypatch.setenv("CXX", " ")
    assert native._compiler() == ["g++"]


def test_the_switch_turns_compiled_code_off(monkeypatch, caplog):
    monkeypatch.setenv(native.SWITCH, "0")
    assert load() is None
    assert not caplog.records


def test_a_build_leaves_the_library_and_its_checksum_and_is_found_again(cache, fake_compiler):
    """Compiling takes seconds, at every start."""
    assert load() is not None
    num_calls = len(fake_compiler.read_text().splitlines())
    assert num_calls == 2
    assert load() is not None
    assert len(fake_compiler.read_text().splitlines()) == num_calls
    library = native._library_file()
    assert sorted(path.name for path in cache.iterdir()) == [library.with_suffix(".sha256").name, library.name]
    assert library.stat().st_mode & 0o777 == 0o700


def truncate(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:5000])


def exchange(library: Path) -> None:
    library.write_bytes(library.read_bytes() + b"another")


def link(library: Path) -> None:
    library.rename(library.with_name("elsewhere.so"))
    library.symlink_to("elsewhere.so")


SPOILT = {
    "truncated": truncate,
    "another one": exchange,
    "a link": link,
    "writable by all": lambda library: library.chmod(0o777),
    "in a folder writable by the group": lambda library: library.parent.chmod(0o775),
    "without checksum": lambda library: library.with_suffix(".sha256").unlink(),
    "with a checksum that is no text": lambda library: library.with_suffix(".sha256").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_library_that_cannot_be_trusted_is_built_again(kind, cached, fake_compiler):
    """Loading runs its code: another user's runs as ours, and a truncated one ends the process."""
    SPOILT[kind](cached)
    assert load() is not None
    assert len(fake_compiler.read_text().splitlines()) == 2
    assert native._load_cached(cached) is not None, "the new one can be trusted"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["library", "folder"])
def test_a_library_of_another_user_is_not_loaded(what, cached, fake_compiler, caplog):
    """In a shared cache folder anyone could leave code for others to run."""
    os.chown(cached if what == "library" else cached.parent, 12345, 12345)
    assert native._load_cached(cached) is None
    found = load()
    if what == "library":
        assert found is not None
        assert cached.stat().st_uid == 0
    else:
        assert found is None
        assert "belongs to another user: set XDG_CACHE_HOME" in caplog.text


def test_a_library_without_our_functions_is_not_kept(cache, tmp_path, monkeypatch, caplog):
    """A compiler that makes something else would be believed for ever."""
    source = tmp_path / "other.cpp"
    source.write_text("int other() { return 1; }")
    monkeypatch.setattr(native, "SOURCE", source)
    assert load() is None
    assert "has no function llama_pass" in caplog.text
    assert list(cache.iterdir()) == []


def test_old_libraries_do_not_pile_up(cache, fake_compiler):
    """Every change of code or processor left one more file of a megabyte."""
    cache.mkdir()
    for age in range(10):
        for suffix in (".so", ".sha256"):
            old = cache / f"native_pass-{age:016}{suffix}"
            old.touch()
            os.utime(old, (1e9 - age, 1e9 - age))
    assert load() is not None
    left = sorted(path.name for path in cache.iterdir())
    newest = [f"native_pass-{age:016}" for age in range(native.LIBRARIES_KEPT - 1)]
    assert left == sorted(name + end for name in [*newest, native._library_file().stem] for end in (".sha256", ".so"))
