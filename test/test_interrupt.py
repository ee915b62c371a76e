"""How a run is asked to end: the first signal, the second, and what is left behind."""

from __future__ import annotations

import signal

import pytest

from torchrl_tdmpc.trainers import GracefulInterrupt

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_asks_and_the_second_interrupts(first, second):
    with GracefulInterrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(first)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)


def test_long_work_is_left_once_the_run_was_asked_to_end():
    with GracefulInterrupt() as interrupt:
        interrupt.raise_if_requested()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupt.raise_if_requested()


def test_handlers_are_as_before_once_it_is_left():
    before = [signal.getsignal(number) for number in SIGNALS]
    with GracefulInterrupt():
        assert all(signal.getsignal(n) != handler for n, handler in zip(SIGNALS, before))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_scheduler_s_signal_ends_the_run_first_and_its_own_handler_hears_of_it_then():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        with GracefulInterrupt() as interrupt:
            signal.raise_signal(signal.SIGUSR2)
            assert interrupt.requested and heard == []
        assert heard == [signal.SIGUSR2]
        with GracefulInterrupt():
            signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_that_nobody_handles_stays_as_it_is():
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    with GracefulInterrupt():
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
