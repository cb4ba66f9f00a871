"""The tokenizer's blocks compute what diffusers' blocks compute, and start from the same weights for a seed."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders import vae

from ivideogpt.vq_model.quantizer import VectorQuantizer
from ivideogpt.vq_model.vae import Decoder, Encoder

SHARED = {"block_out_channels": (8, 16, 32), "layers_per_block": 2, "norm_num_groups": 4, "act_fn": "silu"}
ENCODER = SHARED | {"in_channels": 3, "out_channels": 6, "down_block_types": ("DownEncoderBlock2D",) * 3}
DECODER = SHARED | {"in_channels": 6, "out_channels": 3, "up_block_types": ("UpDecoderBlock2D",) * 3}


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs", "options", "extra", "shape"),
    [
        (Encoder, vae.Encoder, ENCODER, {"double_z": False}, (2, 3, 32, 32)),
        (Encoder, vae.Encoder, ENCODER | {"act_fn": "gelu"}, {"double_z": False}, (1, 3, 16, 24)),
        (Decoder, vae.Decoder, DECODER, {}, (2, 6, 8, 8)),
        (Decoder, vae.Decoder, DECODER, {}, (64, 6, 4, 4)),
    ],
    ids=["encoder", "encoder-gelu", "decoder", "decoder-large-batch"],
)
def test_same_weights_outputs_and_gradients_as_diffusers(ours, theirs, options, extra, shape, attention):
    """Released weights would give other frames, and old seeds other trainings."""
    torch.manual_seed(0)
    expected = theirs(**options, **extra, mid_block_add_attention=attention)
    torch.manual_seed(0)
    network = ours(**options, mid_block_add_attention=attention)
    state = network.state_dict()
    assert list(state) == list(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name

    inputs = torch.randn(shape)
    output, _ = network(inputs)
    reference = expected(inputs)
    torch.testing.assert_close(output, reference, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(output)
    (output * weight).sum().backward()
    (reference * weight).sum().backward()
    parameters = dict(network.named_parameters())
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(parameters[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)


def test_codebooks_start_as_those_of_diffusers():
    """A seed gives the codes that it always gave."""
    torch.manual_seed(0)
    expected = vae.VectorQuantizer(10, 4, beta=1.0, legacy=False)
    torch.manual_seed(0)
    assert torch.equal(VectorQuantizer(10, 4).embedding.weight, expected.embedding.weight)
