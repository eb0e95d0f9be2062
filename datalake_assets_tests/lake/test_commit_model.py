"""The commit protocol holds its invariants in random histories, and each rule that it has is needed.

``python -m datalake_assets_tests.lake.test_commit_model 5000`` runs that many histories, then lets every mutant be
caught; a second argument is the first seed. ``DATALAKE_MODEL_HISTORIES`` makes the test itself longer.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections import Counter

import pytest

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Garbage, Manifest
from datalake_assets.errors import AmbiguousWrite
from datalake_assets.lake.commit import Change, PartitionLog, Planned
from datalake_assets_tests.lake.commit_model import Broken, History, quiet
from datalake_assets_tests.lake.commit_mutants import MUTANTS, WEATHER, Mutant
from datalake_assets_tests.lake.simulated_store import SimulatedStore

HISTORIES = int(os.environ.get("DATALAKE_MODEL_HISTORIES", "200"))
ENOUGH_FOR_A_MUTANT = 300


def run(histories: int, *, first: int = 0) -> Counter[str]:
    """Many histories, one seed each; returns what happened in all, by name."""
    total: Counter[str] = Counter()
    with quiet():
        for seed in range(first, first + histories):
            total.update(History(seed).run())
    return total


def histories_until_caught(mutant: Mutant, *, at_most: int = ENOUGH_FOR_A_MUTANT) -> tuple[int, str]:
    """How many histories it took to see that a rule is broken, and what was seen; 0 if it was not."""
    with quiet(), pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        for seed in range(at_most):
            try:
                History(seed, **WEATHER.get(mutant, {})).run()
            except Broken as error:
                return seed + 1, str(error)
    return 0, "not caught"


def test_commit_holds_its_invariants_in_random_histories():
    total = run(HISTORIES)
    happened = {"append", "replace", "compact", "delete", "rolled back", "conflicts", "crashes", "naps", "power cuts"}
    happened |= {
        "compact conflicts",
        "compact crashes at cas",
        "compact crashes at publish",
        "compact crashes at delete",
    }
    assert happened <= {name for name, count in total.items() if count}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_model_check_catches_a_broken_rule(mutant):
    caught, seen = histories_until_caught(mutant, at_most=ENOUGH_FOR_A_MUTANT)
    assert caught, seen


class _Crash(BaseException):
    """The process ends."""


def test_settle_goes_on_when_another_process_gets_there_first():
    store = SimulatedStore(random.Random(0))
    ids = itertools.count()

    def log():
        return PartitionLog(store, "control/manifest.json", "data", lambda: f"id{next(ids)}")

    def crash(step):
        if step == "publish":
            raise _Crash

    def overtake(step):
        if step == "cas":
            store.pause = lambda _step: None
            log().settle(log().load())

    with store.stage("data/file") as writer:
        writer.write(b"row")
        staged = writer.finish()
    store.pause = crash
    with pytest.raises(_Crash):
        log().commit(Change("append", "append", ((staged, DataFile("file", 1, 3)),), lambda _base: Planned()))
    store.pause = overtake

    settled = log().settle(log().load()).manifest

    assert (settled.pending, settled.generation, len(settled.files)) == (None, 1, 1)


def test_settle_goes_on_when_the_answer_to_a_delete_is_lost(monkeypatch):
    store = SimulatedStore(random.Random(0))
    ids = itertools.count()
    log = PartitionLog(store, "control/manifest.json", "data", lambda: f"id{next(ids)}")
    store.put("control/manifest.json", Manifest(generation=1, garbage=(Garbage("file"),)).to_bytes())
    delete = store.delete
    answers = iter([AmbiguousWrite("data/file", "the answer was lost"), None])

    def delete_unheard(keys):
        delete(keys)
        if lost := next(answers):
            raise lost

    monkeypatch.setattr(store, "delete", delete_unheard)

    assert log.settle(log.load()).manifest.garbage == ()


def main(histories: int = 5000, first: int = 0) -> None:
    """Prints the figures of a long run."""
    began = time.process_time()
    total = run(histories, first=first)
    print(f"{histories:,} histories, {time.process_time() - began:.0f} s of CPU: all invariants held")
    print(", ".join(f"{count:,} {name}" for name, count in total.most_common()))
    for mutant in MUTANTS:
        caught, seen = histories_until_caught(mutant, at_most=10 * ENOUGH_FOR_A_MUTANT)
        print(f"{mutant.__name__}: {f'caught after {caught} histories' if caught else 'NOT CAUGHT'}: {seen}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
