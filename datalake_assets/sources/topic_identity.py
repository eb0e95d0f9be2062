"""Which topic of Kafka it is whose offsets number the rows, whoever reads it: by its id, or by its name at least."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TopicIdentity"]

#: Before a name; ids have no blanks.
_NAMED = "topic "


@dataclass(frozen=True, slots=True)
class TopicIdentity:
    """A topic, as far as it is known.

    Attributes:
        name: Its name.
        id: Its id (KIP-516); empty if nobody tells.
    """

    name: str
    id: str = ""

    def is_other_than(self, before: str) -> bool:
        """Whether it is certainly another one than that of which a feed's state says this (`to_text`)."""
        if " " in before:  # a name; or what only other systems say
            return before != f"{_NAMED}{self.name}"
        return "" not in {before, self.id} and before != self.id

    def to_text(self, *, before: str) -> str:
        """As a feed's state has it.

        Args:
            before: As it has it now: an id that is not told just now stays.
        """
        if self.id:
            return self.id
        return before if before and " " not in before else f"{_NAMED}{self.name}"

    def told(self, before: str) -> str:
        """What it is, and what it was before, for a person."""
        if " " in before:
            return f"what was landed is of {before}, and it reads {_NAMED}{self.name}"
        return f"it was created anew: its id is {self.id}, and what was landed is of {before}"
