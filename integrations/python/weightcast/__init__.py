"""weightcast: a model's weights from the processes that train it to the processes that serve it.

    trainer = weightcast.Trainer("weightcast.json", rank, model.state_dict())
    trainer.push(version)                       # after every optimiser step

    server = weightcast.Server("weightcast.json", rank, replica, parameters, arrays)
    server.commit_if_due()                      # between two forward passes

Importing it loads nothing; the shared object is opened with the first Trainer, Server or Controller.
"""

from .abi import (
    Aborted,
    Corrupted,
    Internal,
    InvalidArgument,
    Phase,
    Refused,
    TimedOut,
    Unavailable,
    Unreachable,
    WeightcastError,
    library_version,
    set_log,
)
from .catalog import (
    FP8_BLOCK,
    FP8_BLOCK_UE8M0,
    FP8_CHANNEL,
    FP8_TENSOR,
    MXFP8,
    NVFP4,
    Parameter,
    Part,
    Rule,
    Scales,
    Shard,
    parameters_of,
    server_catalog,
    shards_of,
    trainer_catalog,
)
from .controller import Controller
from .server import Server, State
from .trainer import Trainer

__all__ = [
    "FP8_BLOCK",
    "FP8_BLOCK_UE8M0",
    "FP8_CHANNEL",
    "FP8_TENSOR",
    "MXFP8",
    "NVFP4",
    "Aborted",
    "Controller",
    "Corrupted",
    "Internal",
    "InvalidArgument",
    "Parameter",
    "Part",
    "Phase",
    "Refused",
    "Rule",
    "Scales",
    "Server",
    "Shard",
    "State",
    "TimedOut",
    "Trainer",
    "Unavailable",
    "Unreachable",
    "WeightcastError",
    "library_version",
    "parameters_of",
    "server_catalog",
    "set_log",
    "shards_of",
    "trainer_catalog",
]
