"""A day of 1,000 small files on the real S3 server: rewritten by us and by peers, and queried before and after.

The server has no latency of its own, S3 has; so all of it is done once for each latency asked for, on a lake of its
own, and once in a local folder. Server and proxy share the cores with whoever is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeAlias

from benchmarks.compaction_rewrites import TINY, scratch
from benchmarks.compaction_s3_peers import PEERS
from benchmarks.measuring import Target, Used, answer, medians

__all__ = ["run"]

#: Of the feed, in any lake.
DAY = "streams/events/year=2025/month=01/day=15"
#: Of `benchmarks.compaction_queries`, which is not imported: the parent of what is measured stays small.
ENGINES = ("duckdb", "duckdb-arrow", "polars")
#: The row that is looked up.
ROW_ID = TINY.files * TINY.rows * 2 // 3

#: Of a file of 100 KB made from a template.
ROWS = 1_000

Times = Mapping[str, Mapping[str, float]]
Told: TypeAlias = Mapping[str, object]
#: Gives the requests since it was called last, by method.
Counted: TypeAlias = Callable[[], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a lake is.

    Attributes:
        name: For people.
        lake: Its URI.
        env: The environment that finds it.
        builder_env: The environment that finds it without latency.
        latency_ms: Of each request.
    """

    name: str
    lake: str
    env: Mapping[str, str]
    builder_env: Mapping[str, str]
    latency_ms: int = 0


def run(latencies_ms: Sequence[int], *, rounds: int, peers_python: Path, queries: bool = True) -> list[Target]:
    """Measures in every place, shows the figures, and returns the targets."""
    judged: list[Target] = []
    with scratch() as folder:
        if queries:
            local = folder / "local"
            local.mkdir()
            judged += measure(Place("local folder", str(local), {}, {}), rounds=rounds)
        with asked_server(folder / "server", latencies_ms) as (told, counted):
            for place in places(told, latencies_ms):
                judged += side_by_side(place, counted, rounds=rounds, peers_python=peers_python)
                if queries:
                    judged += measure(place, rounds=rounds)
    return judged


@contextmanager
def asked_server(folder: Path, latencies_ms: Sequence[int]) -> Iterator[tuple[Told, Counted]]:
    """The server: what it says of itself, and a function that gives the requests since it was called last."""
    command = [sys.executable, "-m", "benchmarks.compaction_s3_server", str(folder), *map(str, latencies_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        to_server, from_server = process.stdin, process.stdout
        assert to_server is not None
        assert from_server is not None

        def counted() -> Mapping[str, int]:
            to_server.write("\n")
            to_server.flush()
            found: Mapping[str, int] = json.loads(from_server.readline())
            return found

        yield json.loads(from_server.readline()), counted
        to_server.close()


#: Wall time of one compaction, and GETs of an input file, at the most.
WANTED_S, AT_LATENCY_MS, WANTED_GETS = 4.0, 30, 1.05
OURS = "ours"


def side_by_side(place: Place, counted: Counted, *, rounds: int, peers_python: Path) -> list[Target]:
    """Rewrites by us and by each peer that can be had, in turns, each on files of its own; returns the targets."""
    python = peers_python if peers_python.exists() else Path(sys.executable)
    who = [OURS, *(name for name, (module, _) in PEERS.items() if _has(python, module))]
    print(f"\n{place.name}: {TINY.files:,} files of 100 KB into few, medians of {rounds}")
    print(f"{'':14}{'wall s':>8}{'CPU-s':>8}{'MiB':>7}  requests (by the proxy, where there is one)", flush=True)
    taken: dict[str, list[tuple[Used, Mapping[str, int]]]] = {name: [] for name in who}
    for number in range(rounds):
        for name in [name for name in who if name in taken]:
            try:
                taken[name].append(_rewritten(name, replace(place, lake=f"{place.lake}/{number}"), python, counted))
            except SystemExit as error:
                if name == OURS:
                    raise
                print(f"{name:14}left out: {error}", flush=True)
                del taken[name]
    for name, runs in taken.items():
        used, requests = medians([used for used, _ in runs]), runs[-1][1]
        told = ", ".join(f"{count:,} {method}" for method, count in sorted(requests.items()))
        print(f"{name:14}{used.wall_s:8.2f}{used.work_cpu_s:8.2f}{used.peak_rss_mb:7.0f}  {told}", flush=True)
    return _judged(
        place, {name: medians([used for used, _ in runs]) for name, runs in taken.items()}, taken[OURS][-1][1]
    )


def _judged(place: Place, used: Mapping[str, Used], requests: Mapping[str, int]) -> list[Target]:
    mine, judged = used[OURS].wall_s, []
    best = min((each.wall_s for name, each in used.items() if name != OURS), default=None)
    if best is not None:
        judged.append(
            Target(f"{place.name}: wall time", f"that of the best peer, {best:.2f} s", f"{mine:.2f} s", mine <= best)
        )
    if place.latency_ms == AT_LATENCY_MS:
        judged.append(Target(f"{place.name}: wall time", f"{WANTED_S:g} s", f"{mine:.2f} s", mine <= WANTED_S))
    if requests:
        gets = requests.get("GET", 0) / TINY.files
        judged.append(Target(f"{place.name}: GETs of a file", f"{WANTED_GETS}", f"{gets:.3f}", gets <= WANTED_GETS))
    return judged


def _rewritten(name: str, place: Place, python: Path, counted: Counted) -> tuple[Used, Mapping[str, int]]:
    """One rewrite of new files, all rows of which must be there afterwards."""
    lake = f"{place.lake}/{name.replace(' ', '-')}"
    answer("benchmarks.compaction_lakes", lake, str(TINY.files), str(ROWS), "16", env=place.builder_env)
    inputs, output = f"{lake}/{DAY}", f"{lake}/output"
    counted()
    if name == OURS:
        used, output = Used(**answer("benchmarks.compaction_ours", lake, "{}", env=place.env)["used"]), inputs
    else:
        module = "benchmarks.compaction_s3_peers"
        used = Used(**answer(module, name, inputs, output, python=str(python), env=place.env))
        output = f"delta:{inputs}" if name == "delta-rs" else output
    requests = counted()
    if not answer("benchmarks.compaction_s3_peers", "check", output, str(TINY.files * ROWS), env=place.builder_env):
        raise SystemExit(f"{name} left other rows than these")
    return used, requests


def _has(python: Path, module: str) -> bool:
    script = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return not subprocess.run([python, "-c", script], check=False).returncode


def places(told: Mapping[str, object], latencies_ms: Sequence[int]) -> list[Place]:
    """A lake in the bucket for each latency."""
    environment, endpoints = told["environment"], told["endpoints"]
    assert isinstance(environment, dict)
    assert isinstance(endpoints, dict)
    found = []
    for latency in latencies_ms:
        env = environment | {"DATALAKE_S3_ENDPOINT": endpoints[str(latency)]}
        builder = environment | {"DATALAKE_S3_ENDPOINT": endpoints["0"]}
        found.append(Place(f"S3, {latency} ms per request", f"s3://{told['bucket']}/{latency}", env, builder, latency))
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
