"""Flags that all evaluations share: the clips, their number, the device, the folder of the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivideogpt.devices import DEVICES
from ivideogpt.errors import UserError
from ivideogpt.evaluation.output import check_folder_can_be_written
from ivideogpt.flags import option
from ivideogpt.paths import LPIPS_FOLDER

MOST_CLIPS = 100  # limit without --num_clips
NOT_REPORTED = ("output_path",)  # the location of a report does not change its content


@dataclass(frozen=True, kw_only=True)
class ClipFlags:
    """Flags of all evaluations."""

    pretrained_model_name_or_path: str
    dataset_path: str | None = option(
        None, "folder that holds one folder of .npz episodes per dataset, or lerobot:<folder>[@<camera>]"
    )
    oxe_data_mixes_type: str = option("folder:*", "datasets: a named mix, folder:<name>[,<name>...] or folder:*")
    split: str = option("test", "split of the episodes", choices=("train", "test", "all"))
    video_stepsize: int | None = option(
        None, "distance of frames, as in training (default: the checkpoint's)", minimum=1
    )
    segment_length: int | None = option(None, "frames of a clip, context included (default: the checkpoint's)")
    num_clips: int | None = option(
        None, f"clips, taken from the episodes in turn (default: one of each episode, at most {MOST_CLIPS})", minimum=1
    )
    sthsth_root_path: str | None = option(None, "frame folders of Something-Something v2, for mixes that hold it")
    batch_size: int = option(10, "clips per batch", minimum=1)
    max_decode_batchsize: int | None = option(None, "batch size of LPIPS in frames, and of I3D in clips", minimum=1)
    lpips_path: str = option(LPIPS_FOLDER, "folder of the LPIPS weights; without them LPIPS is left out")
    seed: int = option(0, "random seed of the choice of clips and of sampling", minimum=0)
    device: str = option("auto", "device of the model; each of several processes gets its own GPU", choices=DEVICES)
    dtype: str = option("float32", "precision of the model", choices=("float32", "bfloat16", "auto"))
    output_path: str = option("outputs/evaluation", "folder of the report: report.md, report.json, pictures")

    def check_dataset_path(self, alternative: str = "") -> None:
        if self.dataset_path is None:
            raise UserError(f"--dataset_path is missing: name the folder of episodes{alternative}")

    def check_output_path(self) -> None:
        if Path(self.output_path).suffix == ".json":
            raise UserError(f"--output_path {self.output_path}: name a folder, in which there will be report.json")
        check_folder_can_be_written(Path(self.output_path), "--output_path")

    def reported(self) -> dict[str, Any]:
        """Return the flags that are written into the report, the model first."""
        asked = {name: value for name, value in asdict(self).items() if name not in NOT_REPORTED}
        return {"model": asked.pop("pretrained_model_name_or_path"), **asked}
