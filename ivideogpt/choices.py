"""Choices and help texts of flags that several commands share. Imports nothing: ``--help`` reads them."""

from __future__ import annotations

SAMPLING_RULES = ("sample", "expected_code")
BACKEND_HELP = "what decodes tokens: torch, cpu_kernels, cuda_graph; auto: the fastest that runs on this device"
