"""What `generation.py` found, as markdown tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def speed_table(results: list[dict[str, Any]]) -> str:
    lines = header("frames/s", "times as fast", "first frame, ms", "step, ms", "p95", "peak, MB")
    for result, name, way in rows(results):
        step = way.get("step_s", {})
        cells = [f"{way['frames_per_s']:.3g}", f"{way['ratio']:.2f}" if "ratio" in way else ""]
        cells += [_ms(way.get("first_frame_s")), _ms(step.get("median")), _ms(step.get("p95"))]
        lines.append(line(result, name, *cells, f"{way['peak_bytes'] / 1e6:.0f}"))
    return "\n".join(lines + failures(results))


def parts_table(results: list[dict[str, Any]]) -> str:
    """Milliseconds of whole rollouts, and of the tokenizer per frame."""
    columns = ["encode", "prefill", "passes", "frames", "floor", "floor/rollout", "encode a frame", "decode a frame"]
    lines = header(*columns)
    for result, name, way in rows(results):
        least, of_tokenizer = way.get("floor_s"), way.get("tokenizer_s_per_frame", {})
        cells = [_ms(way["parts_s"][part]) for part in columns[:4]]
        cells += [_ms(sum(least.values())), f"{100 * way['share_of_floor']:.0f} %"] if least else ["", ""]
        lines.append(line(result, name, *cells, _ms(of_tokenizer.get("encode")), _ms(of_tokenizer.get("decode"))))
    return "\n".join(lines)


def agreement_table(results: list[dict[str, Any]]) -> str:
    columns = ("equal tokens", "in the first frame", "equal frames", "PSNR, dB", "of the first frame")
    lines = header(*columns)
    for result in results:
        cells = [f"{100 * result[key]:.1f} %" for key in ("equal_tokens", "equal_tokens_of_first_frame")]
        cells.append(f"{result['frames_before_first_difference']:.1f}")
        cells += [f"{result[key]:.1f}" for key in ("psnr", "psnr_of_first_frame")]
        lines.append(line(result, result["way"], *cells))
    return "\n".join(lines)


def header(*columns: str) -> list[str]:
    return [
        f"| model | clips x samples | way | {' | '.join(columns)} |",
        f"|---|---:|---|{'---:|' * len(columns)}",
    ]


def line(result: dict[str, Any], way: str, *cells: str) -> str:
    return f"| {case_name(result)} | {way} | {' | '.join(cells)} |"


def rows(results: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    for result in results:
        for name, way in result["ways"].items():
            if "error" not in way:
                yield result, name, way


def failures(results: list[dict[str, Any]]) -> list[str]:
    return [
        f"\n{case_name(result)}, {name}: {way['error']}"
        for result in results
        for name, way in result["ways"].items()
        if "error" in way
    ]


def scaling_notes(results: list[dict[str, Any]]) -> str:
    """Which of the released way's numbers are not measured to the end."""
    lines = [
        f"{result['model']}: the released way predicted {way['frames_measured']} of {result['frames']} frames; "
        "prefill and passes of the others are scaled by the positions that they process"
        for result, _, way in rows(results)
        if way.get("frames_measured", result["frames"]) < result["frames"]
    ]
    return "\n".join(dict.fromkeys(lines))


def case_name(result: dict[str, Any]) -> str:
    return f"{result['model']} | {result['clips']} x {result['samples']}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"
