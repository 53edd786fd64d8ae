"""weightcast in SGLang: found by its entry point (`sglang.srt.plugins`); WEIGHTCAST_CONFIG names the configuration.

    WEIGHTCAST_CONFIG=weightcast.json python -m sglang.launch_server --model-path MODEL \
      --custom-weight-loader weightcast.sglang.control

Each worker traces its model while it loads, takes its shadow memory before the KV cache is sized, and joins. A version is
switched to by a message to `control` through SGLang's own `update_weights_from_tensor`, between begin_weight_update and
end_weight_update: all tensor parallel ranks handle it between the same two batches. integrations/SGLANG.md says more.
"""

from __future__ import annotations

from .control import PREFIX, control

LOADER = "sglang.srt.model_loader.loader.DefaultModelLoader.load_weights_and_postprocess"
TRANSPORTER = ("sglang.srt.model_executor.model_runner_components.remote_instance_weight_transporter."
               "RemoteInstanceWeightTransporter.maybe_register_and_publish_weight_info")  # fmt: skip

__all__ = ["PREFIX", "control", "register"]


def register() -> None:
    """Called by SGLang in every process; its registry applies the hooks afterwards."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from . import loading

    HookRegistry.register(LOADER, loading.around_load, HookType.AROUND)
    HookRegistry.register(TRANSPORTER, loading.after_load, HookType.AFTER)
