"""The controller as a process of its own. By default trainer 0 runs one inside, and nobody needs this."""

from __future__ import annotations

from typing import Any

from . import abi


class Controller(abi.Handle):
    """Matches catalogs, plans once, and decides every commit."""

    _closer = "controller_close"

    def __init__(self, config: abi.Config) -> None:
        text = abi.config_text(config)
        super().__init__(lambda out: abi.api().controller_open(text, out))

    def status(self) -> dict[str, Any]:
        """{"state", "version", "address", "members", "update"}; see plugin/PROTOCOL.md."""
        return abi.json_from(lambda out: abi.api().controller_status(self._open, out))
