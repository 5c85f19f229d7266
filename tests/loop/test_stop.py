"""Requests to stop, by hand and by signals."""

import os
import signal

import pytest

from fastdistill.failures import Stopped
from fastdistill.loop.stop import Stop


def test_a_request_interrupts_at_once():
    with pytest.raises(Stopped, match="by hand"):
        Stop().ask("by hand")


def test_a_deferring_block_notices_by_itself_and_a_second_request_interrupts_it():
    stop = Stop()
    with stop.deferred():
        stop.ask("first")
        assert stop.asked == "first"
        with pytest.raises(Stopped, match="second"):
            stop.ask("second")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_requests_meanwhile_only(number):
    stop, before = Stop(), signal.getsignal(number)
    with stop.on_signals(), stop.deferred():
        os.kill(os.getpid(), number)
        assert stop.asked == number.name
    assert signal.getsignal(number) is before
    with Stop().on_signals(), pytest.raises(Stopped, match=number.name):
        os.kill(os.getpid(), number)
