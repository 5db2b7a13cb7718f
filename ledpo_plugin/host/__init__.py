"""LLaMA-Factory as the plugin uses it: the one package that knows its internals."""
