"""The field's usual face of a conversion: all files under a prefix of one bucket, as Parquet and Avro in another.

It is `convert_files` with connections that are kept: one listing, one request a file, and one an output; and a listing
of the outputs for the first call, if they go elsewhere.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

from datalake_assets.errors import ConfigError
from datalake_assets.sources.files.converted_names import OutputNames, made_names, output_names
from datalake_assets.sources.files.dropped_objects import S3Objects
from datalake_assets.sources.files.file_conversion import (
    Conversion,
    ConvertedFile,
    OutputFormat,
    S3Place,
    convert_files,
    new_spool,
)

__all__ = ["ProcessedFiles", "S3DataProcessor"]


@dataclass(frozen=True, slots=True)
class ProcessedFiles:
    """What one call of `S3DataProcessor.process_all_files` did.

    Attributes:
        files: What became of each file, in the order of their names.
        skipped: Files that an earlier call converted, and that are the same.
        requests: Requests to S3: ``list``, ``get`` and ``put``.
    """

    files: tuple[ConvertedFile, ...]
    skipped: int
    requests: dict[str, int]

    @property
    def rows(self) -> int:
        """Rows that were converted."""
        return sum(each.rows for each in self.files)

    @property
    def refused(self) -> tuple[ConvertedFile, ...]:
        """Files that nothing was made of."""
        return tuple(each for each in self.files if each.refused)

    @property
    def requests_per_file(self) -> float:
        """Requests by the files that were read; 0 without any."""
        return sum(self.requests.values()) / len(self.files) if self.files else 0.0


class S3DataProcessor:
    """Converts files under a prefix, several at once; what was converted is not read again while it is the same.

    Args:
        input_bucket: Where the files are.
        output_bucket: Where outputs go, under the same names but for their suffixes.
        prefix: Of the files, and of the outputs.
        max_workers: Files that are converted at once.
        use_wrangler: Upload by ``awswrangler``, with its configuration, in place of our own client.
        cache_size: Files that are remembered between two calls.
        formats: What each file becomes.
        conversion: How files are read and written; ``formats`` win over its own.
        endpoint: URL of an S3-compatible server; None: AWS.

    Raises:
        ConfigError: ``use_wrangler`` is wanted, and awswrangler is not installed.
    """

    def __init__(
        self,
        input_bucket: str,
        output_bucket: str,
        prefix: str = "",
        max_workers: int = 4,
        *,
        use_wrangler: bool = False,
        cache_size: int = 10_000,
        formats: Sequence[OutputFormat] = ("parquet", "avro"),
        conversion: Conversion | None = None,
        endpoint: str | None = None,
    ) -> None:
        plain = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        self._input = S3Objects(input_bucket, plain, endpoint=endpoint)
        self._output = S3Objects(output_bucket, plain, endpoint=endpoint)
        self._place = _Wrangler(self._output) if use_wrangler else S3Place(self._output)
        self._workers, self._cache_size = max_workers, cache_size
        given = conversion or Conversion()
        self._conversion = Conversion(
            tuple(formats),
            given.options,
            given.encoding,
            given.types,
            given.parquet,
            given.codec,
            given.limits,
        )
        self._converted: OrderedDict[str, str] = OrderedDict()
        self._outputs: dict[str, str] = {}
        self._made: frozenset[str] | None = None
        self._lock = threading.Lock()

    def process_all_files(self) -> ProcessedFiles:
        """Converts the files that are new, or others than at the last call; a file that is bad stops no other.

        Raises:
            SourceError: S3 cannot be reached, or refuses.
        """
        before = self._requests()
        there = list(self._input.list())
        listed = [each for each in there if not each.name.endswith((".parquet", ".avro"))]
        wanted = [each for each in listed if self._converted.get(each.name) != each.version]
        versions = {each.name: each.version for each in wanted}
        if self._made is None:
            is_one = self._input.uri == self._output.uri
            outputs = (each.name for each in there) if is_one else self._place.names()
            self._made = made_names(outputs, self._conversion.formats)
        # no file takes the name of another one's output, whichever came first
        names = list(dict.fromkeys((*(each.name for each in listed), *self._outputs)))
        named = output_names(names, self._made)
        known = {name: each for name, each in named.names.items() if name not in named.undecided}
        self._outputs = {**known, **self._outputs}
        done = []
        for each in convert_files(
            (self._input, iter(wanted)),
            self._place,
            self._conversion,
            workers=self._workers,
            outputs=OutputNames({**named.names, **self._outputs}, named.undecided - self._outputs.keys()),
        ):
            done.append(each)
            if not each.may_succeed_later:
                self._remember(each.name, versions[each.name])
        requests = {kind: count - before.get(kind, 0) for kind, count in self._requests().items()}
        ordered = tuple(sorted(done, key=lambda each: each.name))
        return ProcessedFiles(ordered, len(listed) - len(wanted), requests)

    def _remember(self, name: str, version: str) -> None:
        self._converted[name] = version
        self._converted.move_to_end(name)
        while len(self._converted) > self._cache_size:
            self._converted.popitem(last=False)

    def _requests(self) -> dict[str, int]:
        with self._lock:
            return dict(self._input.requests + self._output.requests)

    def close(self) -> None:
        """Closes the connections; idempotent."""
        self._input.close()
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Wrangler:
    def __init__(self, objects: S3Objects) -> None:
        self._objects, self.uri = objects, objects.uri
        try:
            import awswrangler  # noqa: PLC0415  an extra, and a second to import
        except ImportError as error:
            raise ConfigError("use_wrangler: awswrangler is not installed; pip install awswrangler") from error
        self._wrangler = awswrangler

    def spool(self) -> IO[bytes]:
        return new_spool()

    def put(self, name: str, spool: IO[bytes]) -> None:
        spool.seek(0)
        self._wrangler.s3.upload(local_file=spool, path=f"{self._objects.uri}{name}")

    def names(self) -> Iterator[str]:
        return S3Place(self._objects).names()
