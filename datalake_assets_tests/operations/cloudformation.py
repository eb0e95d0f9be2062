"""Templates of CloudFormation, held against cfn-lint, which takes a second to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["complaints", "template_of"]


def template_of(path: Path) -> dict[str, Any]:
    """A template, parsed."""
    import cfnlint.decode  # noqa: PLC0415  see above

    found, problems = cfnlint.decode.decode(str(path))
    assert problems == []
    return dict(found)


def complaints(path: Path) -> list[str]:
    """What CloudFormation would not take."""
    import cfnlint.api  # noqa: PLC0415  see above

    found = cfnlint.api.lint(path.read_text(), regions=["us-east-1"])
    return [f"{each.linenumber}: {each.rule.id} {each.message}" for each in found]
