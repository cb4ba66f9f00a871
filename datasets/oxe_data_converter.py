"""Convert a dataset of Open X-Embodiment from RLDS to npz episodes. Needs tensorflow_datasets, not tensorflow.

    python datasets/oxe_data_converter.py --dataset_name bridge --input_path OXE --output_path data/oxe

reads ``OXE/bridge/0.1.0`` and writes ``data/oxe/bridge/<split>_eps_<number>.npz`` with the frames of the camera that
models are trained on. Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.convert.conversion import ConversionArgs, Summary
from ivideogpt.data.convert.rlds import RldsContent, find_splits, read_episode
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse

VERSION = "0.1.0"
OTHER_VERSIONS = {"robo_net": "1.0.0", "cmu_playing_with_food": "1.0.0", "language_table": "0.0.1"}
FAMILY = re.compile(r"(uiuc_d3field|stanford_robocook_converted_externally_to_rlds)[1-4]")  # one folder, four cameras


@dataclass(frozen=True, kw_only=True)
class OxeArgs(ConversionArgs):
    """Convert a dataset of Open X-Embodiment from RLDS to npz episodes."""

    dataset_name: str = option("fractal20220817_data", "name of the dataset, and of its folder")
    input_path: str = option(REQUIRED, "folder that holds <dataset>/<version>")
    output_path: str = option(REQUIRED, "folder that gets <dataset>/<split>_eps_<number>.npz")
    version: str | None = option(None, "version of the dataset (default: the one that models are trained on)")
    actions: bool = option(
        False, "store actions too; the parts of an action are joined to one vector, in order of their names"
    )


def builder_folder(args: OxeArgs) -> Path:
    family = FAMILY.fullmatch(args.dataset_name)
    name = family[1] if family else args.dataset_name
    folder = Path(args.input_path) / name
    version = args.version or OTHER_VERSIONS.get(name, VERSION)
    if not (folder / version).is_dir():
        found = ", ".join(sorted(path.name for path in folder.glob("*.*.*"))) or "none"
        raise UserError(f"{folder / version}: no such folder; versions there: {found}; see --input_path and --version")
    return folder / version


def run(args: OxeArgs) -> Summary:
    require("tensorflow_datasets")
    content = RldsContent(str(builder_folder(args)), dataset_info(args.dataset_name).image_key, args.actions)
    splits = find_splits(content, Path(args.output_path) / args.dataset_name)
    return args.convert(splits, read_episode, args.dataset_name)


if __name__ == "__main__":
    cli(lambda: print(run(parse(OxeArgs))))
