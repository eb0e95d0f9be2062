"""The shop's systems, as far as this example needs them: an order database, a catalogue, and a click tracker."""

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

CATEGORIES = ("books", "games", "garden", "music")
PRODUCTS = 200
FILES_A_DAY = 24


def orders_of(day: date) -> pd.DataFrame:
    """The orders of a day; asked again, the database gives the same ones."""
    chance = np.random.default_rng(day.toordinal())
    count = int(chance.integers(800, 1_200))
    seconds = np.sort(chance.integers(0, 86_400, count))
    return pd.DataFrame(
        {
            "order_id": day.toordinal() * 10_000 + np.arange(count),
            "product_id": chance.integers(0, PRODUCTS, count),
            "quantity": chance.integers(1, 5, count),
            "created_at": pd.Timestamp(day, tz="UTC") + pd.to_timedelta(seconds, unit="s"),
        }
    )


def catalogue() -> pd.DataFrame:
    """All products as they are now."""
    chance = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "product_id": np.arange(PRODUCTS),
            "category": pd.Categorical(chance.choice(CATEGORIES, PRODUCTS)),
            "price": chance.integers(200, 9_900, PRODUCTS) / 100,
        }
    )


def track_clicks(folder: Path, day: date) -> None:
    """What the tracker does: a small file every hour, with plain pandas. It has never heard of a lake."""
    chance = np.random.default_rng(day.toordinal())
    place = folder / f"day={day}"
    place.mkdir(parents=True, exist_ok=True)
    for hour in range(FILES_A_DAY):
        clicks = pd.DataFrame(
            {
                "visitor": chance.integers(0, 10_000, 500),
                "product_id": chance.integers(0, PRODUCTS, 500),
                "clicked_at": pd.Timestamp(day, tz="UTC") + pd.Timedelta(hours=hour),
            }
        )
        clicks.to_parquet(place / f"{hour:02d}.parquet", index=False)
