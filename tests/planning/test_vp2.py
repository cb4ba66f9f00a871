"""The adapter for VP2, called exactly as the benchmark's runner and planners call it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ivideogpt import WorldModel
from ivideogpt.errors import UserError
from ivideogpt.planning.vp2 import VP2Model
from tests.parity.formulas import actions, clip
from tests.parity.networks import world_model

CONFIG = Path(__file__).parents[2] / "configs" / "vp2" / "ivideogpt.yaml"
HORIZON, NUM_SAMPLES, DIM = 2, 3, 4
VIDEO = clip(1, 2, 64, 64)[0].clamp(0, 1).permute(0, 2, 3, 1).numpy()  # (n, H, W, 3)
ACTIONS = actions(NUM_SAMPLES, 1 + HORIZON, DIM).clamp(-1, 1).numpy()


@pytest.fixture(scope="module")
def model(tiny_world_model) -> VP2Model:
    config = OmegaConf.load(CONFIG)
    config.checkpoint_dir, config.device, config.dtype = str(tiny_world_model), "cpu", "float32"
    return instantiate(config)


def ask(model: VP2Model, dtype: type = np.float64, **planner: object) -> np.ndarray:
    """Call the model as planners do: contexts repeated, actions of the past in front."""
    batch = {
        "video": np.tile(VIDEO[None].astype(dtype), (NUM_SAMPLES, 1, 1, 1, 1)),
        "actions": ACTIONS.astype(dtype),
        "state_obs": [None, None],
    }
    return model(batch, **planner)["rgb"]


def test_what_the_runner_reads(model):
    """The planners take the last num_context - 1 actions, which for 1 is all of them."""
    assert (model.num_context, model.base_prediction_modality) == (2, "rgb")
    assert model.device == torch.device("cpu")
    model.close()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_frames_are_those_of_the_world_model(model, tiny_world_model, dtype):
    """Actions one off, channels in front, or context frames left out: the planner would score other frames."""
    frames = ask(model, dtype, grad_enabled=False)
    assert frames.shape == (NUM_SAMPLES, 1 + HORIZON, 64, 64, 3)
    assert frames.dtype == np.float32
    assert 0 <= frames.min() <= frames.max() <= 1
    np.testing.assert_allclose(frames[:, 0], np.tile(VIDEO[1], (NUM_SAMPLES, 1, 1, 1)))
    plain = WorldModel.from_pretrained(tiny_world_model)
    context = torch.from_numpy(VIDEO).permute(0, 3, 1, 2)[None]
    for number in range(NUM_SAMPLES):
        rollout = plain.predict(context, torch.from_numpy(ACTIONS[None, number, 1:]), seed=0)
        expected = rollout.frames[0, 0].permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(frames[number, 1:], expected, atol=1e-4)


def test_both_planners_calls(model):
    """CEM passes grad_enabled, MPPI does not; a model without the keyword works with one of them."""
    np.testing.assert_array_equal(ask(model, grad_enabled=False), ask(model))
    with pytest.raises(UserError, match="discrete tokens: plan with CEM or MPPI"):
        ask(model, grad_enabled=True)


def test_a_model_of_one_frame_sees_the_last(tmp_path):
    """It says 2 to the planners all the same."""
    world_model(context_length=1, action_dim=DIM).save_pretrained(tmp_path)
    model = VP2Model(checkpoint_dir=str(tmp_path), n_past=2, device="cpu", dtype="float32")
    batch = {"video": np.tile(VIDEO[None], (1, 1, 1, 1, 1)), "actions": ACTIONS[:1]}
    frames = model(batch)["rgb"]
    batch["video"] = batch["video"].copy()
    batch["video"][:, 0] = 0
    np.testing.assert_array_equal(model(batch)["rgb"], frames)
    assert model.num_context == 2


def test_what_does_not_fit_is_refused(model):
    """A wrong action dimension used to show as weights that were made anew."""
    video = np.tile(VIDEO[None], (NUM_SAMPLES, 1, 1, 1, 1))
    with pytest.raises(UserError, match=r"actions have shape \(3, 3, 5\), expected \(3, 1 \+ horizon, 4\)"):
        model({"video": video, "actions": np.zeros((NUM_SAMPLES, 1 + HORIZON, 5))})
    with pytest.raises(UserError, match=r"actions have shape \(3, 1, 4\)"):
        model({"video": video, "actions": ACTIONS[:, :1]})
    with pytest.raises(UserError, match=r"video has shape \(3, 2, 3, 64, 64\)"):
        model({"video": video.transpose(0, 1, 4, 2, 3), "actions": ACTIONS})
    video[1] = 0
    with pytest.raises(UserError, match="different context frames"):
        model({"video": video, "actions": ACTIONS})


def test_customary_keywords(tiny_world_model, caplog):
    """VP2's configurations carry keywords of other models; what is ignored is said."""
    keywords = {"checkpoint_dir": str(tiny_world_model), "device": "cpu"}
    VP2Model(**keywords, epoch=None, planning_modalities=OmegaConf.create(["rgb"]))
    assert not caplog.records
    VP2Model(**keywords, epoch=3, hidden_size=7)
    assert "no effect on this model: hidden_size, epoch" in caplog.text
    with pytest.raises(UserError, match="n_past is 1: say 2"):
        VP2Model(**keywords, n_past=1)
    with pytest.raises(UserError, match="predicts rgb alone"):
        VP2Model(**keywords, planning_modalities=["rgb", "depth"])
