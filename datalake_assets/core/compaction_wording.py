"""Numbers as the reasons of a compaction plan say them."""

from __future__ import annotations

from datetime import timedelta

__all__ = ["files_text", "size_text", "span_text"]


def files_text(count: int, kind: str = "") -> str:
    """``1 file``, ``1,200 small files``."""
    return f"{count:,} {kind}file{'' if count == 1 else 's'}"


def size_text(size_bytes: int) -> str:
    """In powers of 1024, as the settings are: ``130.2 MiB``, ``64 MiB``."""
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:  # noqa: PLR2004  # the power
            break
        size, unit = size / 1024, larger
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"


def span_text(length: timedelta) -> str:
    """``45 s``, ``10 min``, ``3 h``, ``2 days``: whole ones, rounded down."""
    seconds = max(0, int(length.total_seconds()))
    for unit, unit_s in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s} {unit}"
    return f"{seconds} s"
