"""The tokenizer, the discriminator and LPIPS compute what the released implementation computes (``tests/parity``)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ivideogpt import paths
from ivideogpt.errors import UserError
from ivideogpt.metrics.lpips import LPIPS
from ivideogpt.model_configs import read_config
from ivideogpt.vq_model import CompressiveVQModel, Discriminator
from tests.parity.formulas import assert_close, assert_record, assert_state_dict_matches, clip, fill, golden

CASES = list(golden()["tokenizer"])


@pytest.fixture(scope="module", params=CASES)
def case(request):
    record = golden()["tokenizer"][request.param]
    model = fill(CompressiveVQModel(**record["config"]))
    if record["set_context_length"] is not None:
        model.set_context_length(record["set_context_length"])
    shape = record["input"]
    frames = clip(shape["B"], shape["T"], shape["H"], shape["W"], shape["phase"])
    return record, model, frames, record["context_length"]


def test_tokens(case):
    record, model, frames, context = case
    with torch.no_grad():
        tokens, labels = model.tokenize(frames, context)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == record["tokens"]
    assert (labels == -100).sum(dim=1).unique().tolist() == [record["labels_ignored"]]


def test_detokenize(case):
    record, model, _, context = case
    tokens = torch.tensor(record["tokens"])
    layout = model.layout(0)
    with torch.no_grad():
        frames, cache = model.detokenize(tokens, context, return_cache=True)
        one_future_frame = tokens[:, : layout.with_future_frames(1).sequence_length]
        first = model.detokenize(one_future_frame, context, cache=cache)[:, -1]
    assert_record(frames, record["detokenize"])
    assert_record(first, record["detokenize_first_future_frame"])
    assert_close(first, frames[:, context])


def test_forward_and_gradients(case):
    record, model, frames, context = case
    expected = record["forward"]
    past, future = frames[:, :context].flatten(0, 1), frames[:, context:].flatten(0, 1)
    model.zero_grad()
    out = model(past, return_loss=True, dyn_sample=future, segment_len=frames.shape[1] - context)
    l1, ref_l1 = (out.sample - future).abs().mean(), (out.ref_sample - past).abs().mean()
    loss = l1 + ref_l1 + out.commit_loss + out.dyn_commit_loss
    loss.backward()

    assert_record(out.sample, expected["dec"])
    assert_record(out.ref_sample, expected["ref_dec"])
    for actual, name in ((out.commit_loss, "commit_loss"), (out.dyn_commit_loss, "dyn_commit_loss")):
        assert_close(actual, expected[name])
    for actual, name in ((l1, "l1"), (ref_l1, "ref_l1"), (loss, "loss")):
        assert_close(actual, expected[name])
    parameters = dict(model.named_parameters())
    for name, norm in record["grad_norms"].items():
        assert_close(parameters[name].grad.norm(), norm)


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("context", [1, 2])
def test_names_and_shapes_of_released_checkpoints(size, context):
    folder = {64: "configs/ctx_vae64", 256: "configs/ctx_vae"}[size]
    config = read_config(folder) | {"context_length": context}
    with torch.device("meta"):
        model = CompressiveVQModel.from_config(config)
    assert_state_dict_matches(model, f"tokenizer-{size}-ctx{context}")


def test_discriminator():
    record = golden()["parts"]["discriminator"]
    model = fill(Discriminator(depth=record["depth"], hidden_channels=record["hidden_channels"]))
    with torch.no_grad():
        assert_record(model(clip(1, 2, 64, 64)[0]), record["out"])
    assert sum(p.numel() for p in model.parameters()) == record["params"]


def test_lpips():
    record = golden()["parts"]["lpips"]
    model = fill(LPIPS(None))
    assert sorted(model.state_dict()) == sorted(record["keys"])
    with torch.no_grad():
        distance = model(2 * clip(1, 3, 64, 64)[0] - 1, 2 * clip(1, 3, 64, 64, phase=0.5)[0] - 1)
    assert distance.shape == (3, 1, 1, 1)
    torch.testing.assert_close(distance.flatten(), torch.tensor(record["out"]), rtol=1e-3, atol=1e-7)


def test_published_lpips_files_load(tmp_path):
    """The two published files name their tensors differently from each other and from the module."""
    model: nn.Module = fill(LPIPS(None))
    tensors = model.state_dict()
    torch.save({k: v for k, v in tensors.items() if k.startswith("lin")}, tmp_path / "vgg.pth")
    vgg = {f"features.{k.split('.', 2)[2]}": v for k, v in tensors.items() if k.startswith("net.")}
    torch.save(vgg | {"classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg16-397923af.pth")
    loaded = LPIPS(tmp_path)
    for name, tensor in loaded.state_dict().items():
        if name.startswith(("lin", "net.")):
            assert torch.equal(tensor, tensors[name])


def test_lpips_without_its_weights_is_an_error(tmp_path, monkeypatch):
    """Random weights gave numbers that looked like distances."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"put vgg16-397923af\.pth .* and vgg\.pth .* into .*pretrained_models/lpips"):
        LPIPS()


@pytest.mark.parametrize("change", [lambda x: (255 * x).byte(), lambda x: 255 * x, lambda x: 3 * x])
def test_lpips_refuses_frames_of_another_range(change):
    """Its scaling layer expects [-1, 1]; 0..255 give distances that mean nothing."""
    model, frames = LPIPS(None), clip(1, 2, 32, 32)[0]
    for pair in ((change(frames), frames), (frames, change(frames))):
        with pytest.raises(UserError, match=r"frames for LPIPS .*expected floats in \[-1, 1\]"):
            model(*pair)


def test_lpips_takes_reconstructions_that_overshoot_in_training():
    """A loss must pull them back into the range."""
    reconstruction = (3 * clip(1, 1, 32, 32)[0]).requires_grad_()
    LPIPS(None)(reconstruction, clip(1, 1, 32, 32)[0]).mean().backward()
    assert reconstruction.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["vgg.pth", "vgg16-397923af.pth"])
def test_damaged_lpips_files_are_named(tmp_path, name):
    torch.save({}, tmp_path / "vgg.pth")
    torch.save({}, tmp_path / "vgg16-397923af.pth")
    (tmp_path / name).write_bytes(b"half a download")
    with pytest.raises(UserError, match=name):
        LPIPS(tmp_path)
