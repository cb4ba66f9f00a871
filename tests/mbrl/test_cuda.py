"""Agent and world model on a GPU: every call that a run makes of them, and a state that goes to a CPU and back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from mbrl.agent.drqv2 import DrQConfig, build_agent
from mbrl.build_video_predictor import build_video_predictor
from mbrl.replay.episodes import ReplayEpisode
from mbrl.replay.replay_buffer import EpisodeShape, ReplayBuffer
from tests.mbrl.runs import SEGMENT_LENGTH
from tests.mbrl.test_video_predictor import segments, starts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU, CPU = torch.device("cuda"), torch.device("cpu")
SHAPE = EpisodeShape(3, (64, 64), 4)


def random_episode(num_steps: int) -> ReplayEpisode:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (num_steps + 1, *SHAPE.frame), dtype=np.uint8)
    action = rng.uniform(-1, 1, (num_steps + 1, 4)).astype(np.float32)
    return ReplayEpisode(frames, frames[:2], action, *np.ones((2, num_steps + 1), np.float32))


def saved_and_loaded(state, device):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location=device)


@pytest.mark.parametrize("compile", [False, True])
def test_an_agent_learns_and_acts_and_moves_between_devices(compile):
    buffer = ReplayBuffer(100, SHAPE, pin_memory=True)
    buffer.add(random_episode(20))
    agent = build_agent(SHAPE, DrQConfig(hidden_dim=16, compile=compile), 0, GPU)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for step in range(3):
        metrics = agent.update(buffer.sample(8, 3, 0.99, rng), step)
    assert all(value.is_cuda and value.isfinite() for value in metrics.values())
    stacks = buffer.sample(2, 3, 0.99, rng).obs
    acted = agent.act(stacks, 5000, mean=True, generator=generator)
    assert acted.is_cuda
    assert agent.act(stacks, 5000, mean=False, generator=generator).shape == (2, 4)
    on_cpu = build_agent(SHAPE, DrQConfig(hidden_dim=16), 1, CPU)
    on_cpu.load_state_dict(saved_and_loaded(agent.state_dict(), "cpu"))
    torch.testing.assert_close(
        on_cpu.act(stacks, 5000, mean=True, generator=generator), acted.cpu(), rtol=1e-2, atol=1e-2
    )
    agent.load_state_dict(saved_and_loaded(on_cpu.state_dict(), "cpu"))
    assert agent.update(buffer.sample(8, 3, 0.99, rng), 3)["critic_loss"].isfinite()


def test_a_world_model_learns_and_imagines(config):
    predictor = build_video_predictor(config, GPU, seed=0)
    for update in (predictor.update_tokenizer, predictor.update_transformer):
        assert all(value.isfinite() for value in update(segments()).values())
    imagined = predictor.imagine(starts(), lambda stacks: torch.zeros(len(stacks), 4), SEGMENT_LENGTH, seed=0)
    assert imagined.frames.dtype == torch.uint8
    assert imagined.reward.shape == (2, SEGMENT_LENGTH + 1)
    assert predictor.validate(segments(), seed=0)[0]["frame_mse"] < 1
    on_cpu = build_video_predictor(config, CPU, seed=1)
    on_cpu.load_state_dict(saved_and_loaded(predictor.state_dict(), "cpu"))
    predictor.load_state_dict(saved_and_loaded(on_cpu.state_dict(), "cpu"))
    assert predictor.update_transformer(segments())["loss"].isfinite()
