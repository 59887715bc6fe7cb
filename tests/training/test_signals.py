"""Signals while training: noticed once, put back as they were."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from proard_nas.training.signals import SignalWatch, exit_at_sigterm, raise_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at SIGTERM")


@pytest.fixture(autouse=True)
def _handlers():
    """Start from Python's handlers, and leave the test run's own ones as they were, whatever a test does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_only_noted(number, caplog):
    with SignalWatch() as watch:
        assert watch.received is None
        with caplog.at_level(logging.WARNING):
            send(number)
        assert watch.received is number
    assert watch.received is number
    assert f"{number.name}: training stops after this batch; once more stops it at once" in caplog.text


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with SignalWatch() as watch:
        send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert watch.received is None


def test_a_second_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt), SignalWatch() as watch:
        send(signal.SIGINT, signal.SIGINT)
    assert watch.received is signal.SIGINT


def test_a_second_signal_goes_to_the_handler_that_was_there_before():
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    with SignalWatch() as watch:
        send(signal.SIGTERM)
        assert seen == []
        send(signal.SIGTERM)
    assert seen == [signal.SIGTERM] and watch.received is signal.SIGTERM


def test_ctrl_c_after_sigterm_interrupts():
    with pytest.raises(KeyboardInterrupt), SignalWatch() as watch:
        send(signal.SIGTERM, signal.SIGINT)
    assert watch.received is signal.SIGTERM


@pytest.mark.parametrize("signalled", [False, True])
def test_handlers_are_put_back(signalled):
    before = handlers()
    with SignalWatch():
        assert all(now != old for now, old in zip(handlers(), before, strict=True))
        if signalled:
            send(signal.SIGTERM)
            assert handlers() == before
    assert handlers() == before


def test_handlers_are_put_back_after_an_error():
    before = handlers()
    with pytest.raises(ZeroDivisionError), SignalWatch():
        raise ZeroDivisionError
    assert handlers() == before


def test_a_handler_that_python_did_not_set_is_left_to_the_system(monkeypatch):
    """`signal.signal` returns None for a handler set in C, and does not take it back."""
    set_handler, given = signal.signal, []

    def from_c(number, handler):
        if handler is None:
            raise TypeError("signal handler must be signal.SIG_IGN, signal.SIG_DFL, or a callable object")
        given.append(handler)
        set_handler(number, handler)

    monkeypatch.setattr(signal, "signal", from_c)
    with SignalWatch():
        pass
    assert given[2:] == [signal.SIG_DFL, signal.SIG_DFL]


def test_off_the_main_thread_signals_act_as_ever():
    before, found = handlers(), []

    def work():
        with SignalWatch() as watch:
            found.append((watch.received, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)] and handlers() == before


@pytest.mark.parametrize("handler", [signal.SIG_DFL, lambda number, frame: None])
def test_sigterm_is_an_exception_at_once_inside_the_block_and_what_it_was_before_after_it(handler):
    signal.signal(signal.SIGTERM, handler)
    with pytest.raises(SystemExit) as raised, exit_at_sigterm():
        send(signal.SIGTERM)
    assert raised.value.code == 128 + 15
    assert handlers() == [signal.default_int_handler, handler]


def test_an_ignored_sigterm_stays_ignored_inside_the_block():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with exit_at_sigterm():
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_off_the_main_thread_sigterm_is_left_alone():
    before, found = handlers(), []

    def work():
        with exit_at_sigterm():
            found.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before] and handlers() == before


def test_a_signal_becomes_what_it_means_to_python():
    with pytest.raises(KeyboardInterrupt):
        raise_for(signal.SIGINT)
    with pytest.raises(SystemExit) as raised:
        raise_for(signal.SIGTERM)
    assert raised.value.code == 128 + 15
