"""The trainer's side of vLLM's weight transfer interface, for code that is written against WeightTransferTrainerFactory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine

from ..streamed import StreamedTrainer
from ..trainer import Trainer
from .client import Client, Update


@dataclass
class WeightcastTrainerInitInfo(TrainerInitInfo):
    """`config`: path of weightcast.json, or the document."""

    backend: ClassVar[str] = "weightcast"
    config: Any
    timeout_s: float = 120.0


class WeightcastTrainerEngine(TrainerWeightTransferEngine[WeightcastTrainerInitInfo]):
    """With a ModuleSource every rank pushes its own shards from where they lie; of any other source, rank 0 pushes copies
    of the whole tensors. `last` is what the last update cost, on rank 0."""

    init_info_cls = WeightcastTrainerInitInfo

    def __init__(self, init_info: WeightcastTrainerInitInfo, *, client: Any, source: Any) -> None:
        super().__init__(client=client, source=source, is_sender=init_info.is_sender)
        self._timeout_s = init_info.timeout_s
        self._module = getattr(source, "module", getattr(source, "_module", None))
        self._trainer: Trainer | None = None
        self._streamed = StreamedTrainer(init_info.config, init_info.rank, init_info.timeout_s)
        if self._module is not None:
            self._trainer = Trainer(init_info.config, init_info.rank, dict(self._module.named_parameters()))
            self._trainer.wait_connected(init_info.timeout_s)
        self.last: Update | None = None

    @classmethod
    def trainer_init(cls, init_info: WeightcastTrainerInitInfo, *, client: Any, source: Any = None) -> WeightcastTrainerEngine:
        if source is None:
            raise ValueError("weightcast needs a WeightSource: ModuleSource(model), or your own")
        if init_info.is_sender:
            client.init_weight_transfer_engine({})
        return cls(init_info, client=client, source=source)

    def send_weights(self) -> None:
        """The next version, from the module's parameters as they stand or from a fresh pass over the source."""
        trainer = self._trainer
        if trainer is None:
            if not self.is_sender:
                for _ in self._whole_tensors():  # gathering is collective
                    pass
                return
            trainer = self._streamed.load(self._whole_tensors())
        client = Client(self.client, timeout_s=self._timeout_s)
        version = _from_sender(client.next_version(trainer) if self.is_sender else 0)
        if self.is_sender:
            self.last = client.update(trainer, version)
        else:
            trainer.push(version)
            trainer.wait(version, self._timeout_s)

    def shutdown(self) -> None:
        self._streamed.close()
        if self._trainer is not None:
            self._trainer.close()

    def _whole_tensors(self) -> Any:
        """vLLM up to 0.32 iterates over the source itself; from 0.33 on over iter_full()."""
        return self.source.iter_full() if hasattr(self.source, "iter_full") else iter(self.source)


def _from_sender(version: int) -> int:
    """What rank 0 of the trainers says, on all of them."""
    if not torch.distributed.is_initialized():
        return version
    said = [version]
    torch.distributed.broadcast_object_list(said, src=0)
    return said[0]
