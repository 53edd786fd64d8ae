"""The sending side: weights as they lie in a training process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from . import abi
from .catalog import Manifest, Rule, Shard, parameters_of, shards_of, trainer_catalog
from .placements import shard_of


class Trainer(abi.Handle):
    """One trainer rank, which offers its tensors under version numbers.

    `tensors` maps checkpoint names to what this rank holds: a `Shard` or a list of them, a DTensor (its placements say which
    part it is), or a NumPy array or torch tensor that is the whole tensor. BF16 may be `ml_dtypes.bfloat16` or a `uint16` view. The
    arrays must stay where they are until close(); this object keeps them alive.

    Joins and returns; connecting goes on in the background.
    """

    _closer = "trainer_close"

    def __init__(self, config: abi.Config, rank: int, tensors: Mapping[str, Any]) -> None:
        self._shards: dict[str, Shard | Sequence[Shard]] = {name: tensor if isinstance(tensor, list) else shard_of(name, tensor)
                                                            for name, tensor in tensors.items()}  # fmt: skip
        self.catalog = trainer_catalog(rank, self._shards)
        text, catalog = abi.config_text(config, rank=rank), json.dumps(self.catalog).encode()
        super().__init__(lambda out: abi.api().trainer_open(text, catalog, out))

    @classmethod
    def from_rules(cls, config: abi.Config, rank: int, ranks: int, manifest: Manifest, rules: Sequence[Rule],
                   arrays: Mapping[str, Any]) -> Trainer:  # fmt: skip
        """A trainer whose fused and sliced parameters are made of checkpoint tensors by rules, as in Megatron.

        `rank` counts over all trainers; `ranks` is the tensor parallel size, and rank % ranks this rank's place in it.
        `arrays` are the rank's own parameters, by the names that the rules give them: layers of other pipeline stages and
        experts of other ranks are left out, so these names count over the whole model.
        """
        return cls(config, rank, shards_of(parameters_of(manifest, rules, rank % ranks, ranks), arrays))

    def wait_connected(self, timeout_s: float = 60.0) -> None:
        """Until every rank has joined, the plan is proved and this rank is connected: the end of first contact."""
        abi.until(timeout_s, lambda wait_ms: abi.api().trainer_wait_connected(self._open, wait_ms))

    def push(self, version: int) -> None:
        """Offers the weights as they stand as `version`; every trainer pushes the same one.

        Returns when the weights may change again. Bounded by `times.update_ms` of the configuration.
        """
        abi.check(abi.api().trainer_push(self._open, version))

    def wait(self, version: int, timeout_s: float = 60.0) -> dict[str, Any]:
        """Until `version` is committed everywhere it can be; returns the report of the update.

        Raises Aborted if the update was given up: the servers then keep what they have.
        """
        report: dict[str, Any] = {}

        def wait(wait_ms: int) -> int:
            code, found = abi.json_or_code(lambda out: abi.api().trainer_wait(self._open, version, wait_ms, out))
            report.update(found or {})
            return code

        abi.until(timeout_s, wait)
        return report

    def status(self) -> dict[str, Any]:
        """State, version and peers of this rank; see plugin/PROTOCOL.md."""
        return abi.json_from(lambda out: abi.api().trainer_status(self._open, out))
