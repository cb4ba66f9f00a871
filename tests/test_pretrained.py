"""Every form of checkpoint loads as it is, and anything else is refused by name."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from ivideogpt import Sampling, WorldModel
from ivideogpt.errors import UserError
from ivideogpt.metadata import ActionNormalization, ModelMetadata
from ivideogpt.pretrained import (
    initialise_transformer,
    language_model,
    load_tokenizer,
    load_transformer,
    read_llama_config,
    resolve_folder,
    save_transformer,
)
from ivideogpt.state_dicts import read_foreign_tensors
from ivideogpt.transformer import HeadModelWithAction
from tests.fuzz.mutate import bounded
from tests.parity.formulas import actions, clip
from tests.parity.networks import llama_config, tokenizer, transformer, world_model

CONTEXT = clip(1, 2, 64, 64).clamp(0, 1)
LAYOUT = tokenizer().layout(future_frames=3)


def change_tensors(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def change_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def saved(tmp_path) -> Path:
    """An action-conditioned model with both heads' worth of metadata."""
    world_model(action_dim=4, reward_prediction=True, symlog=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# ---- world models


@pytest.mark.parametrize("action_dim", [None, 4])
def test_a_saved_model_is_the_model(tmp_path, action_dim):
    model = world_model(
        action_dim=action_dim,
        reward_prediction=action_dim is not None,
        dataset_step=2,
        action_normalization=None if action_dim is None else ActionNormalization((0.5,) * 4, (2.0,) * 4),
        generation=Sampling(rule="expected_code") if action_dim is None else Sampling(top_k=7),
    )
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert loaded.metadata == model.metadata
    assert loaded.action_dim == action_dim
    action = None if action_dim is None else actions(1, 1, action_dim)
    before, after = (each.predict(CONTEXT, action, horizon=1, seed=0) for each in (model, loaded))
    assert torch.equal(before.tokens, after.tokens)
    torch.testing.assert_close(before.frames, after.frames, atol=1e-5, rtol=1e-5)  # in another order: channels-last
    for saved, read in ((model.tokenizer, loaded.tokenizer), (model.transformer, loaded.transformer)):
        weights, weights_read = saved.state_dict(), read.state_dict()
        assert weights.keys() == weights_read.keys()
        assert all(torch.equal(weights[name], weights_read[name]) for name in weights)
    assert not any(module.training for module in (loaded.tokenizer, loaded.transformer))


def test_the_files_are_those_of_the_released_form(saved):
    files = sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    assert files == [
        "ivideogpt.json",
        "tokenizer/config.json",
        "tokenizer/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "transformer/model.safetensors",
    ]


def test_the_tokenizers_own_folder_will_do(saved):
    assert WorldModel.from_pretrained(saved / "tokenizer").action_dim == 4


def test_a_model_without_metadata_is_understood(saved):
    """Released checkpoints have none."""
    (saved / "ivideogpt.json").unlink()
    assert WorldModel.from_pretrained(saved).metadata == ModelMetadata(
        resolution=64, context_length=2, segment_length=16, action_dim=4, reward_prediction=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_on_disk_are_float32_in_memory(tmp_path, dtype):
    world_model(action_dim=4).save_pretrained(tmp_path, dtype)
    assert load_file(tmp_path / "transformer/model.safetensors")["llm.lm_head.weight"].dtype == dtype
    loaded = WorldModel.from_pretrained(tmp_path)
    for module in (loaded.tokenizer, loaded.transformer):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    asked = WorldModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert language_model(asked.transformer).dtype == torch.bfloat16
    assert asked.predict(CONTEXT, actions(1, 1, 4)).frames.dtype == torch.float32


def test_push_to_hub_uploads_what_save_pretrained_writes(monkeypatch):
    uploaded = {}

    class Hub:
        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path):
            uploaded[repo_id] = sorted(path.name for path in Path(folder_path).rglob("*") if path.is_file())

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert world_model().push_to_hub("me/model") == "https://hub/me/model"
    assert uploaded["me/model"].count("config.json") == 2
    assert "ivideogpt.json" in uploaded["me/model"]


def test_a_hub_id_is_downloaded_without_pickles(monkeypatch, saved):
    def download(repo_id, allow_patterns, revision):
        assert repo_id == "thuml/ivideogpt-oxe-64-act-free"
        assert not any("bin" in pattern or "pt" in pattern for pattern in allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert WorldModel.from_pretrained("thuml/ivideogpt-oxe-64-act-free").action_dim == 4


def test_a_run_of_a_transformer_is_no_model(tiny_world_model):
    """It was said that a file of the tokenizer was missing, not what to do."""
    with pytest.raises(UserError, match=r"has a transformer and no tokenizer: make a model folder.*training\.export"):
        load_tokenizer(tiny_world_model / "transformer")


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "/missing/folder", "missing"])
def test_a_missing_folder_is_one_line(name):
    with pytest.raises(UserError, match=f"^no checkpoint folder {name}$"):
        WorldModel.from_pretrained(name)
    with pytest.raises(UserError, match=r"^no checkpoint folder ~nobody-of-this-name/model: Could not determine home"):
        WorldModel.from_pretrained("~nobody-of-this-name/model")


def test_a_hub_id_without_network_is_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing is neither a local folder nor") as error:
        resolve_folder("nobody/nothing")
    assert "\n" not in str(error.value)


class ProxyError(Exception):
    """As the hub's HTTP client has them: no OSError."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ProxyError("403 Forbidden\nfrom the proxy"), "403 Forbidden"), (ProxyError(), "ProxyError")],
)
def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, error, reason):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=f"a model that the hub gives us: {reason}$"):
        resolve_folder("nobody/nothing")


# ---- parts


def test_folders_of_training_runs(tmp_path):
    """Tokenizer runs write ``unwrapped_model/``."""
    world_model().save_pretrained(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "tokenizer").rename(run / "unwrapped_model")
    assert load_tokenizer(run).context_length == load_tokenizer(run / "unwrapped_model").context_length == 2


def test_traps_of_released_configs(saved):
    """torch_dtype would make a half-precision model, the token ids lie outside the vocabulary."""
    file = saved / "transformer/config.json"
    traps = dict(torch_dtype="float16", architectures=["LlamaModel"], bos_token_id=50256, eos_token_id=50256)
    change_json(file, **traps, max_length=20, pad_token_id=50256, rope_theta=10000.0, rope_scaling=None)
    model = load_transformer(saved, LAYOUT)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.llm.config.eos_token_id is None
    assert model.llm.config.rope_parameters["rope_theta"] == 10000.0
    expected = world_model(action_dim=4, reward_prediction=True).transformer
    tokens = torch.randint(112, (1, LAYOUT.sequence_length))
    with torch.no_grad():
        actual, wanted = (each(tokens, action=actions(1, 5, 4))[0].logits for each in (model, expected))
    torch.testing.assert_close(actual, wanted)


def test_hugging_face_loads_our_action_free_transformer(tmp_path):
    model = transformer(tokenizer())
    save_transformer(model, tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("heads", [{}, {"reward_prediction": True}, {"action_recon": 0.5}])
def test_heads_are_read_off_the_tensors(tmp_path, heads):
    save_transformer(transformer(tokenizer(), 5, **heads), tmp_path)
    model = load_transformer(tmp_path, LAYOUT)
    assert isinstance(model, HeadModelWithAction)
    assert model.action_dim == 5
    assert (model.reward_linear is not None) == ("reward_prediction" in heads)
    assert (model.action_recon_linear is not None) == ("action_recon" in heads)


def test_architecture_files():
    sizes = {
        name: read_llama_config(f"configs/llama/{name}.json") for name in ("config", "config_medium", "config_tiny")
    }
    shapes = {
        name: (c.num_hidden_layers, c.num_attention_heads, c.hidden_size, c.intermediate_size)
        for name, c in sizes.items()
    }
    assert shapes == {
        "config": (12, 12, 768, 3072),
        "config_medium": (24, 16, 1024, 4096),
        "config_tiny": (6, 4, 256, 768),
    }
    assert {(c.rms_norm_eps, c.max_position_embeddings, c.tie_word_embeddings) for c in sizes.values()} == {
        (1e-6, 1024, False)
    }


def test_building_leaves_the_callers_config_alone():
    """Two models of one config, for tokenizers of different size."""
    config = llama_config(vocab_size=8192)
    transformer(tokenizer(), config=config)
    assert config.vocab_size == 8192


# ---- starting points of training


def test_the_language_model_of_an_action_free_file(tmp_path, caplog):
    source = transformer(tokenizer())
    save_transformer(source, tmp_path)
    target = transformer(tokenizer(), 4, reward_prediction=True)
    target.llm.lm_head.weight.data.zero_()
    with caplog.at_level(logging.INFO):
        fresh = initialise_transformer(target, tmp_path, load_internal_llm=True)
    assert fresh == ["action_linear", "reward_linear"]
    assert all(part in caplog.text for part in fresh)
    assert torch.equal(target.llm.lm_head.weight, source.lm_head.weight)


@pytest.mark.parametrize(("action_dim", "fresh"), [(4, ["reward_linear"]), (5, ["action_linear", "reward_linear"])])
def test_the_language_model_of_an_action_conditioned_file(tmp_path, action_dim, fresh):
    """``action_linear`` comes along if the action dimension fits."""
    source = transformer(tokenizer(), 4, reward_prediction=True)
    save_transformer(source, tmp_path)
    target = transformer(tokenizer(), action_dim, reward_prediction=True)
    for parameter in target.parameters():
        parameter.data.zero_()
    (tmp_path / "config.json").unlink()  # a folder given for training need hold only weights
    assert initialise_transformer(target, tmp_path, load_internal_llm=True) == fresh
    assert torch.equal(target.llm.lm_head.weight, source.llm.lm_head.weight)
    assert target.action_linear.weight.any() == (action_dim == 4)


def test_only_optional_heads_may_be_missing(tmp_path):
    save_transformer(transformer(tokenizer(), 4), tmp_path)
    target = transformer(tokenizer(), 4, reward_prediction=True, action_recon=0.5)
    assert initialise_transformer(target, tmp_path) == ["action_recon_linear", "reward_linear"]
    change_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.pop("action_linear.bias"))
    with pytest.raises(UserError, match=r"missing: action_linear\.bias$"):
        initialise_transformer(target, tmp_path)


def test_heads_that_are_not_wanted_stay_behind(tmp_path, caplog):
    """A model with a success head could not be fine-tuned on episodes without successes, nor learn in MBPO."""
    source = transformer(tokenizer(), 4, reward_prediction=True, success_prediction=True)
    save_transformer(source, tmp_path)
    target = transformer(tokenizer(), 4, reward_prediction=True)
    with caplog.at_level(logging.INFO):
        assert initialise_transformer(target, tmp_path) == []
    assert "success_linear of" in caplog.text
    assert "is left out, as this run trains no such head" in caplog.text  # which is nothing to worry about
    assert "reward_linear" not in caplog.text
    assert torch.equal(target.reward_linear.weight, source.reward_linear.weight)
    change_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.update(other=torch.ones(1)))
    with pytest.raises(UserError, match="unexpected: other"):
        initialise_transformer(target, tmp_path)


def test_kinds_are_not_mixed_silently(tmp_path):
    free, conditioned = transformer(tokenizer()), transformer(tokenizer(), 4)
    save_transformer(free, tmp_path / "free")
    save_transformer(conditioned, tmp_path / "conditioned")
    with pytest.raises(UserError, match="is action-free and the new transformer action-conditioned; load_internal_llm"):
        initialise_transformer(conditioned, tmp_path / "free")
    with pytest.raises(UserError, match="is action-conditioned and the new transformer action-free"):
        initialise_transformer(free, tmp_path / "conditioned")
    assert initialise_transformer(free, tmp_path / "conditioned", load_internal_llm=True) == []


# ---- bad files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("llm.model.norm.weight"), "missing: llm.model.norm.weight$"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected: extra$"),
        (lambda t: t.update({"reward_linear.bias": torch.zeros(2)}), r"reward_linear.bias is \[2\], expected \[1\]$"),
        (lambda t: t.pop("action_linear.weight"), "lacks action_linear.weight"),
    ],
)
def test_wrong_tensors_are_named(saved, change, message):
    """The released code re-initialised what did not fit, silently."""
    change_tensors(saved / "transformer/model.safetensors", change)
    with pytest.raises(UserError, match=message):
        WorldModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("quant_linear.bias"), "quant_linear.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra"),
        (lambda t: t.update({"quant_linear.bias": torch.zeros(2)}), "quant_linear.bias"),
    ],
)
def test_wrong_tokenizer_tensors_are_named(saved, change, message):
    change_tensors(saved / "tokenizer/diffusion_pytorch_model.safetensors", change)
    with pytest.raises(UserError, match=message):
        WorldModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "file",
    [
        "tokenizer/config.json",
        "tokenizer/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "transformer/model.safetensors",
    ],
)
def test_a_missing_file_is_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing$"):
        WorldModel.from_pretrained(saved)


def test_another_vocabulary_is_refused(saved):
    change_json(saved / "transformer/config.json", vocab_size=16386)
    with pytest.raises(UserError, match=r"vocabulary of 16386, but the tokenizer's is 114 \(64 context codes \+ 48"):
        WorldModel.from_pretrained(saved)


def test_another_architecture_is_refused(saved):
    change_json(saved / "transformer/config.json", model_type="gpt2")
    with pytest.raises(UserError, match="gpt2"):
        WorldModel.from_pretrained(saved)


class Bomb:
    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.parametrize(
    ("part", "weights", "pickled"),
    [
        ("tokenizer", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("transformer", "model.safetensors", "pytorch_model.bin"),
    ],
)
def test_a_pickle_is_never_loaded(saved, part, weights, pickled):
    """Neither in place of the weights nor under their name."""
    (saved / part / weights).unlink()
    (saved / part / pickled).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=f"{pickled} is a pickle, which is never loaded"):
        WorldModel.from_pretrained(saved)
    (saved / part / pickled).rename(saved / part / weights)
    with pytest.raises(UserError, match="safetensors"):
        WorldModel.from_pretrained(saved)


def test_foreign_files_are_read_without_running_them(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pth")
    assert read_foreign_tensors(tmp_path / "good.pth")["weight"].tolist() == [1, 1]
    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        read_foreign_tensors(tmp_path / "bomb.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="mapping of names to tensors"):
        read_foreign_tensors(tmp_path / "other.pth")


def test_metadata_is_checked(saved):
    change_json(saved / "ivideogpt.json", context_length=1)
    with pytest.raises(UserError, match=r"metadata says resolution, context_length, action_dim = \(64, 1, 4\)"):
        WorldModel.from_pretrained(saved)
    change_json(saved / "ivideogpt.json", contxt_length=1)
    with pytest.raises(UserError, match="contxt_length"):
        ModelMetadata.read(saved)
    (saved / "ivideogpt.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        ModelMetadata.read(saved)
    (saved / "ivideogpt.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        ModelMetadata.read(saved)
    (saved / "ivideogpt.json").write_text("[]")
    with pytest.raises(UserError, match="must hold one JSON object"):
        ModelMetadata.read(saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segment_length": 2}, "segment_length 2 leaves no frame to predict after context_length 2"),
        ({"segment_length": "16"}, "segment_length is '16', expected int"),
        ({"dataset_step": 1.5}, r"dataset_step is 1.5, expected int \| None"),
        ({"action_normalization": {"mean": [0] * 3, "std": [1] * 4}}, "a mean of 3 and a std of 4 numbers, .* = 4 of"),
        ({"action_normalization": {"mean": [0] * 4}}, "std"),
        ({"action_normalization": [0, 1]}, "list"),
        ({"generation": {"temperature": 0}}, "temperature is 0"),
        ({"generation": 1}, "mapping"),
    ],
)
def test_values_of_the_metadata_are_checked(saved, values, message):
    """They would fail later, far from the file that holds them."""
    change_json(saved / "ivideogpt.json", **values)
    with pytest.raises(UserError, match=f"ivideogpt.json: .*{message}"):
        WorldModel.from_pretrained(saved)


# ---- configs from elsewhere


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "transformer",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000, expected a whole number from 1 to",
        ),
        ("transformer", {"hidden_size": "64"}, "hidden_size is '64', expected a whole number"),
        ("transformer", {"hidden_act": "magic"}, "hidden_act is .magic.: nothing but .silu. can be decoded"),
        ("transformer", {"rope_theta": float("nan")}, "rope_theta is nan, expected a number from 1 to"),
        ("tokenizer", {"layers_per_block": 10**6}, "layers_per_block is 1000000, expected a whole number from 1 to 16"),
        ("tokenizer", {"block_out_channels": [2**14] * 3}, r"describes a network of \d+ parameters, .* holds \d+"),
        ("tokenizer", {"block_out_channels": 64}, "block_out_channels is 64, expected a list"),
        ("tokenizer", {"down_block_types": ["Magic"] * 3}, "block types are Magic, Magic, Magic"),
        ("tokenizer", {"mid_block_add_attention": "no"}, "mid_block_add_attention is 'no', expected true or false"),
    ],
)
def test_absurd_configs_are_refused_before_anything_is_built(saved, part, change, message):
    """Bug prevented: a billion layers, or 30 GB for a network whose file holds one megabyte."""
    change_json(saved / part / "config.json", **change)
    with bounded(num_bytes=512 << 20), pytest.raises(UserError, match=message) as error:
        WorldModel.from_pretrained(saved)
    assert str(saved / part / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_length": 10**12}, "segment_length is 1000000000000, expected 0 to"),
        ({"action_dim": True}, "action_dim is True, expected"),
        ({"generation": {"top_k": 1.5}}, "top_k is 1.5, expected"),
        ({"action_normalization": {"mean": ["a"] * 4, "std": [1] * 4}}, "action_normalization is .*, expected numbers"),
        ({"action_normalization": {"mean": [0] * 4, "std": [float("nan")] * 4}}, ".*expected numbers"),
    ],
)
def test_absurd_metadata_is_refused(saved, change, message):
    change_json(saved / "ivideogpt.json", **change)
    with pytest.raises(UserError, match=rf"ivideogpt\.json: {message}"):
        ModelMetadata.read(saved)
