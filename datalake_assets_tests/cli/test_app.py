"""What every command has in common: help without Dagster, one line per error, exit codes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import click
import pytest

from datalake_assets.cli.app import COMMANDS, app
from datalake_assets.errors import LakeError
from datalake_assets.parquet.native import native_status
from datalake_assets.parquet.proof import comparer_status
from datalake_assets.sources.files.csv_scan import scanner_status
from datalake_assets_tests.cli_reference import REFERENCE, commands, reference

# what takes long to import, and is no use for help
HEAVY = ("dagster", "pyarrow", "duckdb", "boto3", "botocore", "pandas", "numpy", "pydantic", "httpx", "rich")


@pytest.fixture
def failing(monkeypatch):
    """A command ``fail`` that raises what the test says."""

    def install(error: BaseException) -> None:
        @click.command()
        def fail() -> None:
            raise error

        monkeypatch.setitem(app.commands, "fail", fail)

    return install


@pytest.mark.parametrize("name", COMMANDS)
def test_list_of_commands_says_of_each_what_its_own_help_says(name):
    command = app.get_command(click.Context(app), name)
    assert command.help.split("\n\n")[0] == COMMANDS[name]


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_help_is_documented(name):
    context = dict(commands())[name]
    assert context.command.help
    assert f"## `{name}`\n" in REFERENCE.read_text(encoding="utf-8")


def test_reference_is_what_the_commands_say():
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run: python -m datalake_assets_tests.cli_reference"


def test_every_option_is_explained():
    silent = [
        f"{name} {parameter.opts}"
        for name, context in commands()
        for parameter in context.command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("lines", "heavy"),
    [
        pytest.param(["--help"], HEAVY, id="the list of commands"),
        pytest.param(
            [" ".join([*name.split()[1:], "--help"]) for name, _ in commands()],
            {"dagster", "duckdb"},
            id="every command",
        ),
    ],
)
def test_help_imports_nothing_heavy(lines, heavy):
    program = f"""
import sys
from datalake_assets.cli.app import app
for line in {lines!r}:
    app(line.split(), standalone_mode=False)
print(*(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert done.stderr.split() == []


@pytest.mark.parametrize("group", ["feeds", "quarantine", "serve"])
def test_help_of_a_group_says_whole_sentences(run, group):
    lines = run(group, "--help").stdout.splitlines()
    assert [line for line in lines if line.endswith("...") and not line.startswith("Usage:")] == []


def test_version(run):
    assert run("--version").output == "datalake, version 0.1.0\n"


@pytest.mark.parametrize("arguments", [("--version", "--verbose"), ("-v", "--version")])
def test_version_says_on_request_whether_the_native_kernel_is_there(run, arguments, monkeypatch):
    monkeypatch.setenv("DATALAKE_NATIVE", "0")
    assert run(*arguments).output == (
        "datalake, version 0.1.0\n"
        "native kernel: none (DATALAKE_NATIVE is 0); small files are merged on Arrow, more slowly\n"
        "comparer: none (DATALAKE_NATIVE is 0); Arrow compares, more slowly\n"
        "CSV scanner: none (DATALAKE_NATIVE is 0); Arrow looks, more slowly\n"
    )
    monkeypatch.delenv("DATALAKE_NATIVE")
    _, *parts = run(*arguments).output.splitlines()
    assert parts == [str(native_status()), comparer_status(), scanner_status()]


def test_an_error_is_one_line_and_exit_code_1(run, failing):
    failing(LakeError("s3://bucket", "it\nbroke", cure="mend it"))
    result = run("fail")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: s3://bucket: it broke; mend it\n")


def test_an_unexpected_error_is_one_line_and_says_how_to_see_more(run, failing):
    failing(RuntimeError("no\nidea"))
    result = run("fail")
    line = "Error: unexpected RuntimeError: no idea (a bug; see where with --traceback or DATALAKE_TRACEBACK=1)\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


@pytest.mark.parametrize(("arguments", "variable"), [(("--traceback", "fail"), ""), (("fail",), "1")])
def test_the_traceback_is_shown_on_request(run, failing, monkeypatch, arguments, variable):
    monkeypatch.setenv("DATALAKE_TRACEBACK", variable)
    failing(RuntimeError("no idea"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_is_exit_code_130(run, failing, error):
    failing(error)
    result = run("fail")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Interrupted\n")


def test_a_reader_that_went_away_is_no_bug(run, failing):
    failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    result = run("fail")
    assert (result.exit_code, result.stderr) == (1, "")


FORMATS = "'console', 'csv', 'json', 'html', 'prometheus', 'cloudwatch'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "No such command 'nope'."),
        (("feeds", "list", "--nope"), "No such option '--nope'."),
        (("--lake", "", "feeds", "list"), "Invalid value for '--lake': give a local folder, or s3://bucket/prefix"),
        (("feeds", "list", "--lake", ""), "Invalid value for '--lake': give a local folder, or s3://bucket/prefix"),
        (("export",), "give one of --all, --stream NAME, --table NAME and --mart NAME"),
        (("export", "--all", "--stream", "s"), "give one of --all, --stream NAME, --table NAME and --mart NAME"),
        (("export", "--all", "--partition", "2025-01-01"), "--partition and --range need --stream, --table or --mart"),
        (("export", "--stream", "s", "--partition", "k", "--range", "a..b"), "give --partition or --range, not both"),
        (("export", "--all", "--parallel", "0"), "Invalid value for '--parallel': 0 is not in the range x>=1."),
        (("demo", "--s3", "--lake", "x"), "--s3 brings its own lake; leave out --lake"),
        (("demo", "--json", "--ui"), "--json cannot be combined with --ui or --live"),
        (("demo", "--records", "0"), "Invalid value for '--records': 0 is not in the range x>=1."),
        (("serve", "ksqldb", "--user", "u"), "give --user and --password together"),
        (
            ("report", "--format", "pdf"),
            f"Invalid value for '--format': 'pdf' is not one of {FORMATS}.",
        ),
    ],
)
def test_usage_errors_are_exit_code_2(run, arguments, message):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize("command", ["feeds list", "report", "verify", "export --all", "feeds archive x"])
def test_a_missing_lake_is_one_line(run, tmp_path, command):
    result = run("--lake", str(tmp_path / "none"), *command.split())
    cure = "mount its disk, or correct the address; 'datalake init' makes a new lake there"
    line = f"Error: {tmp_path}/none: no such folder; {cure}\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


def test_a_bad_setting_is_one_line(run, lake, monkeypatch):
    monkeypatch.setenv("DATALAKE_KSQLDB_TIMEOUT_S", "soon")
    result = run("feeds", "list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: DATALAKE_KSQLDB_TIMEOUT_S: Input should be a valid number")
    assert len(result.stderr.splitlines()) == 1


def test_the_lake_may_stand_anywhere(run, tmp_path, lake):
    other = tmp_path / "other"
    other.mkdir()
    for arguments in (("--lake", "other", "feeds", "list"), ("feeds", "list", "--lake", "other")):
        assert f"no active feeds in {other};" in run(*arguments).stdout
    assert f"no active feeds in {lake};" in run("feeds", "list").stdout


def test_as_a_process(run_process, lake):
    done = run_process("feeds", "list", "--json")
    assert json.loads(done.stdout) == {"feeds": [], "problems": []}
    assert (done.returncode, done.stderr) == (0, "")
    failed = run_process("feeds", "show", "nope")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "Error: feed 'nope' does not exist; see 'datalake feeds list'\n"
    assert run_process("feeds", "nope").returncode == 2
