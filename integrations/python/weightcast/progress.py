"""Live progress of updates from streams of status: one JSON object on each line."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from .routes import size_text

OVER = {"committed", "aborted", "failed"}
POLL_S = 0.1


@dataclass
class Status:
    """What one line says of the update under way; fields that it lacks are None."""

    state: str
    version: int | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    rate: float | None = None  # bytes a second
    reason: str = ""
    moving: bool = False  # an update is under way


def parse_status(line: str) -> Status:
    """A controller's status, or a flat object with the same fields. ValueError if it is neither."""
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("state"), str):
        raise ValueError('not a status: an object with "state" is needed')
    update = document.get("update") or {}
    if not isinstance(update, dict):
        raise ValueError('not a status: "update" must be an object')
    status = Status(document["state"], reason=str(document.get("reason") or ""), moving=bool(update))
    for name, kind in (("version", int), ("bytes_done", int), ("bytes_total", int), ("rate", (int, float))):
        value = update.get(name, document.get(name))
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or value < 0):
            raise ValueError(f'not a status: "{name}" must be a number, not {value!r}')
        setattr(status, name, value)
    return status


@dataclass
class Track:
    """One source: what was last known, whether its update is over, and the rate, measured where it is not told."""

    name: str
    status: Status | None = None
    over: bool = False
    rate: float | None = None
    _before: tuple[float, int] | None = field(default=None, repr=False)

    def add(self, status: Status, now_s: float) -> None:
        was_moving = self.status is not None and self.status.moving
        self.over = status.state in OVER or (was_moving and not status.moving and status.state == "idle")
        if self.status is None or status.version != self.status.version:
            self._before = self.rate = None
        if status.rate is not None:
            self.rate = status.rate
        elif status.bytes_done is not None:
            if self._before and now_s > self._before[0] and status.bytes_done >= self._before[1]:
                measured = (status.bytes_done - self._before[1]) / (now_s - self._before[0])
                self.rate = measured if self.rate is None else 0.7 * self.rate + 0.3 * measured
            self._before = (now_s, status.bytes_done)
        self.status = status

    @property
    def left_s(self) -> float | None:
        status = self.status
        if not self.rate or status is None or status.bytes_total is None or status.bytes_done is None:
            return None
        return max(status.bytes_total - status.bytes_done, 0) / self.rate

    def line(self) -> str:
        status = self.status
        if status is None:
            return f"{self.name}: nothing yet"
        parts = [f"{self.name}: version {status.version}" if status.version is not None else self.name, status.state]
        if status.bytes_done is not None:
            of = f" of {size_text(status.bytes_total)}" if status.bytes_total is not None else ""
            parts.append(size_text(status.bytes_done) + of)
        if self.rate is not None:
            parts.append(f"{self.rate / 1e9:.2f} GB/s")
        if self.left_s is not None and not self.over:
            parts.append(f"{self.left_s:.1f} s left")
        return ", ".join(parts) + (f" ({status.reason})" if status.reason else "")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate, left_s = task.fields.get("rate"), task.fields.get("left_s")
        text = "" if rate is None else f"{rate / 1e9:.2f} GB/s"
        return Text(text + ("" if left_s is None else f"  {left_s:.1f} s left"))


class Screen:
    """Bars on a terminal, one line for each change of state elsewhere."""

    def __init__(self, console: Console, tracks: list[Track]):
        self._console = console
        self._said: dict[str, tuple] = {}
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), _Rate(), console=console)
            self._tasks = {track.name: self._bars.add_task(track.line(), total=None) for track in tracks}

    def __enter__(self) -> Screen:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, track: Track) -> None:
        status = track.status
        if status is None:
            return
        if self._bars:
            version = "" if status.version is None else f" version {status.version}"
            self._bars.update(self._tasks[track.name], description=f"{track.name}{version} {status.state}",
                              completed=status.bytes_done or 0, total=status.bytes_total, rate=track.rate,
                              left_s=None if track.over else track.left_s)  # fmt: skip
        elif self._said.get(track.name) != (status.version, status.state):
            self._said[track.name] = (status.version, status.state)
            self._console.print(track.line(), highlight=False, soft_wrap=True)


class LineReader:
    """Whole lines of a growing file or of a pipe, without blocking."""

    def __init__(self, file: TextIO):
        self._fd = file.fileno()
        self._file = file  # keeps it open
        self._rest = b""
        self.ended = False  # a pipe whose writer has gone; a file never ends

    def lines(self) -> Iterator[str]:
        is_file = os.path.isfile(f"/proc/self/fd/{self._fd}")
        while is_file or select.select([self._fd], [], [], 0)[0]:
            part = os.read(self._fd, 1 << 16)
            if not part:
                self.ended = not is_file
                break
            self._rest += part
            *whole, self._rest = self._rest.split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)


def watch(sources: dict[str, TextIO], console: Console, wait_s: float) -> bool:
    """Follows every source until its update is over. False if one was aborted or failed.

    ValueError names the source and line of what is no status; TimeoutError the source that said nothing for `wait_s`.
    """
    tracks = {name: Track(name) for name in sources}
    readers = {name: LineReader(file) for name, file in sources.items()}
    numbers = dict.fromkeys(sources, 0)
    heard_s = dict.fromkeys(sources, time.monotonic())
    with Screen(console, list(tracks.values())) as screen:
        while waiting := [name for name, track in tracks.items() if not track.over]:
            for name in waiting:
                for line in readers[name].lines():
                    numbers[name] += 1
                    heard_s[name] = time.monotonic()
                    if line.strip():
                        _add(tracks[name], line, numbers[name])
                        screen.show(tracks[name])
                if not tracks[name].over and readers[name].ended:
                    raise ValueError(f"{name} ended before its update was over")
                if not tracks[name].over and time.monotonic() - heard_s[name] > wait_s:
                    raise TimeoutError(f"{name} said nothing for {wait_s:g} s; the last was: {tracks[name].line()}")
            time.sleep(POLL_S if any(not track.over for track in tracks.values()) else 0)
    return all(track.status is not None and track.status.state not in ("aborted", "failed") for track in tracks.values())


def _add(track: Track, line: str, number: int) -> None:
    try:
        track.add(parse_status(line), time.monotonic())
    except ValueError as error:
        raise ValueError(f"{track.name}, line {number}: {error}") from None
