"""The shared libraries that are built on install where a compiler is: where one lies, whether it fits, and why not.

Each is optional, and everything works without it, more slowly. ``DATALAKE_NATIVE=0`` switches all of them off; a path
there is one of the library that merges pages.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["SWITCH", "library_of", "loaded_or_why_not", "setting"]

#: Switches the native libraries off (``0``), or names another one.
SWITCH = "DATALAKE_NATIVE"
#: Where `setup.py` says why a library was not built, beside it.
_NOTE = "not-built.txt"

Opened = TypeVar("Opened")


def setting() -> str:
    """What the environment says of native libraries now; empty if nothing."""
    return os.environ.get(SWITCH, "")


def library_of(path: Path, version_of: str, version: int) -> ctypes.CDLL:
    """Loads a library.

    Args:
        path: Its file.
        version_of: The function that tells the version of its interface.
        version: The one that is known here.

    Raises:
        OSError: It does not load, or has another interface.
        AttributeError: It is another library.
    """
    library = ctypes.CDLL(str(path))
    if (found := getattr(library, version_of)()) != version:
        raise OSError(f"{path} has version {found} of the interface, not {version}")
    return library


def loaded_or_why_not(path: Path, open_library: Callable[[Path], Opened], said: str) -> tuple[Opened | None, str]:
    """What a library gives, or why there is none, for a person.

    Args:
        path: Its file.
        open_library: Opens it; may raise what `library_of` does.
        said: What the environment says (`setting`).
    """
    if said == "0":
        return None, f"{SWITCH} is 0"
    if not path.exists():
        note = path.with_name(_NOTE)
        if str(path) == said:
            return None, f"{path} is not there"
        why = note.read_text().strip() if note.exists() else "this copy was not installed (setup.py builds it)"
        return None, f"it was not built: {why}"
    try:
        return open_library(path), ""
    except (OSError, AttributeError) as error:
        return None, f"it does not load: {error}"
