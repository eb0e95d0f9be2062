"""Builds shared libraries if this machine can; all else is in pyproject.toml.

They are the kernel that merges pages (`datalake_assets/parquet/native`), the comparer that proves what it makes
(`datalake_assets/parquet/proof`), which share no source, and the scanner of CSV
(`datalake_assets/sources/files/csv_scan`).

All are optional: without a compiler, or for the first two without xxHash's header, the package is installed all the
same and works on Arrow. Each codec is optional too: static libraries are taken where they can be linked into a shared
one, shared ones otherwise. Why one was not built is written beside it, for `datalake --version --verbose`.
`DATALAKE_NATIVE=0` leaves them out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

#: The libraries, each by its folder's path, with the prefix of its macros; empty: it needs no other library.
LIBRARIES = {
    Path("datalake_assets/parquet/native/pagemerge"): "PM",
    Path("datalake_assets/parquet/proof/pagecompare"): "PC",
    Path("datalake_assets/sources/files/csv_scan/csvscan"): "",
}
COMPILE = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
LINUX = sys.platform == "linux"
LINK = ["-static-libstdc++", "-static-libgcc", "-Wl,-z,defs"] if LINUX else []
#: Each codec's macro, the header and the functions that are taken from its library, and the libraries.
CODECS = {
    "SNAPPY": (
        "snappy-c.h",
        "snappy_compress snappy_uncompress snappy_uncompressed_length snappy_max_compressed_length",
        ["snappy"],
    ),
    "ZSTD": (
        "zstd.h",
        "ZSTD_compressCCtx ZSTD_decompressDCtx ZSTD_findFrameCompressedSize ZSTD_getFrameContentSize",
        ["zstd"],
    ),
    # not promised to other releases of the library: the kernel uses it with the one that it was built for alone
    "ZSTD_SEQUENCES": ("zstd.h", "ZSTD_compressSequences", ["zstd"]),
    "ZLIB": ("zlib.h", "inflateInit2_ inflate inflateReset inflateEnd crc32", ["z"]),
    "LZ4": ("lz4.h", "LZ4_decompress_safe", ["lz4"]),
    "BROTLI": ("brotli/decode.h", "BrotliDecoderDecompress", ["brotlidec", "brotlicommon"]),
}
REQUIRED = (
    "#define XXH_INLINE_ALL\n#include <xxhash.h>\n#include <algorithm>\nunsigned long use() { return XXH64(0, 0, 0); }"
)


class NotBuiltError(Exception):
    """A library cannot be built here; says why."""


class BuildLibraries(build_ext):
    """Builds plain shared libraries, which no release of Python and none of Arrow is tied to."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where the library goes: no tag of Python's in its name."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Builds it, or notes why not."""
        target = Path(self.get_ext_fullpath(ext.name))
        note = target.with_name("not-built.txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in (target, note):
            stale.unlink(missing_ok=True)
        try:
            self._build(ext, target)
        except NotBuiltError as error:
            note.write_text(f"{error}\n")
            self.warn(f"{target.stem} is not built: {error}; Arrow does its work, more slowly")

    def copy_extensions_to_source(self) -> None:
        """Brings the library, or the note, to where an editable install looks for it."""
        super().copy_extensions_to_source()
        for library in LIBRARIES:
            note = library.with_name("not-built.txt")
            for file in (library.with_suffix(".so"), note):
                if not Path(self.build_lib, file).exists():
                    file.unlink(missing_ok=True)
            if Path(self.build_lib, note).exists():
                note.write_text(Path(self.build_lib, note).read_text())

    def _build(self, ext: Extension, target: Path) -> None:
        if os.environ.get("DATALAKE_NATIVE") == "0":
            raise NotBuiltError("DATALAKE_NATIVE was 0 when it was installed")
        if not self._links("int use() { return 0; }", []):
            raise NotBuiltError("there is no C++ compiler")
        prefix, macros, libraries = LIBRARIES[target_of(ext)], [], []
        if prefix and not self._links(REQUIRED, []):
            raise NotBuiltError("xxHash's header is missing (Debian: libxxhash-dev)")
        for name in CODECS if prefix else ():
            found = self._codec(name)
            macros.append((f"{prefix}_WITH_{name}", "0" if found is None else "1"))
            libraries += found or []
        try:
            objects = self._compiled(ext, macros)
            self.compiler.link_shared_object(
                objects, str(target), extra_postargs=[*LINK, *libraries], target_lang="c++"
            )
        except Exception as error:
            raise NotBuiltError(f"the compiler failed: {error}") from error

    def _compiled(self, ext: Extension, macros: list[tuple[str, str]]) -> list[str]:
        def compiled(source: str) -> list[str]:
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                extra_postargs=COMPILE,
                depends=ext.depends,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [each for objects in pool.map(compiled, ext.sources) for each in objects]

    @cache  # noqa: B019  it lives as long as the process
    def _codec(self, name: str) -> list[str] | None:
        header, functions, names = CODECS[name]
        uses = ", ".join(f"(void*){function}" for function in functions.split())
        return self._libraries(
            f"#define ZSTD_STATIC_LINKING_ONLY\n#include <{header}>\nvoid* uses[] = {{{uses}}};", names
        )

    def _libraries(self, use: str, names: Sequence[str]) -> list[str] | None:
        """How to link the libraries: static if they can be, shared otherwise; None if they cannot."""
        ways = [[f"-l:lib{name}.a" for name in names]] if LINUX else []
        ways.append([f"-l{name}" for name in names])
        return next((way for way in ways if self._links(use, way)), None)

    def _links(self, code: str, libraries: Sequence[str]) -> bool:
        """Whether code compiles and links to a shared library."""
        with tempfile.TemporaryDirectory() as folder, _Quiet():
            source = Path(folder, "probe.cpp")
            source.write_text(f"{code}\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=COMPILE)
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "probe.so")), extra_postargs=[*LINK, *libraries], target_lang="c++"
                )
            except Exception:  # noqa: BLE001  whatever a compiler's wrapper raises
                return False
        return True


class _Quiet:
    """Keeps what compilers say of a probe to itself."""

    def __enter__(self) -> None:
        self._kept = os.dup(2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._kept, 2)
        os.close(self._kept)


class KernelWheel(bdist_wheel):
    """A wheel for any Python 3 of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tags: the library needs no release of Python's."""
        return ("py3", "none", super().get_tag()[2])


def target_of(ext: Extension) -> Path:
    """Where a library goes, without its ending."""
    return Path(*ext.name.split("."))


def extension(library: Path) -> Extension:
    """A library, of all sources in its folder."""
    folder = library.parent
    return Extension(
        ".".join(library.parts),
        sources=sorted(map(str, folder.glob("*.cpp"))),
        depends=["setup.py", *sorted(map(str, [*folder.glob("*.hpp"), *folder.glob("*.h")]))],
        language="c++",
        optional=True,
    )


setup(
    ext_modules=[extension(library) for library in LIBRARIES],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": KernelWheel},
)
