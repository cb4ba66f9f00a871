"""Actions of several robots in one model: what is encoded, and who chooses the robot."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from ivideogpt.action_spaces import ActionSpace, ActionSpaces, usable_std
from ivideogpt.envs import GivenContexts, WorldModelVectorEnv
from ivideogpt.errors import UserError
from ivideogpt.files import write_json
from ivideogpt.metadata import ActionNormalization, ModelMetadata
from ivideogpt.transformer import Sampling
from ivideogpt.world_model import WorldModel
from tests.parity.formulas import actions, clip
from tests.parity.networks import world_model

ARM = ActionSpace("arm", 2, (1.0, 2.0), (2.0, 4.0), datasets=("reacher", "pusher"))
HAND = ActionSpace("hand", 3, dimensions=("thumb", "index", "ring"), datasets=("shadow",))
SPACES = ActionSpaces((ARM, HAND))
ADAPTERS = replace(SPACES, adapters=True)
GREEDY = Sampling(greedy=True)


def test_encoded_actions_are_normalised_padded_and_say_whose_they_are():
    """A robot whose numbers land in another one's columns is steered as that one."""
    assert (SPACES.length, ADAPTERS.length) == (5, 7)
    arm, hand = torch.tensor([[3.0, 2.0]]), torch.tensor([3.0, 2.0, 7.0])
    assert SPACES.encode(arm, "arm").tolist() == [[1, 0, 0, 1, 0]]
    assert SPACES.encode(hand, "hand").tolist() == [3, 2, 7, 0, 1]
    assert ADAPTERS.encode(arm, "arm").tolist() == [[1, 0, 0, 0, 0, 1, 0]]
    assert ADAPTERS.encode(hand, "hand").tolist() == [0, 0, 3, 2, 7, 0, 1]
    assert SPACES.encode(arm[:, None].expand(4, 6, 2), "arm").shape == (4, 6, 5)


@pytest.mark.parametrize(("std", "used"), [(0.5, 0.5), (1e-5, 1e-5), (1e-9, 1.0), (0.0, 1.0)])
def test_rounding_is_not_taken_for_motion(std, used):
    """Divided by its own noise, a gripper that never moves would be all that a network sees."""
    assert usable_std(std, largest=1.0) == used
    assert usable_std(0.0, largest=0.0) == 1


def test_adapters_are_one_linear_layer_a_space():
    """What is promised: robots that share no weight of the action layer, though there is one matrix."""
    linear = nn.Linear(ADAPTERS.length, 8)
    own = {"arm": linear.weight[:, :2], "hand": linear.weight[:, 2:5]}
    for number, space in enumerate(ADAPTERS.spaces):
        given = torch.randn(4, space.dim)
        scaled = (given - torch.tensor(ARM.mean)) / torch.tensor(ARM.std) if space is ARM else given
        expected = scaled @ own[space.name].T + linear.bias + linear.weight[:, 5 + number]
        torch.testing.assert_close(linear(ADAPTERS.encode(given, space.name)), expected)


def test_a_space_is_found_by_name_or_by_data_set():
    """A LeRobot path names its folder, wherever it lies and whichever camera is read."""
    assert SPACES.find("hand") is HAND
    assert SPACES.find_for("/disk/pusher@top@action=action") is ARM
    with pytest.raises(UserError, match=r"no action space was chosen; .*arm \(2 numbers\), hand \(3 numbers\)"):
        SPACES.find(None)
    with pytest.raises(UserError, match="data set 'other' is in no action space"):
        SPACES.find_for("other")
    added = SPACES.with_datasets(["reacher", "other"], "hand")
    assert added.find_for("other").name == "hand"
    with pytest.raises(UserError, match="does nothing"):
        SPACES.with_datasets(["reacher"], "hand")
    with pytest.raises(UserError, match="data set 'other' is in no action space: give --action_space, one of"):
        SPACES.with_datasets(["reacher", "other"], None)
    alone = ActionSpaces((ARM,)).with_datasets(["other"], None)  # there is no choice
    assert alone.find_for("other").name == "arm"
    odd = ActionSpaces((replace(ARM, datasets=("left@right",)), replace(HAND, datasets=("org/pick", "mine/pick"))))
    assert odd.find_for("/disk/left@right").name == "arm"
    assert odd.find_for("org/pick").name == "hand"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 3}, "2 values of mean, but dim is 3"),
        ({"dim": True}, "dim is True"),
        ({"std": None}, "both mean and std"),
        ({"std": [0.0, 1.0]}, "a std is 0.0"),
        ({"std": ["a", 1.0]}, "expected numbers"),
        ({"datasets": [1]}, "lists of names"),
        ({"datasets": ["shadow"]}, "shadow is named twice"),
        ({"name": "hand"}, "hand is named twice"),
        ({"colour": "red"}, "no action spaces"),
    ],
)
def test_files_of_spaces_are_checked(change, message, tmp_path):
    """Users edit the file: a slip in it must not become a model that divides by zero."""
    arm, hand = asdict(SPACES)["spaces"]
    write_json(tmp_path / "spaces.json", {"spaces": [arm | change, hand]})
    with pytest.raises(UserError, match=f"spaces.json: .*{message}"):
        ActionSpaces.read(tmp_path / "spaces.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of two robots. Not to be written to."""
    folder = tmp_path_factory.mktemp("robots") / "model"
    world_model(action_dim=SPACES.length, reward_prediction=True, action_spaces=SPACES).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("space", ["arm", "hand"])
def test_sessions_encode_what_callers_give(saved, space):
    """A session that forgets the space steers by another robot's numbers."""
    model = WorldModel.from_pretrained(saved, action_space=space)
    assert model.metadata.action_spaces == SPACES
    assert model.action_dim == SPACES.find(space).dim
    context, given = clip(2, 2, 64, 64).clamp(0, 1), actions(2, 2, model.action_dim)
    encoded = WorldModel(model.tokenizer, model.transformer, model.metadata.for_encoded_actions())
    expected = encoded.predict(context, SPACES.encode(given, space), sampling=GREEDY)
    assert torch.equal(model.predict(context, given, sampling=GREEDY).tokens, expected.tokens)
    other = WorldModel(model.tokenizer, model.transformer, model.metadata)
    assert torch.equal(other.predict(context, given, sampling=GREEDY, action_space=space).tokens, expected.tokens)
    step = other.start(context, sampling=GREEDY, action_space=space).step(given[:, 0])
    assert torch.equal(step.tokens, expected.tokens[..., expected.tokens.shape[-1] - 34 : -17])


def test_a_robot_has_to_be_chosen_and_its_actions_to_fit(saved):
    """Without a choice no number could say whose action it is."""
    model, context = WorldModel.from_pretrained(saved), clip(1, 2, 64, 64).clamp(0, 1)
    for use in (lambda: model.action_dim, lambda: model.start(context)):
        with pytest.raises(UserError, match=r"arm \(2 numbers\), hand \(3 numbers\)"):
            use()
    with pytest.raises(UserError, match="there is no action space 'foot'"):
        WorldModel.from_pretrained(saved, action_space="foot")
    with pytest.raises(UserError, match=r"expected \(1, 3\)"):
        model.start(context, action_space="hand").step(torch.zeros(1, 2))
    with pytest.raises(UserError, match="one kind of actions"):
        world_model(action_dim=4).start(context, action_space="hand")
    alone = ActionSpaces((HAND,))
    assert world_model(action_dim=alone.length, action_spaces=alone).action_dim == 3


def test_an_environment_is_of_the_chosen_robot(saved):
    """Agents, planners and the page ask the model how long an action is."""
    frames = (clip(1, 2, 64, 64).clamp(0, 1) * 255).byte().movedim(2, -1).numpy()
    arm = WorldModelVectorEnv(WorldModel.from_pretrained(saved, action_space="arm"), GivenContexts(frames))
    assert (arm.single_action_space.low.tolist(), arm.single_action_space.high.tolist()) == ([-3, -6], [5, 10])
    env = WorldModelVectorEnv(WorldModel.from_pretrained(saved, action_space="hand"), GivenContexts(frames), horizon=1)
    assert (env.single_action_space.low.tolist(), env.single_action_space.high.tolist()) == ([-1] * 3, [1] * 3)
    env.reset(seed=0)
    observation, *_ = env.step(env.action_space.sample())
    assert observation.shape == (1, 64, 64, 3)


def test_models_of_one_robot_stay_as_they_were():
    """Old checkpoints must predict the same numbers, with their normalization or without."""
    plain = world_model(action_dim=4)
    given = torch.randn(2, 3, 4)
    assert plain.metadata.encode_actions(given, None) is given
    scaled = ModelMetadata(64, 2, action_dim=4, action_normalization=ActionNormalization((1.0,) * 4, (2.0,) * 4))
    assert torch.equal(scaled.encode_actions(given, scaled.find_space(None)), (given - 1) / 2)
    with pytest.raises(UserError, match="exclude each other"):
        replace(scaled, action_spaces=SPACES)
    with pytest.raises(UserError, match="encode to 5 numbers, expected action_dim = 4"):
        ModelMetadata(64, 2, action_dim=4, action_spaces=SPACES)
