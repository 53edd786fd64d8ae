"""weightcast in TRL's AsyncGRPOTrainer: `AsyncGRPOTrainer(..., weight_transfer=weightcast.trl.WeightTransfer(config, url))`.

The object has the five methods of TRL's WeightTransferProtocol, which TRL calls on its main process only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import abi
from .streamed import StreamedTrainer
from .vllm.client import Client, Kv, Update

if TYPE_CHECKING:
    import torch


class WeightTransfer:
    """Streams the policy into vLLM servers that run weightcast's backend. `last` is what the last update cost."""

    def __init__(self, config: abi.Config, *servers: str, kv: Kv = "keep", timeout_s: float = 120.0) -> None:
        self._streamed, self._client, self._kv = StreamedTrainer(config, connect_s=timeout_s), Client(*servers, timeout_s=timeout_s), kv
        self.last: Update | None = None

    def init_weight_transfer(self) -> None:
        """Nothing yet: the first stream says which tensors there are."""

    def pause(self) -> None:
        """Nothing: servers generate until the switch, and the update pauses them itself where `kv` needs it."""

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        trainer = self._streamed.load(iterator)
        self.last = self._client.update(trainer, self._client.next_version(trainer), kv=self._kv)

    def resume(self) -> None:
        """Nothing, as in pause()."""

    def destroy(self) -> None:
        self._streamed.close()
