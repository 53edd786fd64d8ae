"""Messages into SGLang's workers, which have no other way in: names of tensors that carry no weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..abi import Phase, WeightcastError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("weightcast.sglang")
PREFIX = "weightcast:"
WAIT_S = 30.0  # for the decision, which reaches the ranks of a replica a moment apart


def control(model: torch.nn.Module, named_tensors: Iterable[tuple[str, Any]]) -> None:
    """SGLang's `--custom-weight-loader`: each name is PREFIX and JSON, {"commit": version} or {"allow": version}.

    Never raises, since the other ranks of the engine would wait for this one: it logs the reason and keeps what it serves,
    which the trainer's report shows. SGLang takes such a message for loaded weights and then leaves out the model's
    post_load_weights, so it is called here.
    """
    from . import loading

    for name, _ in named_tensors:
        if not name.startswith(PREFIX):
            logger.error("weightcast: %r is no message of weightcast; SGLang's own update routes must not be used beside it", name)
            continue
        try:
            _obey(model, loading.servers[model], json.loads(name.removeprefix(PREFIX)))
        except (WeightcastError, KeyError, ValueError) as error:
            logger.error("weightcast: %s: %s", name, error)


def _obey(model: torch.nn.Module, server: Any, message: dict[str, int]) -> None:
    if "allow" in message:
        server.allow(message["allow"])
        return
    version, state = message["commit"], server.state()
    if state.phase == Phase.READY and state.next_version == version:
        state = server.wait(Phase.COMMIT_DUE, WAIT_S)
    if state.phase != Phase.COMMIT_DUE or state.next_version != version:
        raise WeightcastError(f"asked to commit version {version}, but this rank is {state.phase.name} for version "
                              f"{state.next_version} and serves {state.committed_version}")  # fmt: skip
    stall_ms = server.commit(version)
    if hasattr(model, "post_load_weights"):
        model.post_load_weights()
    logger.info("weightcast: version %d is live, %.1f ms", version, stall_ms)
