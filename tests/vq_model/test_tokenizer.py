"""What breaks silently in the tokenizer: caches, context length, loading, precision of the code search."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ivideogpt.errors import UserError
from ivideogpt.layout import FrameTokens
from ivideogpt.vq_model import CompressiveVQModel, Discriminator
from ivideogpt.vq_model.conditional_vae import CrossAttention
from tests.parity.formulas import clip, fill, golden

CONFIG = golden()["tokenizer"]["ctx2_64"]["config"]


@pytest.fixture(scope="module")
def tokenizer():
    return fill(CompressiveVQModel(**CONFIG))


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def _rewrite(folder, change):
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@torch.no_grad()
def test_frames_decoded_one_by_one_equal_frames_decoded_at_once(tokenizer):
    """A cache that fits one number of future frames only forces the context to be decoded for every frame."""
    frames = clip(2, 6, 64, 64)
    context = tokenizer.encode_context(frames[:, :2])
    codes = tokenizer.encode_dynamics(frames[:, 2:], context.features)
    features = tokenizer.decoding_features(context.codes)
    at_once = tokenizer.decode_dynamics(codes, features)
    for step in range(4):
        one = tokenizer.decode_dynamics(codes[:, step : step + 1], features)
        torch.testing.assert_close(one[:, 0], at_once[:, step], atol=1e-5, rtol=0)


@torch.no_grad()
def test_selected_rows_of_features_decode_their_own_clip(tokenizer):
    """Dropping or repeating clips of a batch must not mix their contexts."""
    frames = clip(3, 4, 64, 64)
    context = tokenizer.encode_context(frames[:, :2])
    codes = tokenizer.encode_dynamics(frames[:, 2:], context.features)
    features = tokenizer.decoding_features(context.codes)
    rows = torch.tensor([2, 0, 2])
    selected = tokenizer.decode_dynamics(codes[rows], features.select(rows))
    torch.testing.assert_close(selected, tokenizer.decode_dynamics(codes, features)[rows], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", ["ctx2_64", "ctx2_256"])
def test_halves_of_primitives_equal_them(case):
    """Features that stop a level early (more levels qualify at 256 px) or codes of another path go unnoticed."""
    tokenizer = fill(CompressiveVQModel(**golden()["tokenizer"][case]["config"]))
    frames = clip(2, 2, tokenizer.config.resolution, tokenizer.config.resolution)
    codes = tokenizer.context_codes(frames)
    assert torch.equal(codes, tokenizer.encode_context(frames).codes)
    features, whole = tokenizer.decoding_features(codes), tokenizer.decode_context(codes).features
    assert len(features.blocks) == len(whole.blocks) == len(tokenizer.cond_decoder.cross_att_blocks)
    for block, expected in zip(features.blocks, whole.blocks, strict=True):
        assert torch.equal(block.keys, expected.keys)
        assert torch.equal(block.values, expected.values)


@torch.no_grad()
def test_primitives_compose_to_tokenize_and_detokenize(tokenizer):
    frames = clip(2, 5, 64, 64)
    tokens, labels = tokenizer.tokenize(frames, 2)
    context = tokenizer.encode_context(frames[:, :2])
    dynamics = tokenizer.encode_dynamics(frames[:, 2:], context.features)
    layout = tokenizer.layout(3)
    assert torch.equal(tokens, layout.pack(FrameTokens(context.codes, dynamics)))
    assert torch.equal(labels, layout.labels(tokens))
    cache = tokenizer.decode_context(context.codes)
    expected = torch.cat([cache.frames, tokenizer.decode_dynamics(dynamics, cache.features)], dim=1)
    torch.testing.assert_close(tokenizer.detokenize(tokens, 2), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_code_search_is_in_float32_whatever_it_is_given(tokenizer):
    """In bfloat16 the search returns other codes than the model was trained with."""
    latents = torch.randn(500, CONFIG["latent_channels"]).bfloat16()
    codebook = tokenizer.quantize.embedding.weight
    exact = torch.cdist(latents.double(), codebook.double()).argmin(dim=1)
    rounded = (latents[:, None] - codebook.bfloat16()).square().sum(dim=2).argmin(dim=1)
    assert not torch.equal(rounded, exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.quantize.nearest_codes(latents), exact)


def test_codebooks_stay_in_float32_when_the_networks_do_not(saved, tokenizer):
    model = CompressiveVQModel.from_pretrained(saved, torch_dtype=torch.bfloat16)
    assert model.quant_conv.weight.dtype == torch.bfloat16
    for name in ("quantize.embedding.weight", "dynamics_quantize.embedding.weight"):
        assert torch.equal(model.state_dict()[name], tokenizer.state_dict()[name])
    tokens, _ = model.tokenize(clip(1, 3, 64, 64), 2)
    assert model.detokenize(tokens, 2).shape == (1, 3, 3, 64, 64)


@torch.no_grad()
def test_a_context_without_a_future_is_a_clip_too(tokenizer):
    frames = clip(2, 2, 64, 64)
    tokens, _ = tokenizer.tokenize(frames, 2)
    assert tokens.shape == (2, tokenizer.layout(0).sequence_length)
    assert tokenizer.detokenize(tokens, 2).shape == frames.shape


def test_shrinking_the_context_keeps_the_last_frames(saved):
    model = CompressiveVQModel.from_pretrained(saved)
    before = model.cond_decoder.cross_att_blocks[0].kv_pos_emb.detach().clone()
    model.set_context_length(1)
    assert torch.equal(model.cond_decoder.cross_att_blocks[0].kv_pos_emb, before[256:])
    assert model.context_length == model.config.context_length == 1


@torch.no_grad()
def test_aligned_attention_reads_the_same_place_of_the_last_context_frame():
    """With the plain start attention is flat: a clip's own objects cannot come from its context frames."""
    torch.manual_seed(0)
    attention = CrossAttention(channels=64, resolution=16, context_length=2).eval()
    attention.align(torch.randn(40, 64, 16, 16))
    hidden, context = torch.randn(1, 64, 16, 16), torch.randn(2, 64, 16, 16)
    plain = attention(hidden, attention.project_context(context))
    context[1, :, 5, 9] = torch.randn(64)  # the last frame, one place
    change = (attention(hidden, attention.project_context(context)) - plain).square().sum(dim=1)[0]
    assert change.argmax() == 5 * 16 + 9
    assert change[5, 9] > 0.8 * change.sum()


@torch.no_grad()
def test_attention_aligned_to_the_difference_leaves_little_of_a_still_frame():
    """Otherwise tokens say again what the context shows, and a transformer has to learn to read it there."""
    torch.manual_seed(0)
    features = torch.einsum("cd,ndhw->nchw", torch.randn(64, 8), torch.randn(40, 8, 16, 16)) + 5
    features += 0.05 * torch.randn_like(features)
    attention = CrossAttention(channels=64, resolution=16, context_length=2).eval()
    attention.align_to_difference(features)
    context = attention.project_context(features[:2])
    still, other = attention(features[1:2], context), attention(features[2:3], context)
    assert still.square().mean() < 0.1 * other.square().mean()


@torch.no_grad()
def test_aligned_to_the_context_little_is_left_of_a_still_frame(tokenizer):
    """What the first attention hands on is all that the rest of the encoder gets to see."""
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(tokenizer)
    clips = torch.rand(16, 1, 3, 8, 8).repeat_interleave(8, dim=3).repeat_interleave(8, dim=4).expand(-1, 2, -1, -1, -1)
    tokenizer.align_to_context(clips)
    first, *others = tokenizer.cond_encoder.cross_att_blocks
    energies = []
    first.register_forward_hook(lambda module, inputs, output: energies.append(output.square().mean().item()))
    for future in (clips[:, -1], clips[:, -1].roll(1, dims=0)):
        tokenizer.latents(clips.flatten(0, 1), future)
    still, moving = energies
    assert still < 0.2 * moving
    assert not any(block.att.out_proj.weight.any() for block in others)
    assert torch.equal(tokenizer.cond_decoder.conv_out.weight, tokenizer.decoder.conv_out.weight)


def test_growing_the_context_is_refused(saved):
    model = CompressiveVQModel.from_pretrained(saved)
    with pytest.raises(UserError, match="3 was asked of a tokenizer with 2"):
        model.set_context_length(3)


def test_another_context_length_is_refused(tokenizer):
    with pytest.raises(UserError, match="has 2 context frames"):
        tokenizer.tokenize(clip(1, 3, 64, 64), 1)


def test_saved_and_loaded_model_is_the_same(tokenizer, saved):
    loaded = CompressiveVQModel.from_pretrained(str(saved), use_safetensor=True)
    for key in CONFIG:
        assert loaded.config[key] == tokenizer.config[key], key
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_config_of_the_public_vq_model_is_accepted(saved):
    config = json.loads((saved / "config.json").read_text()) | {"_class_name": "VQModel"}
    (saved / "config.json").write_text(json.dumps(config))
    assert isinstance(CompressiveVQModel.from_pretrained(saved), CompressiveVQModel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("quant_linear.bias"), "quant_linear.bias"),
        (lambda tensors: tensors.update(stray=torch.zeros(1)), "stray"),
        (lambda tensors: tensors.update({"quant_linear.bias": torch.zeros(3)}), "quant_linear.bias"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_loading_is_strict(saved, change, message):
    """Weights silently re-initialised when names or shapes differ make a model that only looks trained."""
    _rewrite(saved, change)
    with pytest.raises(UserError, match=message):
        CompressiveVQModel.from_pretrained(saved)


def test_missing_weights_are_one_clear_error(saved):
    (saved / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        CompressiveVQModel.from_pretrained(saved)


def test_gradient_checkpointing_changes_no_gradient():
    frames = clip(1, 4, 64, 64)
    norms = []
    for checkpointing in (False, True):
        model = fill(CompressiveVQModel(**CONFIG))
        if checkpointing:
            model.enable_gradient_checkpointing()
        out = model(frames[0, :2], return_loss=True, dyn_sample=frames[0, 2:], segment_len=2)
        (out.sample.mean() + out.ref_sample.mean()).backward()
        norms.append(model.cond_encoder.conv_in.weight.grad.norm())
    torch.testing.assert_close(norms[0], norms[1])


def test_released_calling_conventions(tokenizer):
    """Other people's code unpacks these tuples."""
    frames = clip(1, 4, 64, 64)
    inputs = {"sample": frames[0, :2], "dyn_sample": frames[0, 2:], "segment_len": 2}
    with torch.no_grad():
        assert len(tokenizer(**inputs, return_dict=False, return_loss=True)) == 4
        assert len(tokenizer(**inputs, return_dict=False)) == 1
        assert tokenizer(**inputs).ref_sample is None


def test_encode_and_decode_are_the_context_path(tokenizer):
    """Code that knows diffusers' ``VQModel`` calls these two, with latents that have channels first."""
    frames = clip(1, 2, 64, 64)
    with torch.no_grad():
        latents = tokenizer.encode(frames[0]).latents
        decoded = tokenizer.decode(latents)
        expected = tokenizer.decode_context(tokenizer.encode_context(frames).codes).frames[0]
    assert latents.shape == (2, CONFIG["latent_channels"], 16, 16)
    torch.testing.assert_close(decoded.sample, expected)
    assert decoded.commit_loss > 0
    assert torch.equal(tokenizer.encode(frames[0], return_dict=False)[0], latents)
    assert torch.equal(tokenizer.decode(latents, return_dict=False)[0], decoded.sample)


def test_init_modules_copies_the_plain_halves():
    """Fine-tuning scripts call it after loading a plain VQGAN."""
    model = CompressiveVQModel(**CONFIG)
    model.init_modules()
    assert torch.equal(model.cond_encoder.conv_in.weight, model.encoder.conv_in.weight)
    assert torch.equal(model.cond_decoder.conv_out.weight, model.decoder.conv_out.weight)


def test_a_discriminator_is_saved_and_loaded(tmp_path):
    """Its size and the vectors of its spectral norms belong to it: without them logits differ."""
    model = fill(Discriminator(hidden_channels=64, depth=3))
    model.save_pretrained(tmp_path)
    loaded = Discriminator.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(clip(1, 2, 64, 64)[0]), model(clip(1, 2, 64, 64)[0]))
    _rewrite(tmp_path, lambda tensors: tensors.pop("encoder.0.weight_u"))
    with pytest.raises(UserError, match=r"read as a discriminator, .* missing: encoder\.0\.weight_u"):
        Discriminator.from_pretrained(tmp_path)


def test_defaults_of_the_discriminator():
    """Six convolutions of up to 512 channels; the training script's ``--disc_depth`` is another default."""
    strided = [layer for layer in Discriminator().encoder if hasattr(layer, "out_channels")]
    assert [layer.out_channels for layer in strided] == [64, 128, 256, 512, 512, 512]
