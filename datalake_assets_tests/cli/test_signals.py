"""Signals that come while they would be taken for something else."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from datalake_assets.cli import signals
from datalake_assets.cli.signals import heed_signals, heeded_afterwards

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in BOTH}
    monkeypatch.setattr(signals, "_ignored", signals._ignored)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    heed_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_interrupts_at_the_end_of_a_block_that_holds_it_back(number: int) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), heeded_afterwards():  # noqa: PT012  what a signal interrupts
        signal.raise_signal(number)
        done.append("all of it")
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_a_second_signal_interrupts_at_once() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), heeded_afterwards():  # noqa: PT012  what a signal interrupts
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        done.append("more")
    assert not done


def test_a_block_without_a_signal_or_with_an_error_ends_as_ever() -> None:
    with heeded_afterwards():
        pass
    with pytest.raises(ValueError, match="of its own"), heeded_afterwards():  # noqa: PT012  likewise
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of its own")
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_is_not_held_back_either() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heed_signals()
    with heeded_afterwards():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
