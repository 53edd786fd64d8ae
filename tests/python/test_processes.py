import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from weightcast.demo.processes import ChildFailed, Children, answer, orders


def echo(pipe, prefix):
    for order in orders(pipe):
        answer(pipe, prefix + order)


def fail(pipe):
    raise ValueError("no weights here")


def die(pipe):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(pipe):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answer(pipe, os.getpid())
    time.sleep(60)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_each_order_has_one_answer():
    with Children() as children:
        for name in ("a", "b"):
            children.start(name, echo, name)
        children.tell(["a", "b"], "1")
        children.tell(["b"], "2")
        assert children.gather(["a", "b"], "echo", 10) == {"a": "a1", "b": "b1"}
        assert children.gather(["b"], "echo", 10) == {"b": "b2"}


def test_what_a_child_raises_names_the_child_and_the_reason():
    with Children() as children:
        children.start("trainer 2", fail)
        with pytest.raises(ChildFailed, match=r"load: trainer 2: ValueError: no weights here \(test_processes\.py"):
            children.gather(["trainer 2"], "load", 10)


def test_a_killed_child_is_noticed_at_once():
    began = time.monotonic()
    with Children() as children:
        children.start("server 1", die)
        with pytest.raises(ChildFailed, match="server 1 ended with exit code -9"):
            children.gather(["server 1"], "push", 30)
    assert time.monotonic() - began < 10


def test_a_silent_child_is_waited_for_no_longer_than_the_bound_and_then_killed():
    began = time.monotonic()
    with pytest.raises(ChildFailed, match="verify: no answer from server 0 within 0.2 s"), Children() as children:
        children.start("server 0", sleep)
        pid = children.gather(["server 0"], "start", 10)["server 0"]
        children.gather(["server 0"], "verify", 0.2)
    assert not is_alive(pid) and time.monotonic() - began < 15


def test_children_die_with_their_parent(tmp_path):
    code = """
import test_processes
from weightcast.demo.processes import Children
if __name__ == "__main__":
    children = Children()
    children.start("server", test_processes.sleep)
    print(children.gather(["server"], "start", 20)["server"], flush=True)
    input()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    script = tmp_path / "parent.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=environment) as parent:  # fmt: skip
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    end = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(pid)
