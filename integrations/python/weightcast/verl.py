"""weightcast in verl: a checkpoint engine, chosen by

    actor_rollout_ref.rollout.checkpoint_engine.backend=weightcast
    actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=weightcast.verl
    actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.weightcast={config: weightcast.json, servers: [http://...]}

Importing this module registers it. verl calls prepare, build_topology, init_process_group and finalize around every
update; all of it is done once here. The weights reach the engine's workers by themselves, so rollout processes get an
empty stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any

from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from . import abi
from .streamed import StreamedTrainer
from .vllm.client import Client, Kv, Update

if TYPE_CHECKING:
    import torch


@CheckpointEngineRegistry.register("weightcast")
class WeightcastCheckpointEngine(CheckpointEngine):
    """Actor rank 0 sends; the other ranks only take part in gathering. `last` is what the last update cost."""

    def __init__(self, bucket_size: int = 0, config: abi.Config | None = None, servers: Sequence[str] = (), kv: Kv = "keep",
                 is_master: bool = False, **_: Any) -> None:  # fmt: skip
        if config is None:
            raise ValueError("engine_kwargs.weightcast needs config: the path of weightcast.json")
        self._config, self._servers, self._kv = config, tuple(servers), kv
        self._rank: int | None = None
        self._streamed: StreamedTrainer | None = None
        self.last: Update | None = None

    def prepare(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict]
                       ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:  # fmt: skip
        """Actors are numbered from 0; rollout processes take no part (-1)."""
        return {"rank": list(range(actor_wg_world_size))}, {"rank": [-1] * rollout_world_size}

    def init_process_group(self, rank: int, **_: Any) -> None:
        self._rank = rank

    def finalize(self) -> None:
        """Nothing is given up between updates."""

    async def send_weights(self, weights: Generator[tuple[str, torch.Tensor], None, None], global_steps: int | None = None) -> None:
        if self._rank != 0:
            for _ in weights:  # gathering is collective
                pass
            return
        self._streamed = self._streamed or StreamedTrainer(self._config)
        trainer = self._streamed.load(weights)
        client = Client(*self._servers)
        self.last = client.update(trainer, max(client.next_version(trainer), global_steps or 0), kv=self._kv)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Empty: the engine's workers have the weights already."""
        for nothing in ():
            yield nothing
