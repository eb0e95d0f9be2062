"""Which process of pytest runs which tests: a file stays together, and what takes long begins first.

``--dist loadgroup`` hands out tests one by one: each process made the fixtures of nearly every module, and handing out
7,500 tests took ten CPU seconds. The last of a run would be whatever comes last, which may take a minute.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from xdist.scheduler import LoadGroupScheduling

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

__all__ = ["FilesTogether"]


class FilesTogether(LoadGroupScheduling):
    """Hands out groups first, then each test of the files that have slow ones, then the other files by their length."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._is_slow = cache(lambda file: "mark.slow" in Path(config.rootpath, file).read_text())
        self._is_sorted = False

    def _split_scope(self, nodeid: str) -> str:
        scope = super()._split_scope(nodeid)
        file = nodeid.partition("::")[0]
        return file if scope == nodeid and not self._is_slow(file) else scope

    def _assign_work_unit(self, node: WorkerController) -> None:
        if not self._is_sorted:
            self.workqueue = OrderedDict(sorted(self.workqueue.items(), key=self._place))
            self._is_sorted = True
        super()._assign_work_unit(node)

    def _place(self, unit: tuple[str, dict[str, bool]]) -> tuple[bool, bool, int]:
        scope, tests = unit
        is_file, is_test = scope in {test.partition("::")[0] for test in tests}, scope in tests
        return is_file, is_test, -len(tests)
