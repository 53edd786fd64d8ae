"""Child processes that the demo can wait for with a bound, that report what went wrong, and that never outlive it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

_PR_SET_PDEATHSIG = 1
_END_S = 5.0  # for a child to leave by itself at the end, and again after SIGTERM


class ChildFailed(RuntimeError):
    """A child ended, raised, or did not answer in time; the text names it."""


class Children:
    """Named child processes, each with a pipe. All of them are gone when the `with` block ends."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[str, Any] = {}
        self._pipes: dict[str, Connection] = {}

    def start(self, name: str, body: Callable[..., None], *arguments: Any) -> None:
        """Runs `body(pipe, *arguments)` in a new process. Each message it sends answers one gather()."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_run, args=(body, theirs, os.getpid(), *arguments), name=name, daemon=True)
        process.start()
        theirs.close()
        self._processes[name], self._pipes[name] = process, ours

    def tell(self, names: Iterable[str], message: Any) -> None:
        for name in names:
            self._pipes[name].send(message)

    def gather(self, names: Iterable[str], what: str, timeout_s: float) -> dict[str, Any]:
        """The next message of every one of `names`, however late the slowest; ChildFailed after `timeout_s`."""
        missing, answers, end = {name: self._pipes[name] for name in names}, {}, time.monotonic() + timeout_s
        while missing:
            ready = wait(list(missing.values()), max(0.0, end - time.monotonic()))
            if not ready:
                raise ChildFailed(f"{what}: no answer from {', '.join(missing)} within {timeout_s:g} s")
            for name in [name for name, pipe in missing.items() if pipe in ready]:
                answers[name] = self._receive(name, what)
                del missing[name]
        return answers

    def _receive(self, name: str, what: str) -> Any:
        try:
            kind, content = self._pipes[name].recv()
        except (EOFError, ConnectionError):
            self._processes[name].join(_END_S)
            raise ChildFailed(f"{what}: {name} ended with exit code {self._processes[name].exitcode}") from None
        if kind == "failed":
            raise ChildFailed(f"{what}: {name}: {content}")
        return content

    def __enter__(self) -> Children:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for pipe in self._pipes.values():
            pipe.close()  # a child that waits for orders ends
        end = time.monotonic() + (_END_S if kind is None else 0.0)
        for process in self._processes.values():
            process.join(max(0.0, end - time.monotonic()))
        for end_it in (lambda p: p.terminate(), lambda p: p.kill()):
            alive = [process for process in self._processes.values() if process.is_alive()]
            for process in alive:
                end_it(process)
            for process in alive:
                process.join(_END_S / 2)


def answer(pipe: Connection, content: Any) -> None:
    """A child's answer to one gather()."""
    pipe.send(("answer", content))


def orders(pipe: Connection) -> Iterable[Any]:
    """A child's orders, until the parent closes the pipe."""
    while True:
        try:
            yield pipe.recv()
        except (EOFError, ConnectionError):
            return


def _run(body: Callable[..., None], pipe: Connection, parent: int, *arguments: Any) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    if os.getppid() != parent:
        return
    try:
        body(pipe, *arguments)
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        with contextlib.suppress(OSError):  # the parent may have given up already
            pipe.send(("failed", f"{type(error).__name__}: {error} ({os.path.basename(at.filename)}:{at.lineno})"))
