"""Backends by name, and one from outside the package."""

from __future__ import annotations

import pytest
import torch

from inference import predict, prediction
from ivideogpt import Sampling, WorldModel
from ivideogpt.errors import UserError
from ivideogpt.evaluation.model_settings import with_settings
from ivideogpt.transformer import LlamaForCausalLM, TorchBackend, check_backend, open_backend, register_backend
from ivideogpt.transformer.backends import base
from ivideogpt.transformer.backends.cpu_kernels import kernels as native
from tests.parity.networks import llama_config

ACTIONS = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
CONTEXT = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Toy(TorchBackend):
    """Torch's passes, counted."""

    num_passes = 0

    def forward(self, embeddings, cache):
        Toy.num_passes += 1
        return super().forward(embeddings, cache)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(base, "_BACKENDS", dict(base._BACKENDS))
    Toy.num_passes = 0
    register_backend("toy", Toy)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(rule="expected_code")], ids=["sample", "expected_code"])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_a_backend_from_outside_rolls_out(sampling, num_samples, tiny_world_model, toy):
    """A prefill and two frames of sixteen passes, with the tokens of torch's own backend."""
    tokens = []
    for name in ("toy", "torch"):
        model = WorldModel.from_pretrained(tiny_world_model, backend=name)
        rollout = model.predict(CONTEXT, ACTIONS, num_samples=num_samples, sampling=sampling, seed=0)
        tokens.append(rollout.tokens)
    assert Toy.num_passes == 1 + 2 * 16
    assert torch.equal(*tokens)


def test_changed_settings_and_flags_keep_the_backend(tiny_world_model, toy):
    """A model with another temperature would silently decode by another backend than was asked for."""
    args = predict.parse(
        predict.PredictArgs, f"--pretrained_model_name_or_path {tiny_world_model} --backend toy".split()
    )
    assert prediction.load_model(args).backend == "toy"
    model = with_settings(WorldModel.from_pretrained(tiny_world_model, backend="toy"), temperature=2.0)
    assert isinstance(model.decode_backend(), Toy)


def test_unknown_backends_are_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(UserError, match="backend is 'gpu', must be one of 'auto', 'torch', 'cpu_kernels'"):
        WorldModel.from_pretrained(tmp_path / "absent", backend="gpu")
    check_backend("auto")


def test_a_backend_that_cannot_run_here_says_why(monkeypatch):
    """Torch in its place would be slower by a multiple, and nobody would know."""
    llm = LlamaForCausalLM(llama_config(num_hidden_layers=1))
    with pytest.raises(UserError, match="'cuda_graph' cannot decode here: the model is on cpu"):
        open_backend("cuda_graph", llm)
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(UserError, match="IVIDEOGPT_NATIVE=0"):
        open_backend("cpu_kernels", llm)
    assert type(open_backend("auto", llm)) is TorchBackend


def test_a_backend_follows_weights_that_moved(monkeypatch):
    """Addresses that compiled code keeps would point to freed memory."""
    llm = LlamaForCausalLM(llama_config(num_hidden_layers=1))
    first = open_backend("auto", llm)
    llm.to(torch.bfloat16)
    second = open_backend("auto", llm, first)
    embeddings = second.weights.embed(torch.tensor([[1, 2, 3]]))
    cache = second.new_cache(1, 8)
    for some in embeddings.split([2, 1], dim=1):
        logits = second.logits(second.forward(some, cache))
    expected = llm(torch.tensor([[1, 2, 3]])).logits[:, -1:]
    torch.testing.assert_close(logits.float(), expected.float(), atol=0.05, rtol=0.05)
