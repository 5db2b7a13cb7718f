"""SmolLM2's tokenizer, rebuilt from the vocabulary and merges in its GGUF file, and the test of any such rebuild.

transformers cannot be used for this: from this file it makes a CodeLlamaTokenizer that starts every text and ends
every answer with <|im_start|>, and that, once saved and loaded again, turns every space into id 0.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTROL = 3  # GGUF's token type of special tokens
BEGIN, END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ROUND_TRIPS = {
    "spaces": "One space,  two spaces,   three;\ta tab,\n\na blank line, and a space at the end ",
    "digits": "In 2024, 3.14159 x 10^8 is 314159000; call 0042 before 17:30.",
    "code": "def area(r: float) -> float:\n    return 3.14 * r**2  # m²\n\nif True:\n\tprint(area(2))",
    "Chinese": "你好，世界！人工智能正在改变我们的生活。",
    "emoji": "Well done 🎉 👍🏽 👩‍👩‍👧 ❤️",
}


class TokenizerError(RuntimeError):
    """A tokenizer does not do what the model was trained with; the message lists every difference."""


def read_gguf(path: Path) -> dict[str, Any]:
    """Return the `tokenizer.*` fields and the context length of a GGUF file."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    wanted = ("tokenizer.", "llama.context_length")
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith(wanted)}


def rebuild(metadata: Mapping[str, Any]) -> Any:
    """Return the fast tokenizer that the GGUF metadata describes.

    Raises:
        TokenizerError: the file is not a byte-level BPE of the SmolLM kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise TokenizerError(f"The GGUF file holds a tokenizer of kind {kind}; only ('gpt2', 'smollm') is known here.")
    tokens = metadata["tokenizer.ggml.tokens"]
    special = [t for t, k in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True) if k == CONTROL]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[token for token in special if token not in (BEGIN, END, UNKNOWN)],
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = metadata["tokenizer.chat_template"]
    return tokenizer


def verify(tokenizer: Any) -> None:
    """Check round trips, special tokens and the chat template.

    Raises:
        TokenizerError: naming everything that is wrong.
    """
    faults = []
    for name, text in ROUND_TRIPS.items():
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        if back != text:
            faults.append(f"{name}: {text!r} comes back as {back!r}")
    for token in (BEGIN, END, UNKNOWN):
        ids = tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1 or ids[0] != tokenizer.convert_tokens_to_ids(token):
            faults.append(f"{token} becomes the ids {ids} instead of its own one")
    if len(tokenizer.encode("2024", add_special_tokens=False)) != 4:
        faults.append("numbers are not split into single digits")
    for role in ("eos_token", "pad_token"):
        if getattr(tokenizer, role) != END:
            faults.append(f"{role} is {getattr(tokenizer, role)!r} instead of {END!r}")
    if tokenizer.encode("plain") != tokenizer.encode("plain", add_special_tokens=False):
        faults.append("special tokens are added around plain text")
    if not tokenizer.chat_template:
        faults.append("there is no chat template")
    if faults:
        raise TokenizerError("The tokenizer is not SmolLM2's:\n  " + "\n  ".join(faults))
