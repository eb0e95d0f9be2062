"""The members of a JSON object as they are written, each once.

Of a member that is there twice a decoder keeps the last, and drops the other without a word; an object that has one is
refused here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

__all__ = ["members_of"]

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SPACED = (b" :", b"\t:", b"\n:", b"\r:")
_pairs = json.JSONDecoder(object_pairs_hook=list, parse_int=str, parse_float=str, parse_constant=str)


def members_of(text: bytes) -> dict[str, msgspec.Raw]:
    """The members of an object, in their order, with their values' own text.

    Args:
        text: JSON in UTF-8.

    Raises:
        ValueError: It is no object, is not UTF-8, has a member twice or is nested too deeply.
    """
    try:
        members = _OBJECT.decode(text)
        if not _has_no_more(members, text):
            names = [name for name, _ in _pairs.decode(text.decode())]
            if len(names) > len(members):
                twice = next(name for number, name in enumerate(names) if name in names[:number])
                raise ValueError(f"it has member {twice!r} twice")
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    else:
        text.decode()  # msgspec does not look into texts that it hands on
        return members


def _has_no_more(members: Mapping[str, msgspec.Raw], text: bytes) -> bool:
    """Whether it can be seen without taking the object apart that it has no other members: by the colons after names.

    A name's colon follows a quote, or a space; what nested objects and texts have is counted with it.
    """
    return text.count(b'":') == len(members) and not any(each in text for each in _SPACED)
