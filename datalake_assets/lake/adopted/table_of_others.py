"""What all adopted tables have in common: others write their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from datalake_assets.core.batches import Batches
from datalake_assets.errors import ConfigError
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.table import ExportPlan, Progress, WriteReport

__all__ = ["TableOfOthers"]


class TableOfOthers(HiveTable):
    """A table whose rows others write: nothing is exported to it."""

    def plan(self, partitions: Sequence[str] | None = None, *, new_epoch: bool = False) -> ExportPlan:  # noqa: ARG002  the protocol's
        """Raises `ConfigError`: nothing is exported."""
        raise self._refuse_export()

    def write(
        self,
        batches: Batches,  # noqa: ARG002  the protocol's
        *,
        partitions: Sequence[str],  # noqa: ARG002
        run_id: str,  # noqa: ARG002
        allow_shrink: bool = False,  # noqa: ARG002
        on_progress: Callable[[Progress], None] | None = None,  # noqa: ARG002
    ) -> WriteReport:
        """Raises `ConfigError`: nothing is exported."""
        raise self._refuse_export()

    def _refuse_export(self) -> ConfigError:
        name = self.feed.name
        return ConfigError(
            f"feed {name!r} is {self.feed.written_by}: nothing is exported to it; look at it with 'datalake repair"
            f" {name}', or merge its files with 'datalake compact {name}'"
        )

    @property
    def is_written_by_us(self) -> bool:
        """Implements `LakeTable`."""
        return False
