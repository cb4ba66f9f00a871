"""The first signal is a request, the second one an order."""

import os
import signal

import pytest

from ivideogpt.runs import signals
from ivideogpt.runs.signals import Interrupted, StopSignal


def test_a_second_signal_ends_at_once(caplog, monkeypatch):
    """A step that hangs could be ended by SIGKILL alone."""
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    with stop.listening():
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()
        assert stop.number == signal.SIGTERM
        assert "SIGTERM: ending after this step" in caplog.text
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by a launcher that the same signal has reached
        monkeypatch.setattr(signals, "SAME_SIGNAL", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
