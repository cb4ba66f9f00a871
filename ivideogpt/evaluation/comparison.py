"""Compare reports of one kind side by side.

Reports on the same clips are compared clip by clip: the difficulty of each clip cancels out, so that the difference
is known far more precisely than the two means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.evaluation.bootstrap import BootstrapMeans
from ivideogpt.evaluation.report import JSON_FILE, in_order, label, markdown_table, number, with_interval
from ivideogpt.evaluation.rows import CLIPS_FILE, ClipRow, Key, by_key


@dataclass(frozen=True)
class Report:
    """A report read from its files. ``means`` are computed again from its clips."""

    path: Path
    content: Mapping[str, Any]
    means: BootstrapMeans[Key]

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report from its folder or its report.json; UserError if it is none of ours."""
        folder = path if path.is_dir() else path.parent
        try:
            content = json.loads((folder / JSON_FILE).read_text())
            lines = (folder / CLIPS_FILE).read_text().splitlines()
            rows = sorted((ClipRow.from_json(json.loads(line)) for line in lines), key=lambda row: row.number)
            means = BootstrapMeans([by_key(row.summaries) for row in rows], [row.episode_key for row in rows])
            content["kind"], content["clips"]["checksum"], content["scores"]
            if len(lines) != content["clips"]["number"]:
                raise ValueError(f"{len(lines)} clips of {content['clips']['number']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no report with {JSON_FILE} and {CLIPS_FILE}: {error}") from error
        return cls(path, content, means)

    @property
    def clips(self) -> tuple[str, int | None]:
        """The clips, and how many of their frames are context: scores of other frames are not to be paired."""
        model = self.content.get("model", {})
        stated = model.get("metadata") or model.get("config", {})  # world models have the first, tokenizers the second
        return self.content["clips"]["checksum"], stated.get("context_length")


def compare(reports: Sequence[Report]) -> str:
    """Return tables in markdown: for each column and candidate, a line a report. Several kinds are an error."""
    kinds = {report.content["kind"] for report in reports}
    if len(kinds) > 1:
        raise UserError(f"these are reports on different things: {', '.join(sorted(kinds))}; compare those of one kind")
    names = short_names([report.path for report in reports])
    sections = ["# Comparison", _what_is_compared(reports, names)]
    candidates = dict.fromkeys((column, name) for report in reports for column, name, _ in report.means.keys)
    for column, name in candidates:
        metrics = in_order(key[2] for report in reports for key in report.means.keys if key[:2] == (column, name))
        rows = [
            [called, *(_cell(report, reports[0], (column, name, metric)) for metric in metrics)]
            for report, called in zip(reports, names, strict=True)
        ]
        header = ["", *map(label, metrics)]
        distances = [report.content.get("fvd", {}).get(column, {}).get(name) for report in reports]
        if any(distance is not None for distance in distances):  # one number over all clips, without interval
            header.append(label("fvd"))
            for row, distance in zip(rows, distances):
                row.append("-" if distance is None else number("fvd", distance))
        table = markdown_table(header, rows)
        sections.append(f"## {column.replace('_', ' ')}: {name.replace('_', ' ')}\n\n{table}")
    return "\n\n".join(sections)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell them apart."""
    folders = [(path if path.is_dir() else path.parent).resolve().parts for path in paths]
    for length in range(1, max(map(len, folders)) + 1):
        names = ["/".join(parts[-length:]) for parts in folders]
        if len(set(names)) == len(set(folders)):
            break
    return names


def _what_is_compared(reports: Sequence[Report], names: Sequence[str]) -> str:
    """Describe the reports, the settings in which they differ, and which of them share their clips."""
    settings = [report.content["settings"] for report in reports]
    known = dict.fromkeys(key for values in settings for key in values)
    differing = [key for key in known if len({json.dumps(values.get(key)) for values in settings}) > 1]
    shown = list(dict.fromkeys(["model", *differing]))
    rows = [
        [called, str(report.content["clips"]["number"]), *(str(values.get(key, "-")) for key in shown)]
        for called, report, values in zip(names, reports, settings, strict=True)
    ]
    same = [called for called, other in zip(names[1:], reports[1:], strict=True) if other.clips == reports[0].clips]
    paired = f"None of the others is about the clips of {names[0]}: means only."
    if same:
        paired = f"Under their means, clip by clip, the differences to {names[0]} of {', '.join(same)}."
    paired += " Intervals hold 95 % of bootstrap replicates over episodes."
    return f"{markdown_table(['', 'clips', *shown], rows)}\n\n{paired}"


def _cell(report: Report, first: Report, key: Key) -> str:
    """Return the mean with its interval and, for equal clips, the difference to the first report under it."""
    if key not in report.means:
        return "-"
    text = with_interval(key[2], report.means.interval(key))
    if report is first or report.clips != first.clips or key not in first.means:
        return text
    difference = report.means.difference(key, key, first.means)
    sign = "+" if difference.mean >= 0 else ""
    return f"{text}<br>{sign}{with_interval(key[2], difference)}"
