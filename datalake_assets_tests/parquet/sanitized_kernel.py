"""The native libraries under AddressSanitizer and UndefinedBehaviorSanitizer, with maps of the edges reached."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datalake_assets.native_library import SWITCH
from datalake_assets.parquet import native, proof
from datalake_assets.sources.files import csv_scan

__all__ = ["BUILD", "build", "build_comparer", "build_scanner", "environment"]

BUILD = Path(__file__).parents[2] / "build" / "native-fuzz"
CODECS = ("SNAPPY", "ZSTD", "ZSTD_SEQUENCES", "ZLIB", "LZ4", "BROTLI")
COMPILE = (
    *(
        "-std=c++17",
        "-O1",
        "-g",
        "-fPIC",
        "-fno-omit-frame-pointer",
        "-DPM_SMALL_PAGE_BYTES=64",
        "-DPM_SPLIT_PAGE_BYTES=2048",
        "-DPM_TRIAL_VALUES=20",
    ),
    *(f"-D{prefix}_WITH_{codec}=1" for codec in CODECS for prefix in ("PM", "PC")),
)
COMPILER = shutil.which("g++") or "g++"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LIBRARIES = ("-lsnappy", "-lzstd", "-lz", "-llz4", "-lbrotlidec")


def build() -> Path:
    """The kernel under sanitizers; built again if its sources are newer."""
    return _built("pagemerge", Path(native.__file__).parent)


def build_comparer() -> Path:
    """The comparer under sanitizers; likewise."""
    return _built("pagecompare", Path(proof.__file__).parent)


def build_scanner() -> Path:
    """The scanner of CSV under sanitizers; likewise."""
    return _built("csvscan", Path(csv_scan.__file__).parent)


def _built(name: str, folder: Path) -> Path:
    library, objects = BUILD / f"{name}.so", BUILD / name
    coverage = Path(__file__).with_name("native_coverage.cpp")
    sources = [*sorted(folder.glob("*.cpp")), coverage]
    newest = max(each.stat().st_mtime for each in [*sources, *folder.glob("*.h*"), Path(__file__)])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    objects.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> str:
        target = objects / f"{source.stem}.o"
        extra = () if source == coverage else (*SANITIZE, "-fsanitize-coverage=trace-pc")
        subprocess.run(
            [COMPILER, *COMPILE, *extra, "-I", str(folder), "-c", str(source), "-o", str(target)], check=True
        )
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        linked = [*pool.map(compiled, sources)]
    subprocess.run([COMPILER, "-shared", *SANITIZE, *linked, "-o", str(library), *LIBRARIES], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """Of a child: the sanitizers' runtime comes before everything else."""
    runtimes = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return os.environ | {
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=1:abort_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OMP_NUM_THREADS": "1",
        SWITCH: str(library),
    }
