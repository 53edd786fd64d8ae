"""The C interface of plugin/weightcast.h through ctypes. Calls release the interpreter lock."""

from __future__ import annotations

import ctypes
import enum
import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_double, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NoReturn

ABI_VERSION = 1
LIBRARY = "libweightcast.so"
SLICE_S = 0.2  # longer waits are cut into slices, so that Ctrl-C is seen between them

Config = Mapping[str, Any] | str | os.PathLike[str]  # the document itself, or the path of its file


class WeightcastError(RuntimeError):
    """What the core refused or failed to do; the text says who, what, which version and what to do."""


class InvalidArgument(WeightcastError):
    """The caller's input: configuration, catalog, call order."""


class Refused(WeightcastError):
    """A rule says no: secret, role, protocol version, lease, emulation."""


class Unavailable(WeightcastError):
    """Something on this machine is missing: library, permission, space."""


class Unreachable(WeightcastError):
    """A peer is dead, stopped, or was never there."""


class TimedOut(WeightcastError, TimeoutError):
    """A bounded wait ended; the text says what it waited for."""


class Corrupted(WeightcastError):
    """Bytes are not what they must be: digest, plan proof, NaN or Inf."""


class Aborted(WeightcastError):
    """The update was given up; servers keep their committed version."""


class Internal(WeightcastError):
    """A defect of weightcast."""


_ERRORS = {1: InvalidArgument, 2: Refused, 3: Unavailable, 4: Unreachable, 5: TimedOut, 6: Corrupted, 7: Aborted,
           8: Internal}  # fmt: skip


class Phase(enum.IntEnum):
    """What a server rank is doing."""

    CONNECTING = 0
    IDLE = 1
    ALLOW_DUE = 2
    RECEIVING = 3
    READY = 4
    COMMIT_DUE = 5
    FAILED = 6


class ServerState(ctypes.Structure):
    """weightcast_server_state."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("phase", c_uint32),
        ("committed_version", c_uint64),
        ("next_version", c_uint64),
        ("torn", c_uint32),
    )


_OUT_TEXT = POINTER(c_void_p)
_STATE = POINTER(ServerState)


class Api(ctypes.Structure):
    """weightcast_api."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("version", c_char_p),
        ("last_error", CFUNCTYPE(c_char_p)),
        ("free_text", CFUNCTYPE(None, c_void_p)),
        ("set_log", CFUNCTYPE(c_int, c_int, c_char_p)),
        ("controller_open", CFUNCTYPE(c_int, c_char_p, POINTER(c_void_p))),
        ("controller_status", CFUNCTYPE(c_int, c_void_p, _OUT_TEXT)),
        ("controller_close", CFUNCTYPE(None, c_void_p)),
        ("trainer_open", CFUNCTYPE(c_int, c_char_p, c_char_p, POINTER(c_void_p))),
        ("trainer_wait_connected", CFUNCTYPE(c_int, c_void_p, c_uint32)),
        ("trainer_push", CFUNCTYPE(c_int, c_void_p, c_uint64)),
        ("trainer_wait", CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint32, _OUT_TEXT)),
        ("trainer_status", CFUNCTYPE(c_int, c_void_p, _OUT_TEXT)),
        ("trainer_close", CFUNCTYPE(None, c_void_p)),
        ("server_open", CFUNCTYPE(c_int, c_char_p, c_char_p, POINTER(c_void_p))),
        ("server_wait_connected", CFUNCTYPE(c_int, c_void_p, c_uint32)),
        ("server_event_fd", CFUNCTYPE(c_int, c_void_p, POINTER(c_int))),
        ("server_state", CFUNCTYPE(c_int, c_void_p, _STATE)),
        ("server_wait", CFUNCTYPE(c_int, c_void_p, c_uint32, c_uint32, _STATE)),
        ("server_allow", CFUNCTYPE(c_int, c_void_p, c_uint64)),
        ("server_staged", CFUNCTYPE(c_int, c_void_p, c_uint64, _OUT_TEXT)),
        ("server_commit", CFUNCTYPE(c_int, c_void_p, c_uint64, POINTER(c_double))),
        ("server_status", CFUNCTYPE(c_int, c_void_p, _OUT_TEXT)),
        ("server_close", CFUNCTYPE(None, c_void_p)),
    )


def library_path() -> Path:
    """The shared object beside this package (as a wheel has it), else the one that $WEIGHTCAST_LIBRARY names."""
    beside = Path(__file__).parent / LIBRARY
    if beside.is_file():
        return beside
    if named := os.environ.get("WEIGHTCAST_LIBRARY"):
        if Path(named).is_file():
            return Path(named)
        raise Unavailable(f"WEIGHTCAST_LIBRARY names {named}, which is not a file")
    raise Unavailable(f"{LIBRARY} is neither beside the package ({beside.parent}) nor named by WEIGHTCAST_LIBRARY; "
                      "install the wheel, or set the variable to the library of a build")  # fmt: skip


@functools.cache
def api() -> Api:
    """The loaded library's functions. Raises Unavailable if there is none or if it is too old for this package."""
    path = library_path()
    try:
        get = ctypes.CDLL(str(path)).weightcast_get
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{path} cannot be used: {error}") from None
    get.argtypes, get.restype = [c_uint32], POINTER(Api)
    found = get(ABI_VERSION)
    if not found or found.contents.struct_size < ctypes.sizeof(Api):
        raise Unavailable(f"{path} is older than this package: it does not offer interface version {ABI_VERSION} whole")
    return found.contents


def raise_error(code: int) -> NoReturn:
    """Raises the last failed call of this thread as an exception."""
    text = (api().last_error() or b"").decode(errors="replace")
    raise _ERRORS.get(code, Internal)(text or f"code {code}, without a text")


def check(code: int) -> None:
    if code:
        raise_error(code)


def json_or_code(call: Callable[[Any], int]) -> tuple[int, Any]:
    """The result of `call` and, when that is 0, the JSON that it wrote to its `char**`."""
    text = c_void_p()
    if code := call(byref(text)):
        return code, None
    try:
        return 0, json.loads(ctypes.string_at(text.value or 0))
    finally:
        api().free_text(text)


def json_from(call: Callable[[Any], int]) -> Any:
    """The JSON that `call` writes to its `char**`; raises if it fails."""
    code, found = json_or_code(call)
    check(code)
    return found


def until(timeout_s: float, call: Callable[[int], int]) -> None:
    """Repeats a bounded wait, `call(wait_ms)`, until it ends or `timeout_s` has passed (then TimedOut)."""
    end = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, end - time.monotonic())
        code = call(math.ceil(min(left_s, SLICE_S) * 1000))
        if code == 0:
            return
        if _ERRORS.get(code) is not TimedOut or left_s <= SLICE_S:
            raise_error(code)


def config_text(config: Config, **keys: Any) -> bytes:
    """The configuration as JSON, with `keys` (this process's rank, say) set in it."""
    document = dict(config) if isinstance(config, Mapping) else json.loads(Path(config).read_text())
    return json.dumps(document | keys).encode()


class Handle:
    """One open controller, trainer or server; closes itself at the end of a `with` block."""

    _closer: str

    def __init__(self, open_: Callable[[Any], int]) -> None:
        self._handle: c_void_p | None = None
        handle = c_void_p()
        check(open_(byref(handle)))
        self._handle = handle

    @property
    def _open(self) -> c_void_p:
        if self._handle is None:
            raise InvalidArgument(f"this {type(self).__name__} is closed")
        return self._handle

    def close(self) -> None:
        """Leaves the run and frees what the core took; again is allowed."""
        handle, self._handle = self._handle, None
        if handle:
            getattr(api(), self._closer)(handle)

    def __enter__(self):  # noqa: ANN204, typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()


def library_version() -> str:
    """The core's version, "0.1.0"."""
    return (api().version or b"").decode()


def set_log(fd: int, level: str) -> None:
    """Log lines of the core go to `fd` (2 by default); level is "error", "warning", "info" or "debug"."""
    check(api().set_log(fd, level.encode()))
