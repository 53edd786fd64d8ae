"""repeated_layers.py: models of eight layers with loaders of their own, mapped at once and layer by layer.

Prints {case: {"same": the two maps are equal, "loaded": tensors that the loader saw, of how many}}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from types import FunctionType

import numpy
import torch
from weightcast.engines import layers
from weightcast.engines.trace import TensorMeta, trace

LAYERS = 8


class Layer(torch.nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.prefix = f"model.layers.{number}"
        self.swaps = False
        self.fused = torch.nn.Parameter(torch.empty(8, 4, device="meta"), requires_grad=False)

    def load(self, part: str, tensor: torch.Tensor) -> None:
        low, high = self.fused.chunk(2)
        (low if (part == "a") != self.swaps else high).copy_(tensor)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(number) for number in range(LAYERS))
        self.head = torch.nn.Parameter(torch.empty(4, device="meta"), requires_grad=False)
        self.seen = 0
        self.place: Callable[[int], int] = lambda number: number
        self.wants_all = False

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        seen = dict(weights)
        self.seen = len(seen)
        if self.wants_all and len(seen) < 2 * LAYERS + 1:
            raise KeyError("model.layers.1.a")
        for name, tensor in reversed(seen.items()):
            if name == "head":
                self.head.copy_(tensor)
            elif not name.endswith("rope"):
                _, number, part = name.rsplit(".", 2)
                self.layers[self.place(int(number))].load(part, tensor)


def case(change: Callable[[Model], None] = lambda model: None, extra: tuple[str, ...] = ()) -> dict:
    model = Model()
    change(model)
    shapes = {f"model.layers.{number}.{part}": (4, 4) for number in range(LAYERS) for part in ("a", "b")} | {"head": (4,)}
    manifest = {name: TensorMeta(shape, torch.float32) for name, shape in (shapes | dict.fromkeys(extra, (2,))).items()}
    targets = dict(model.named_parameters())
    whole = trace(model.load_weights, manifest, targets)
    found = layers.trace_model(model, manifest, targets)
    return {"same": found == whole, "loaded": model.seen, "tensors": len(manifest)}


def one_swaps(model: Model) -> None:
    model.layers[3].swaps = True


def all_want_the_whole_checkpoint(model: Model) -> None:
    model.wants_all = True


def middle_goes_elsewhere(model: Model) -> None:
    model.place = lambda number: {4: 5, 5: 4}.get(number, number)


def one_keeps_a_list(model: Model) -> None:
    model.layers[6].places = torch.tensor([1, 0])
    for number in (0, 1, 2, 3, 4, 5, 7):
        model.layers[number].places = torch.tensor([0, 1])


def all_hold_what_cannot_be_compared(model: Model) -> None:
    for layer in model.layers:
        layer.places = numpy.arange(3)


def one_loads_by_another_default(model: Model) -> None:
    def load(part: str, tensor: torch.Tensor, layer: Layer, first: str = "a") -> None:
        layer.fused.chunk(2)[part != first].copy_(tensor)

    def loader(layer: Layer, first: str) -> Callable:
        return FunctionType(load.__code__, globals(), "load", (layer, first))

    for layer in model.layers:
        layer.load = loader(layer, "b" if layer.number == 5 else "a")


print(json.dumps({"alike": case(), "with tensors that go nowhere": case(extra=tuple(f"model.layers.{n}.rope" for n in range(LAYERS))),
                  "one loads otherwise": case(one_swaps), "one has another list of places": case(one_keeps_a_list),
                  "two go to each other": case(middle_goes_elsewhere), "the loader wants all": case(all_want_the_whole_checkpoint), "what cannot be compared": case(all_hold_what_cannot_be_compared),
                  "one loads by another default": case(one_loads_by_another_default)}))  # fmt: skip
