"""A sink in memory, as stores give out, that remembers what became of it."""

from __future__ import annotations

import io


class MemorySink(io.BytesIO):
    """Finishing gives its bytes."""

    def __init__(self, key="", fail_after=None):
        super().__init__()
        self.key, self.fail_after, self.state = key, fail_after, "open"

    @property
    def name(self):
        return self.key.rpartition("/")[2]

    def write(self, data):
        if self.state != "open":
            raise ValueError(f"write to a {self.state} file")
        if self.fail_after is not None and self.tell() + len(data) > self.fail_after:
            raise OSError("disk full")
        return super().write(data)

    def close(self):
        pass

    def finish(self):
        self.state = "finished"
        return self.getvalue()

    def discard(self):
        if self.state == "open":
            self.state = "discarded"
