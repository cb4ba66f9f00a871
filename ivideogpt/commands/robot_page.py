"""A page of what a robot's training made: predictions, reconstructions, recordings, and where their scores are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ivideogpt.files import read_json, write_text

PAGE = "index.html"
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:1100px;margin:2em auto}img{max-width:100%;display:block;margin:1em 0}"
    "img[src$=gif]{display:inline-block;width:32%;margin-right:1%;image-rendering:pixelated}"
)


def write_page(folder: Path, robot: str, tokenizer: Mapping[str, Any]) -> Path:
    """Write index.html into the robot's folder, beside the pictures that it shows.

    Args:
        tokenizer: PSNR of test frames ``before`` and ``after`` its training.
    """
    before, after = tokenizer["before"], tokenizer["after"]
    kept = "tokenizer-after" if after > before else "tokenizer-before"
    trained = f"Test frames are reconstructed at {before:.2f} dB before, {after:.2f} dB after training."
    lines = [
        *section(folder, "Predictions", summary(read_json(folder / "report" / "report.json")), "report"),
        *section(folder, "Tokenizer", trained, kept),
        *section(folder, "Recordings", "A frame stands above the action taken at it.", "preview"),
    ]
    head = f"<!doctype html><meta charset=utf-8><title>{escape(robot)}</title><style>{STYLE}</style>"
    write_text(folder / PAGE, "\n".join([head, f"<h1>{escape(robot)}</h1>", *lines, ""]))
    return folder / PAGE


def summary(report: Mapping[str, Any]) -> str:
    """Say in words how a report's predicted frames compare with copying the last frame."""
    made, copied, limit = (
        report["scores"]["future"][name]["psnr"]["mean"] for name in ("prediction", "copy_last_frame", "reconstruction")
    )
    compared = f"{abs(made - copied):.2f} dB {'better' if made > copied else 'WORSE'} than copying the last frame"
    counted = f"{report['clips']['number']} clips of {report['clips']['episodes']} test episodes"
    return f"{made:.2f} dB, {compared}; the tokenizer alone reaches {limit:.2f} dB. {counted}."


def section(folder: Path, title: str, text: str, pictures: str) -> Iterable[str]:
    """Yield lines of HTML: a title, a text, a link to the report if there is one, all pictures of a folder below."""
    yield f"<h2>{escape(title)}</h2><p>{escape(text)}</p>"
    if (folder / pictures / "report.md").is_file():
        yield f'<p><a href="{pictures}/report.md">All scores</a></p>'
    for suffix in (".gif", ".png"):
        for path in sorted((folder / pictures).glob(f"*{suffix}")):
            yield f'<img src="{pictures}/{escape(path.name)}" alt="{escape(path.stem)}">'
