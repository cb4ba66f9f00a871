from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.play.serving import Running


@pytest.fixture(scope="package")
def server() -> Iterator[Running]:
    running = Running(max_sessions=3)
    yield running
    running.stop()
