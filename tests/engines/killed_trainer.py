"""killed_trainer.py CONFIG CHECKPOINT: a trainer, with the controller inside, that is killed while its bytes are on their way."""

from __future__ import annotations

import os
import signal
import sys
import threading

import ml_dtypes  # noqa: F401  (BF16 in NumPy, for safetensors)
import weightcast
from safetensors.numpy import load_file
from weightcast.vllm import Client


def main() -> None:
    trainer = weightcast.Trainer(sys.argv[1], 0, load_file(sys.argv[2]))
    trainer.wait_connected(120)
    version = Client("http://nobody").next_version(trainer)
    threading.Thread(target=trainer.push, args=(version,), daemon=True).start()
    while trainer.status()["controller"]["state"] != "moving":
        pass
    os.kill(os.getpid(), signal.SIGKILL)


main()
