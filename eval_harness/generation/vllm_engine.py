"""A vLLM engine for a loaded model, made once. Written after vLLM's documentation and never run here (no GPU)."""

from pathlib import Path
from typing import Any

from .loading import ADAPTER, Loaded

_ENGINES: dict[str, tuple[Any, Any]] = {}


def engine_of(loaded: Loaded) -> tuple[Any, Any]:
    """Return vLLM's engine of a model, and the request that puts the run's adapter on top (None without one)."""
    if loaded.identity not in _ENGINES:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        folder = Path(getattr(loaded.model, "ledpo_adapter", ""))
        lora = (folder / ADAPTER[0]).is_file()
        engine = LLM(
            model=loaded.arguments["model_name_or_path"],
            trust_remote_code=loaded.arguments["trust_remote_code"],
            enable_lora=lora,
        )
        _ENGINES[loaded.identity] = engine, LoRARequest("run", 1, str(folder)) if lora else None
    return _ENGINES[loaded.identity]
