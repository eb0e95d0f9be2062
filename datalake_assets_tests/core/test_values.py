"""Values are what frozen dataclasses with slots are, for whoever has them."""

import pickle
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest

from datalake_assets.core.values import Value


class Place(Value, frozen=True):
    name: str
    rows: int = 0


class Route(Value, frozen=True):
    begin: Place
    stops: tuple[Place, ...] = ()


def test_functions_of_dataclasses_take_values():
    route = Route(Place("here", 1), (Place("there"),))
    assert [field.name for field in fields(route)] == ["begin", "stops"]
    assert replace(route, stops=()) == Route(Place("here", 1))
    assert asdict(route) == {"begin": {"name": "here", "rows": 1}, "stops": ({"name": "there", "rows": 0},)}
    with pytest.raises(TypeError, match="end"):
        replace(route, end=Place("nowhere"))


def test_values_are_frozen_hashable_and_equal_by_their_fields():
    place: Any = Place("here", 1)
    assert place == Place(name="here", rows=1)
    assert place != Place("here", 2)
    assert len({place, Place("here", 1)}) == 1
    with pytest.raises((AttributeError, FrozenInstanceError)):
        place.rows = 2
    with pytest.raises(AttributeError):
        place.other = 2


def test_values_are_pickled_with_their_class():
    route = Route(Place("here", 1))
    assert pickle.loads(pickle.dumps(route)) == route  # noqa: S301  our own
