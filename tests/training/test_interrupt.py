from __future__ import annotations

import os
import signal

import pytest

from cascaded_diffusion.training.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_are_remembered_and_end_nothing(number: signal.Signals) -> None:
    outside = signal.signal(number, signal.default_int_handler)  # whatever the tests were started under
    try:
        interrupt = Interrupt()
        with interrupt.watch():
            assert interrupt.received is None
            os.kill(os.getpid(), number)
            assert interrupt.received == number
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, outside)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_one_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    """As under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        interrupt = Interrupt()
        with interrupt.watch():
            os.kill(os.getpid(), number)
        assert interrupt.received is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
