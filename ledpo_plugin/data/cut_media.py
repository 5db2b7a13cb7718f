"""Rows whose images, videos or sounds lost tokens to cutoff_len: the model would stop at them, naming no row."""

from collections.abc import Callable, Mapping
from typing import Any

KINDS = {"images": "image", "videos": "video", "audios": "audio"}  # column of a row -> its token in the host's plugin
REASON = "tokens of an image, video or sound cut off by cutoff_len"


def media_fault(
    template: Any, tokenizer: Any, processor: Any, cutoff_len: int, placeholders: Mapping[str, str]
) -> Callable[[Mapping[str, Any]], str | None]:
    """Return a function that says of a tokenized row why it cannot train for its media, or None.

    A row that is shorter than cutoff_len lost nothing, so media are only opened for those that were cut.

    Args:
        template: the host's, whose `mm_plugin` puts tokens in the places of media.
        tokenizer: of the model.
        processor: of the model; None where it takes text alone.
        cutoff_len: tokens that are left of a row at most.
        placeholders: column of media -> what stands for one of them in a text.
    """
    plugin = template.mm_plugin
    tokens = {getattr(plugin, f"{kind}_token", None) for kind in KINDS.values()} - {None}
    ids = {tokenizer.convert_tokens_to_ids(token) for token in tokens} - {None, tokenizer.unk_token_id}

    def fault(row: Mapping[str, Any]) -> str | None:
        media = {kind: list(row.get(kind) or ()) for kind in KINDS}
        texts = [row[key] for key in row if key.endswith("input_ids")]
        if processor is None or not any(media.values()) or max(map(len, texts)) < cutoff_len:
            return None
        content = "".join(placeholders[kind] * len(media[kind]) for kind in KINDS)
        turn = [{"role": "user", "content": content}]
        written = plugin.process_messages(turn, media["images"], media["videos"], media["audios"], processor)
        wanted = sum(written[0]["content"].count(token) for token in tokens)
        return REASON if any(sum(text.count(id_) for id_ in ids) < wanted for text in map(list, texts)) else None

    return fault
