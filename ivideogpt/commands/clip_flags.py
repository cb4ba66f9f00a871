"""What every evaluation may be asked: which clips, how many, on which device, where the report goes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivideogpt.devices import DEVICES
from ivideogpt.errors import UserError
from ivideogpt.evaluation.output import check_folder_can_be_written
from ivideogpt.flags import option
from ivideogpt.paths import LPIPS_FOLDER

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

    def check_dataset_path(self, alternative: str = "") -> None:
        if self.dataset_path is None:
            raise UserError(f"--dataset_path is missing: name the folder of episodes{alternative}")

    def check_output_path(self) -> None:
        if Path(self.output_path).suffix == ".json":
            raise UserError(f"--output_path {self.output_path}: name a folder, in which there will be report.json")
        check_folder_can_be_written(Path(self.output_path), "--output_path")

    def reported(self) -> dict[str, Any]:
        """What a report says that it was asked for."""
        asked = {name: value for name, value in asdict(self).items() if name not in NOT_REPORTED}
        return {"model": asked.pop("pretrained_model_name_or_path"), **asked}
