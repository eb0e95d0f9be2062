"""An adopted folder loses nothing of theirs, and each rule that sees to it is needed.

``python -m datalake_assets_tests.lake.adopted.test_adopted_model 5000`` runs that many histories.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace

import pytest

from datalake_assets.core.manifest import Manifest
from datalake_assets_tests.lake.adopted import adopted_model
from datalake_assets_tests.lake.adopted.adopted_model import AdoptedHistory
from datalake_assets_tests.lake.commit_model import Broken, quiet
from datalake_assets_tests.lake.simulated_store import SimulatedStore

HISTORIES = int(os.environ.get("DATALAKE_MODEL_HISTORIES", "200"))
ENOUGH_FOR_A_MUTANT = 300


def delete_whatever_is_there(patch):
    """What was compacted is deleted, though its name may hold another file by now."""

    def delete_if(self, etags):
        self.delete(etags)
        return ()

    patch.setattr(SimulatedStore, "delete_if", delete_if)


def list_before_load(patch):
    """The manifest that a listing is compared with may be newer than the listing."""
    honest = adopted_model.list_after

    def list_before(history, log):
        stale = list(history.store.list(adopted_model.FOLDER))
        with pytest.MonkeyPatch.context() as within:
            within.setattr(history.store, "list", lambda _: stale)
            return honest(history, log)

    patch.setattr(adopted_model, "list_after", list_before)


def reconcile_over_an_unfinished_commit(patch):
    """Files of a commit under way, and garbage, are taken for somebody else's."""
    honest = Manifest.reconciled

    def reconciled(self, files, **rest):
        return honest(replace(self, pending=None, garbage=()), files, **rest)

    patch.setattr(Manifest, "reconciled", reconciled)
    patch.setattr(adopted_model, "settled", lambda log: log.load())


MUTANTS = (delete_whatever_is_there, list_before_load, reconcile_over_an_unfinished_commit)


def run(histories: int) -> Counter[str]:
    """Many histories, one seed each; returns what happened in all, by name."""
    total: Counter[str] = Counter()
    with quiet():
        for seed in range(histories):
            total.update(AdoptedHistory(seed).run())
    return total


def test_adopted_folder_loses_nothing_in_random_histories():
    total = run(HISTORIES)
    happened = {"reconcile", "compact", "swept", "rolled back", "conflicts", "crashes", "naps"}
    others = {"others' files", "others' rewrites", "others' deletes"}
    assert happened | others <= {name for name, count in total.items() if count}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_model_check_catches_a_broken_rule(mutant):
    with quiet(), pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        for seed in range(ENOUGH_FOR_A_MUTANT):
            try:
                AdoptedHistory(seed).run()
            except Broken as error:
                print(f"caught after {seed + 1} histories: {error}")
                return
    pytest.fail("not caught")


if __name__ == "__main__":
    print(", ".join(f"{count:,} {name}" for name, count in run(int(sys.argv[1])).most_common()))
