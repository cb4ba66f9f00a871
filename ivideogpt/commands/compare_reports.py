"""``python -m ivideogpt.evaluation compare A B ...``: compare reports of one kind side by side.

Reports on the same clips are compared clip by clip: the difficulty of each clip cancels out, so that the difference
is known far more precisely than the two means.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ivideogpt.errors import UserError
from ivideogpt.evaluation.output import check_folder_can_be_written
from ivideogpt.files import write_text
from ivideogpt.flags import Parser


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    from ivideogpt.evaluation.comparison import Report, compare

    text = compare([Report.read(path) for path in args.report])
    print(text)
    if args.output_path is not None:
        args.output_path.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.output_path, text + "\n")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m ivideogpt.evaluation compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("report", nargs="+", type=Path, help="folder of a report, or its report.json")
    parser.add_argument("--output_path", type=Path, help="also write the tables to this .md file")
    args = parser.parse_args(argv)
    if len(args.report) < 2:
        raise UserError("one report was named, expected at least two to compare")
    if args.output_path is not None:
        check_folder_can_be_written(args.output_path.parent, "--output_path")
    return args
