"""LEDPO in LLaMA-Factory's web UI (LlamaBoard). Nothing here is imported before the web UI is."""
