"""The stream of finished training batches."""

from dataclasses import replace

import pytest
import torch

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import Augmentation
from ivideogpt.training.common.clip_batches import BatchStream
from tests.data.synthetic import write_dataset

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.fixture
def config(tmp_path):
    write_dataset(tmp_path / "a", 4, num_frames=20, size=(12, 12))
    segment = SegmentSpec("contiguous", length=3)
    return DataConfig(str(tmp_path), "folder:*", segment, image_size=8, batch_size=2, load_action=True)


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("device", DEVICES)
def test_a_stream_resumes_after_the_batch_it_handed_out(config, device, num_workers, augmentation):
    """A batch that was copied ahead but not trained on must come again."""
    config = replace(config, num_workers=num_workers, augmentation=augmentation)
    stream = BatchStream(build_loader(config), torch.device(device))
    used = [next(stream) for _ in range(2)]
    state = stream.state_dict()
    later = [next(stream) for _ in range(2)]
    resumed = BatchStream(build_loader(config), torch.device(device))
    resumed.load_state_dict(state)
    again = [next(resumed) for _ in range(2)]
    for batch, other in zip(later, again):
        assert batch.frames.device.type == device
        assert torch.equal(batch.frames, other.frames)
        assert torch.equal(batch.actions, other.actions)
    assert not torch.equal(used[1].frames, later[0].frames)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_finished_on_their_device(config, device):
    """The same frames wherever they are finished, but for levels where floats round differently."""
    config = replace(config, augmentation=Augmentation())
    stream = BatchStream(build_loader(config), torch.device(device))
    for packed, _ in zip(build_loader(config), range(3)):
        frames = next(stream).frames
        assert frames.dtype == torch.float32
        differences = (frames.cpu() - packed.to("cpu").frames).abs() * 255
        assert differences.max() == 0 if device == "cpu" else differences.mean() < 0.1
