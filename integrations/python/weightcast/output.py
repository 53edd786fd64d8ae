"""What is written for people and other programs: files that are whole or not there, and errors that name them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that gets its name when all of it is on disk; until then, and after an error, `path` is as it was.

    OSError names `path` and the cause. What is no regular file, as /dev/stdout may be, is written as it is.
    """
    final = path.resolve()
    special = final.exists() and not final.is_file()
    written = final if special else final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        with written.open(mode) as file:
            yield file
            file.flush()
            if not special:
                os.fsync(file.fileno())
        if not special:
            written.replace(final)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if not special:
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)


class _StandardOutput:
    """Standard output that says in its errors what it is, once."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._naming(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._naming(self._stream.flush)

    def _naming(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except OSError as error:
            with open(os.devnull, "w") as nowhere:  # for what is still buffered, and what is printed from now on
                os.dup2(nowhere.fileno(), self._stream.fileno())
            raise OSError(f"cannot write standard output: {error.strerror}") from error


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """What is printed inside has left the process in the end, or OSError says why not."""
    named = _StandardOutput(sys.stdout)
    with contextlib.redirect_stdout(named):
        yield
        named.flush()
