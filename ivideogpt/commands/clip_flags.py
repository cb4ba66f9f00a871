"""What every evaluation may be asked: which clips, how many, on which device, where the report goes."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ivideogpt.data.catalog import Split, stepsize_as_trained
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.evaluation_clips import EvaluationClips, build_evaluation_clips
from ivideogpt.data.clips.segments import SegmentSpec, segment_kind
from ivideogpt.data.dataset_mixes import resolve_mix
from ivideogpt.devices import DEVICES, check_launcher, choose_device
from ivideogpt.errors import UserError
from ivideogpt.evaluation.output import check_folder_can_be_written
from ivideogpt.evaluation.processes import Processes, join_processes
from ivideogpt.flags import option
from ivideogpt.paths import LPIPS_FOLDER
from ivideogpt.pretrained import ModelMetadata

MOST_CLIPS = 100  # where nobody says how many
NOT_REPORTED = ("output_path",)  # where a report lies changes nothing in it


@dataclass(frozen=True, kw_only=True)
class ClipFlags:
    """Flags of all evaluations."""

    pretrained_model_name_or_path: str
    dataset_path: str | None = option(
        None, "folder that holds one folder of .npz episodes per dataset, or lerobot:<folder>[@<camera>]"
    )
    oxe_data_mixes_type: str = option("folder:*", "datasets: a named mix, folder:<name>[,<name>...] or folder:*")
    split: str = option("test", "which episodes", choices=("train", "test", "all"))
    video_stepsize: int | None = option(None, "as in training; unless given, what the checkpoint says", minimum=1)
    segment_length: int | None = option(None, "frames of a clip, context included; unless given, the checkpoint's")
    num_clips: int | None = option(
        None, f"clips, one of each episode in turn; unless given, one of each, or of {MOST_CLIPS} of them", minimum=1
    )
    sthsth_root_path: str | None = option(None, "frame folders of Something-Something v2, for mixes that hold it")
    batch_size: int = option(10, "clips at a time", minimum=1)
    max_decode_batchsize: int | None = option(None, "frames that LPIPS, clips that I3D is given at a time", minimum=1)
    lpips_path: str = option(LPIPS_FOLDER, "folder of the LPIPS weights; without them LPIPS is left out")
    seed: int = option(0, "decides the clips, and the futures where they are sampled", minimum=0)
    device: str = option(
        "auto", "where the model runs; of several processes each gets a GPU of its own", choices=DEVICES
    )
    dtype: str = option("float32", "precision of the model", choices=("float32", "bfloat16", "auto"))
    output_path: str = option("outputs/evaluation", "folder of the report: report.md, report.json, pictures")

    @property
    def precision(self) -> torch.dtype | Literal["auto"]:
        return "auto" if self.dtype == "auto" else getattr(torch, self.dtype)

    def check_dataset_path(self, alternative: str = "") -> None:
        if self.dataset_path is None:
            raise UserError(f"--dataset_path is missing: name the folder of episodes{alternative}")

    def check_output_path(self) -> None:
        if Path(self.output_path).suffix == ".json":
            raise UserError(f"--output_path {self.output_path}: name a folder, in which there will be report.json")
        check_folder_can_be_written(Path(self.output_path), "--output_path")

    def open(self) -> tuple[torch.device, Processes]:
        """What the command runs on. The main process alone logs what all of them would say."""
        check_launcher()
        device = choose_device(self.device)
        processes = join_processes(device)
        logging.basicConfig(level=logging.WARNING if processes.is_main else logging.ERROR, format="%(message)s")
        if self.precision == torch.float32:
            torch.backends.cudnn.allow_tf32 = False
        return device, processes

    def reported(self) -> dict[str, Any]:
        """What a report says that it was asked for."""
        asked = {name: value for name, value in asdict(self).items() if name not in NOT_REPORTED}
        return {"model": asked.pop("pretrained_model_name_or_path"), **asked}


def clip_config(flags: ClipFlags, metadata: ModelMetadata) -> DataConfig:
    """Clips of the form that the model was trained on."""
    mix = resolve_mix(flags.oxe_data_mixes_type, flags.dataset_path)
    kind = segment_kind(goal_conditioned=metadata.goal_conditioned)
    return DataConfig(
        dataset_path=flags.dataset_path,
        mix=mix,
        segment=SegmentSpec(kind, metadata.segment_length, metadata.context_length),
        video_stepsize=flags.video_stepsize or stepsize_as_trained([name for name, _ in mix], metadata.dataset_step),
        image_size=metadata.resolution,
        load_action=metadata.action_dim is not None,
        action_dim=metadata.action_dim,
        sthsth_root_path=flags.sthsth_root_path,
        whole_clips=True,
    )


def clips_of_split(flags: ClipFlags, config: DataConfig) -> EvaluationClips:
    """Clips of the split that the flags name."""
    split: Split = flags.split  # type: ignore[assignment]
    return build_evaluation_clips(config, split, flags.num_clips, flags.seed, at_most=MOST_CLIPS)
