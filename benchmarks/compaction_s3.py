"""A day of 1,000 small files on the real S3 server: one ``compact``, and queries before and after.

The server has no latency of its own, S3 has; so all of it is done once for each latency asked for, on a lake of its
own, and once in a local folder. Server and proxy share the cores with whoever is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.compaction_rewrites import TINY, scratch
from benchmarks.measuring import Target, answer, server

__all__ = ["run"]

#: Of the feed, in any lake.
DAY = "streams/events/year=2025/month=01/day=15"
#: Of `benchmarks.compaction_queries`, which is not imported: the parent of what is measured stays small.
ENGINES = ("duckdb", "duckdb-arrow", "polars")
#: The row that is looked up.
ROW_ID = TINY.files * TINY.rows * 2 // 3

Times = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a lake is.

    Attributes:
        name: For people.
        lake: Its URI.
        env: The environment that finds it.
        builder_env: The environment that finds it without latency.
    """

    name: str
    lake: str
    env: Mapping[str, str]
    builder_env: Mapping[str, str]


def run(latencies_ms: Sequence[int], *, rounds: int) -> list[Target]:
    """Measures in every place, shows the figures, and returns the targets."""
    judged: list[Target] = []
    with scratch() as folder:
        local = folder / "local"
        local.mkdir()
        judged += measure(Place("local folder", str(local), {}, {}), rounds=rounds)
        arguments = (str(folder / "server"), *map(str, latencies_ms))
        with server("benchmarks.compaction_s3_server", *arguments) as told:
            for place in places(json.loads(told), latencies_ms):
                judged += measure(place, rounds=rounds)
    return judged


def places(told: Mapping[str, object], latencies_ms: Sequence[int]) -> list[Place]:
    """A lake in the bucket for each latency."""
    environment, endpoints = told["environment"], told["endpoints"]
    assert isinstance(environment, dict)
    assert isinstance(endpoints, dict)
    found = []
    for latency in latencies_ms:
        env = environment | {"DATALAKE_S3_ENDPOINT": endpoints[str(latency)]}
        found.append(Place(f"S3, {latency} ms per request", f"s3://{told['bucket']}/{latency}", env, environment))
    return found


def measure(place: Place, *, rounds: int) -> list[Target]:
    """One place: queries, one compaction, queries."""
    answer("benchmarks.compaction_lakes", place.lake, str(TINY.files), str(TINY.rows), env=place.builder_env)
    before = queries(place, rounds=rounds)
    print(f"\n{place.name}: {TINY.files:,} files of a day", flush=True)
    report = answer("benchmarks.compaction_ours", place.lake, "{}", env=place.env)
    used = report["used"]
    cpu_s = used["cpu_s"] - used["startup_cpu_s"]
    requests = ", ".join(f"{count:,} {kind}" for kind, count in report["requests"].items())
    print(
        f"compact: {report['files_before']:,} to {report['files_after']:,} files ({report['kernel']}), "
        f"{used['wall_s']:.1f} s, {cpu_s:.2f} CPU-s, {used['peak_rss_mb']:.0f} MiB; requests: {requests}"
    )
    after = queries(place, rounds=rounds)
    print_factors(before, after)
    return [_faster(place, before, after)]


def queries(place: Place, *, rounds: int) -> Times:
    """The median wall time of each query, by engine; each round is a process of its own."""
    ask = partial(answer, "benchmarks.compaction_queries", env=place.env)
    taken: dict[str, dict[str, float]] = {}
    for engine in ENGINES:
        runs = [ask(engine, f"{place.lake}/{DAY}", str(ROW_ID)) for _ in range(rounds)]
        taken[engine] = {query: median(run[query] for run in runs) for query in runs[0]}
    return taken


def print_factors(before: Times, after: Times) -> None:
    """A line for each query."""
    print(f"{'':14}{'':18}{'before s':>10}{'after s':>10}{'factor':>8}")
    for engine, taken in before.items():
        if not taken:
            print(f"{engine:14}cannot read S3 here: its extension httpfs is not installed")
        for query, was in taken.items():
            now = after[engine][query]
            print(f"{engine:14}{query:18}{was:10.3f}{now:10.3f}{was / now:8.1f}")


def _faster(place: Place, before: Times, after: Times) -> Target:
    """Each query at least a little; how much depends on the latency, and has no target of its own."""
    factors = [was / after[engine][query] for engine, taken in before.items() for query, was in taken.items()]
    return Target(f"{place.name}: queries faster", "all", f"{min(factors):.1f} to {max(factors):.1f}", min(factors) > 1)
