"""Trainers that hand out their weights as a stream of whole tensors: TRL, verl and vLLM's weight sources. Needs torch."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from . import abi
from .trainer import Trainer


class StreamedTrainer:
    """A Trainer whose tensors come through `(name, tensor)` streams: the first names them, later ones bring new values.

    The stream's tensors may be temporary, so they are copied, into host memory that stays registered. Where parameters
    stay in place, as in FSDP, `weightcast.Trainer(config, rank, dict(model.named_parameters()))` saves copy and gather.
    """

    def __init__(self, config: abi.Config, rank: int = 0, connect_s: float = 60.0) -> None:
        self._config, self._rank, self._connect_s = config, rank, connect_s
        self._held: dict[str, torch.Tensor] = {}
        self.trainer: Trainer | None = None

    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> Trainer:
        """Takes the values of a whole stream and returns the trainer that will push them, connected.

        Raises InvalidArgument, naming the tensor, if the stream is not the first one's: a name more or less, another shape.
        """
        seen: set[str] = set()
        with torch.no_grad():
            for name, tensor in stream:
                tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
                if name not in self._held:
                    if self.trainer is not None:
                        raise abi.InvalidArgument(f"tensor {name!r} was not in the first stream; start again to add tensors")
                    self._held[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                if self._held[name].shape != tensor.shape:
                    raise abi.InvalidArgument(f"tensor {name!r} is {list(tensor.shape)} now and was {list(self._held[name].shape)}")
                self._held[name].copy_(tensor)
                seen.add(name)
        if missing := [name for name in self._held if name not in seen]:
            raise abi.InvalidArgument(f"tensor {missing[0]!r} is missing in this stream; pushing would mix two versions")
        if self.trainer is None:
            self.trainer = Trainer(self._config, self._rank, self._held)
            self.trainer.wait_connected(self._connect_s)
        return self.trainer

    def close(self) -> None:
        if self.trainer is not None:
            self.trainer.close()
            self.trainer = None
