"""Reads pages and drawings as a browser would, as far as tests ask, with the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "link", "img", "input"}


@dataclass
class Element:
    """An element with its attributes, its own text and what is in it."""

    name: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, in order of depth: good enough to look for words."""
        return " ".join([*self.texts, *(child.text for child in self.children)])

    def all(self, name: str = "", **attributes: str) -> list[Element]:
        """The elements in it of this name, and with these attributes."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        found = []
        for child in self.children:
            if name in {"", child.name} and wanted.items() <= child.attributes.items():
                found.append(child)
            found += child.all(name, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.stack[-1].children.append(element)
        if tag not in _VOID:
            self.stack.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack[-1].name == tag, f"</{tag}> ends <{self.stack[-1].name}>"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.stack[-1].texts.append(data)


def read_page(text: str) -> Element:
    """The page; every element must have been closed, in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    (root,) = reader.stack
    return root
