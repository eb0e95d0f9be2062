"""What all suites share: how the garbage collector works, a real S3 server, and stores on it and on a local folder."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import ssl
import sys
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from botocore import endpoint_provider, hooks
from httpx._transports import default
from hypothesis import HealthCheck, settings

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.counted import counted  # noqa: F401  a fixture
from datalake_assets_tests.engines.toy import toy  # noqa: F401  likewise
from datalake_assets_tests.fault_proxy import FaultProxy
from datalake_assets_tests.processes import warm_processes, warm_workers
from datalake_assets_tests.processes.spared_storages import (
    FOLDER,
    MODULES,
    compiling_once,
    spare,
    spare_migrations,
)
from datalake_assets_tests.scheduling import FilesTogether
from datalake_assets_tests.sources.kafka.kafka_server import KafkaServer
from datalake_assets_tests.sources.kinesis.kinesis_server import KinesisServer
from datalake_assets_tests.sources.sql.database_servers import MariaDb, Postgres
from datalake_assets_tests.sources.sqs.sqs_server import SqsServer

if TYPE_CHECKING:
    from xdist.remote import Producer

#: Objects made before the young ones are looked through, as gc.set_threshold takes them; Python's own first is 700.
_COLLECTED_AFTER = (200_000, 20, 50)
#: Variables by which somebody's environment names certificates; a test that is about one of them sets it itself.
_AUTHORITIES = ("AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
#: Services whose rules are kept.
_RULES = 8
# What is asked of a server without another word may take a minute on a busy machine, not httpx's five seconds.
for _each in ("connect", "read", "write", "pool"):
    setattr(httpx.get.__kwdefaults__["timeout"], _each, 60.0)
# Properties are checked on the same examples every time, and a slow or busy machine makes none of them fail: examples
# may take their time, and drawing them may, too. A test with health checks of its own names that one again.
settings.register_profile("seeded", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("seeded")
#: Where Python finds what it runs first in each process that tests start.
_PROCESSES = Path(__file__).with_name("processes")


def pytest_configure() -> None:
    """Has SIGINT end what tests start, also where a shell started them in the background, and has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Has signals handled after each test as before it: Spark and Dagster leave handlers of their own.

    And garbage collected as seldom: a command that stays has it collected as often as Python does by itself.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    collected_after = gc.get_threshold()
    try:
        return (yield)
    finally:
        gc.set_threshold(*collected_after)
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Imports all modules and makes all tests without a garbage collection, which took a fifth of it: they stay.

    A process of pytest-xdist has them from the one that it is forked from.
    """
    collect = session.perform_collect
    session.perform_collect = lambda *args, **named: warm_workers.take_over(session) or collect(*args, **named)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spares the modules and tests that stay until the end from being looked through by each garbage collection.

    Collections took a tenth of the suite's CPU.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECTED_AFTER)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-case-on-s3", action="store_true", help="run all cases of a test on S3, where one stands for its kind"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out cases on S3 that others stand for, and names groups."""
    if not config.option.every_case_on_s3:
        _leave_one_on_s3(config, items)
    if getattr(config.option, "loadgroup", False):
        _name_groups(items)


def _leave_one_on_s3(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test that has several cases on each kind of store, one runs on S3: a store sees the same in all of them.

    All of them run on a local folder; S3 takes five times the CPU. Where the store makes a difference to the cases, the
    test is marked ``every_case_on_s3``; a module that is about what is in files is marked ``one_case_on_s3``.
    """
    seen, left_out = set[str](), []
    for item in items:
        about = "::" if item.get_closest_marker("one_case_on_s3") else "["
        test = item.nodeid.partition(about)[0]
        if _is_on_s3(item) and not item.get_closest_marker("every_case_on_s3"):
            if test in seen:
                left_out.append(item)
            seen.add(test)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


def _is_on_s3(item: pytest.Item) -> bool:
    cases = getattr(item, "callspec", None)
    return cases is not None and any(str(value).partition(" ")[0] == "s3" for value in cases.params.values())


def _name_groups(items: list[pytest.Item]) -> None:
    """Names the group in the tests' ids, for pytest-xdist's ``--dist loadgroup``.

    pytest-xdist 3.8 does so by an attribute that pytest 9.2 looks at no more, and every process would start a Spark.
    """
    for item in items:
        group = item.get_closest_marker("xdist_group")
        if group is not None and "@" not in item.nodeid:
            item._id = item.parent.id.child(f"{item.name}@{group.args[0]}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Forks a run's processes from one that has imported all tests, rather than have each of them import them."""
    forking = ExitStack()
    forking.enter_context(warm_workers.forked([str(each) for each in config.invocation_params.args]))
    config.add_cleanup(forking.close)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether | None:
    """Keeps files together in a run by several processes."""
    return FilesTogether(config, log) if config.option.dist == "loadgroup" else None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends pytest-xdist's processes without taking down what they imported, which took a quarter of what importing did.

    Elsewhere the interpreter takes it down at its end; nanobind reports by the page what is left of DuckDB. pytest's
    last two garbage collections look through what tests made, not through the modules that stay.
    """
    if hasattr(config, "workerinput"):
        atexit.register(_end)
    else:
        gc.unfreeze()


def _end() -> None:
    """Ends this process once everything else has run that is to run at its end."""
    atexit.unregister(_end)
    atexit._run_exitfuncs()
    os._exit(0)


@pytest.fixture(scope="session", autouse=True)
def _frugal(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Spares what took a fifth of the suite's time, and changes nothing that a test in this process can see.

    No test cuts the power, so that what is handed to the disk need not arrive (`lake/store/test_local.py` records what
    is). S3 servers, which get many small requests at a time when all cores are busy, take a third less CPU on one of
    them, and half as much for large uploads with some memory to spare. Clients of S3 read the system's 140 certificates
    each, in 4 ms, other clients and each process in 20 to 30, and no test asks a server that one of those vouches for.
    """
    is_one_of_several = hasattr(pytestconfig, "workerinput")
    with pytest.MonkeyPatch.context() as patch, warm_processes.installed(is_first_forked=is_one_of_several):
        patch.setattr(os, "fsync", os.fstat)
        patch.setenv("PYTHONPATH", str(_PROCESSES), prepend=os.pathsep)
        patch.setenv("GOMAXPROCS", "1")
        patch.setenv("GOGC", "400")
        patch.setenv("GOMEMLIMIT", "600MiB")
        authorities = tmp_path_factory.mktemp("authorities")
        trustme.CA().cert_pem.write_to_path(str(authorities / "nobodys.pem"))
        patch.setenv("SSL_CERT_DIR", str(authorities))
        for name in _AUTHORITIES:
            patch.delenv(name, raising=False)
        spare_migrations(patch.setattr)
        _spare_clients(patch)
        databases = tmp_path_factory.mktemp("dagster")
        patch.setenv(FOLDER, str(databases))
        if sql := sys.modules.get("pyiceberg.catalog.sql"):
            patch.setattr(sql, "create_engine", compiling_once(sql.create_engine))
        if "dagster" in sys.modules:  # in a run of all tests it is
            for name in MODULES:
                import_module(name)
                spare(patch.setattr, databases, name)
        yield


def _spare_clients(patch: pytest.MonkeyPatch) -> None:
    """Each of botocore's clients looks at the same 140 handlers and names of events anew, a quarter of its cost.

    And at the rules by which services have their addresses; each of httpx's reads a hundred certificates in 20 ms.
    """
    begin, names, known = hooks.EventAliaser.__init__, dict[str, str](), lru_cache(hooks.accepts_kwargs)

    def begin_with_names(self: hooks.EventAliaser, event_emitter: object, event_aliases: object = None) -> None:
        begin(self, event_emitter, event_aliases)
        if event_aliases is None:
            self._alias_name_cache = names

    patch.setattr(hooks.EventAliaser, "__init__", begin_with_names)
    # of a method its function, so that no client is kept
    patch.setattr(hooks, "accepts_kwargs", lambda handler: known(getattr(handler, "__func__", handler)))
    _spare_rules(patch)
    make, variables = default.create_ssl_context, ("SSL_CERT_FILE", "SSL_CERT_DIR")
    trusting = lru_cache(lambda trust_env, *_: make(trust_env=trust_env))

    def context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:  # noqa: FBT001, FBT002
        if verify is True and cert is None:
            return trusting(trust_env, *map(os.environ.get, variables))
        return make(verify=verify, cert=cert, trust_env=trust_env)

    patch.setattr(default, "create_ssl_context", context)


def _spare_rules(patch: pytest.MonkeyPatch) -> None:
    make, known = endpoint_provider.RuleSet, dict[int, tuple[object, object]]()

    def rule_set(*, rules: object, **more: object) -> object:
        found = known.get(id(rules))
        if found is None:
            if len(known) >= _RULES:  # of sessions that have read them anew
                known.clear()
            found = known[id(rules)] = make(rules=rules, **more), rules
        return found[0]

    patch.setattr(endpoint_provider, "RuleSet", rule_set)


@pytest.fixture(scope="session")
def sqs_server() -> Iterator[SqsServer]:
    """A server that speaks SQS, for the whole session; tests that ask for it are of the xdist group ``sqs``."""
    with SqsServer() as server:
        yield server


@pytest.fixture(scope="session")
def kinesis_server() -> Iterator[KinesisServer]:
    """A server that speaks Kinesis, for the whole session; tests that ask for it are of the xdist group ``kinesis``."""
    with KinesisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL, for the whole session; tests that ask for it are of the xdist group ``databases``."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """MariaDB, for the whole session; tests that ask for it are of the xdist group ``databases``."""
    with MariaDb() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    """A broker that speaks Kafka, for the whole session; tests that ask for it are of the xdist group ``kafka``."""
    with KafkaServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, for the whole session."""
    with S3Server(tmp_path_factory.mktemp("s3"), grace_s=1) as server:
        yield server


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The server's credentials and endpoint in the environment, and nobody else's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = s3_server.environment() | {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    """An empty lake in a folder."""
    folder = tmp_path / "lake"
    folder.mkdir()
    return open_store(str(folder))


@pytest.fixture
def s3_lake(s3_server: S3Server, s3_environment: dict[str, str]) -> str:
    """The URI of an empty lake in the bucket."""
    return f"s3://{s3_server.bucket}/tests/{uuid.uuid4().hex}"


@pytest.fixture
def s3_store(s3_server: S3Server, s3_lake: str) -> Store:
    """An empty lake in the bucket."""
    return open_store(s3_lake, s3=S3Access(endpoint=s3_server.endpoint))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty lake on each kind of store."""
    empty: Store = request.getfixturevalue(f"{request.param}_store")
    return empty


@pytest.fixture(scope="session")
def _running_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    parts = urlsplit(s3_server.endpoint)
    assert parts.hostname
    assert parts.port
    with FaultProxy(parts.hostname, parts.port) as proxy:
        yield proxy


@pytest.fixture
def fault_proxy(_running_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy before the server, which fails when told to; without faults at the start of each test."""
    _running_proxy.clear()
    yield _running_proxy
    _running_proxy.clear()
