"""What files are called when they are converted, each time alike: no row may lie in two outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["OutputNames", "made_names", "output_names", "undecided_text"]

_SUFFIXES = {".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson", ".gz", ".zst", ".bz2", ".zip"}


@dataclass(frozen=True, slots=True)
class OutputNames:
    """What files are called when they are converted.

    Attributes:
        names: Names of outputs without suffix, by the files' names.
        undecided: Files that would share a name, where something of that name was made of nobody knows which of them.
    """

    names: Mapping[str, str]
    undecided: frozenset[str] = frozenset()


def made_names(names: Iterable[str], formats: Collection[str]) -> frozenset[str]:
    """The names without suffix of what lies at a destination in some formats."""
    return frozenset(
        str(path.with_suffix("")) for path in map(PurePosixPath, names) if path.suffix.removeprefix(".") in formats
    )


def output_names(names: Sequence[str], made: Collection[str] = ()) -> OutputNames:
    """What files are called: short, but for those that would share a name; and as before, whatever came or went since.

    Args:
        names: Of the files.
        made: Names without suffix of what was made before.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_short(name)].append(name)
    found: dict[str, str] = {}
    undecided: list[str] = []
    for short, group in groups.items():
        new = [name for name in group if name not in made]
        found |= dict(zip(group, group, strict=True))
        if len(new) == 1 and (len(group) == 1 or short in made):
            found[new[0]] = short
        elif short in made and len(group) > 1:
            undecided += new
    return OutputNames(found, frozenset(undecided))


def _short(name: str) -> str:
    path = PurePosixPath(name)
    while path.suffix.lower() in _SUFFIXES and path.stem:
        path = path.with_suffix("")
    return str(path)


def undecided_text(name: str) -> str:
    """Why a file is not converted whose output would have a name that is taken, and what to do."""
    return (
        f"the destination has {_short(name)!r}, made when one of several files of that name was there alone; delete it,"
        f" and each is converted under its whole name, like {name!r}"
    )
