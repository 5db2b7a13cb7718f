"""Answers of trained models under every usual way of decoding, and one that asks the LEDPO head."""

from .decoding import Decoding, DecodingError, read_decoding

__all__ = ["Decoding", "DecodingError", "Loaded", "generate", "load", "read_decoding", "score_outputs"]


def __getattr__(name: str):
    """Import what needs torch when it is asked for."""
    if name in ("Loaded", "load"):
        from . import loading

        return getattr(loading, name)
    if name == "generate":
        from .generating import generate

        return generate
    if name == "score_outputs":
        from .scoring import score_outputs

        return score_outputs
    raise AttributeError(name)
