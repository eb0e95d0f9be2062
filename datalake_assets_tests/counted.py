"""How often manifests are read and plans are made: work that is done once must not creep back in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from datalake_assets.lake import compaction_plans
from datalake_assets.lake.store.local import LocalStore


@dataclass
class Counted:
    """What was counted.

    Attributes:
        loads: Requests for each manifest.
        plans: Plans that were made, of all partitions.
    """

    loads: Counter[str] = field(default_factory=Counter)
    plans: int = 0

    def clear(self) -> None:
        self.loads.clear()
        self.plans = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Counts what this process does on local lakes."""
    work = Counted()
    get, plan = LocalStore.get, compaction_plans.plan_compaction

    def counting_get(self: LocalStore, key: str) -> tuple[bytes, str]:
        if key.endswith("/manifest.json"):
            work.loads[key] += 1
        return get(self, key)

    def counting_plan(*args: object, **options: object) -> object:
        work.plans += 1
        return plan(*args, **options)

    monkeypatch.setattr(LocalStore, "get", counting_get)
    monkeypatch.setattr(compaction_plans, "plan_compaction", counting_plan)
    return work
