"""A folder that stock lm-eval runs: the tasks' files, and documents whose tokens are those of training."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval_harness.data import DataSetError, Example, read_dataset
from eval_harness.generation.loading import Loaded
from eval_harness.generation.scoring import logps_of
from ledpo_plugin.common.files import write_json, write_text
from ledpo_plugin.common.problem import listing
from ledpo_plugin.common.problem import problem as make_problem
from ledpo_plugin.common.run_record import package_versions

from .results import DOCUMENTS

YAML = Path(__file__).parent / "yaml"
PROVENANCE = "provenance.json"
LARGEST_LIST = 8
FORMS = ("rendered", "chat")
UTILS = '''"""What the tasks call; the documents are beside this file."""

from functools import partial
from pathlib import Path

from eval_harness.tasks.results import (
    answer_choices,
    documents,
    of_answer,
    of_pair,
    of_rewarded_pair,
    pair_choices,
    token_perplexity,
)

HERE = Path(__file__).parent
PAIR = ("chosen", "rejected")


def pairs(domain=None, **_):
    """Return the pairs."""
    return documents(HERE, PAIR, domain)


def rewarded_pairs(domain=None, **_):
    """Return the pairs that the reference has seen."""
    return documents(HERE, (*PAIR, "reference_chosen", "reference_rejected", "beta"), domain)


def answers(domain=None, **_):
    """Return everything that has an answer."""
    return documents(HERE, ("chosen",), domain)
'''


def prepare(
    loaded: Loaded,
    dataset: str,
    dataset_dir: str | Path,
    folder: Path,
    *,
    form: str = "rendered",
    domain: str = "domain",
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Write a folder of lm-eval tasks for a data set and a model; return its provenance.

    Args:
        loaded: the model whose tokens are meant; of a trained run also reference and beta(x) are written.
        dataset, dataset_dir: as in recipes.
        folder: takes the files.
        form: "rendered": documents hold the whole prompt, for lm_eval as it is; "chat": the user's words, for
            lm_eval --apply_chat_template. In the latter, white space at the end of the chat template is scored as part
            of every answer: differences of answers (margins, accuracy by sum) are the same, log-probabilities and what
            is per token are off by that token's.
        domain: the field of a row that names its domain; tasks of each are written where there are two or more.
        limit: rows at most.
        batch_size: pairs at a time.

    Raises:
        ValueError: the data set cannot be used, or lm-eval would see other tokens than training; all rows are listed.
    """
    if form not in FORMS:
        raise ValueError(f"The form {form!r} is unknown. Take one of {', '.join(FORMS)}.")
    examples = read_dataset(dataset, dataset_dir)[:limit]
    rows, problems = [], []
    stock = stock_tokenizer(loaded)
    for example in examples:
        row, why = _document(loaded, stock, example, form, domain)
        if why:
            fix = "take the row out, or use the other form" if form == "chat" else "take the row out"
            problems.append(make_problem(f"{dataset}, row {example.place + 1}", None, why, fix))
        else:
            rows.append(row)
    if problems:
        raise DataSetError(listing(f"Data set {dataset} as lm-eval documents", problems, "nothing was written",
                                   LARGEST_LIST))  # fmt: skip
    pairs = [row for row in rows if row["rejected"] is not None]
    if loaded.start is not None and loaded.head is not None and pairs:
        _add_references(loaded, pairs, batch_size)
    texts = [json.dumps(_public(row), ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / DOCUMENTS, "".join(texts))
    write_text(folder / "utils.py", UTILS)
    tasks, groups = _write_tasks(folder, rows, bool(pairs))
    made = {
        "dataset": dataset,
        "form": form,
        "rows": len(rows),
        "documents_sha256": hashlib.sha256("".join(texts).encode()).hexdigest(),
        "model": loaded.name,
        "model_identity": loaded.identity,
        "tasks": tasks,
        "groups": groups,
        "lm_eval": command(loaded, folder, form, tasks),
        "versions": package_versions(),
    }
    write_json(folder / PROVENANCE, made)
    return made


def model_arguments(loaded: Loaded) -> dict[str, Any]:
    """Return lm-eval's arguments of the model: the adapter on its base, no token added in front of a prompt."""
    own: dict[str, Any] = {"pretrained": loaded.arguments["model_name_or_path"]}
    adapter = getattr(loaded.model, "ledpo_adapter", None)
    own |= {"peft": adapter} if adapter else {}
    dtype = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
    return own | {"dtype": dtype, "add_bos_token": False}


def stock_tokenizer(loaded: Loaded) -> Any:
    """Return the tokenizer as lm-eval loads it: LLaMA-Factory's template changes special tokens and chat template."""
    from transformers import AutoTokenizer

    own = loaded.arguments
    return AutoTokenizer.from_pretrained(
        own["model_name_or_path"],
        trust_remote_code=own["trust_remote_code"],
        revision=own.get("model_revision", "main"),
        cache_dir=own.get("cache_dir"),
    )


def command(loaded: Loaded, folder: Path, form: str, tasks: Sequence[str]) -> str:
    """Return the stock command that runs the folder."""
    given = ",".join(f"{key}={value}" for key, value in model_arguments(loaded).items())
    chat = " --apply_chat_template" if form == "chat" else ""
    return f"lm_eval --model hf --model_args {given} --include_path {folder} --tasks {','.join(tasks)}{chat}"


# ---- one document


def _document(
    loaded: Loaded, stock: Any, example: Example, form: str, domain: str
) -> tuple[dict[str, Any], str | None]:
    """Return a row as a document and None, or why lm-eval would not see the tokens of training."""
    row: dict[str, Any] = {"id": example.place, "domain": str(example.row.get(domain) or ""), "rejected": None}
    if not example.answers or not example.answers[0]:
        return row, "it has no answer"
    if form == "chat" and not example.single_turn:
        return row, "it has several turns or a system prompt, which a chat template would not get"
    tokenizer = loaded.tokenizer
    for side, answer in zip(("chosen", "rejected"), example.answers[:2], strict=False):
        messages = [*example.messages, {"role": "assistant", "content": answer}]
        prompt, response = loaded.template.encode_oneturn(tokenizer, messages, example.system or None)
        text = tokenizer.decode(prompt, skip_special_tokens=False)
        moved = text[len(text.rstrip()) :]
        if form == "chat":
            chat = [{"role": "user", "content": example.prompt}]
            whole = stock.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            if stock.encode(whole, add_special_tokens=False) != prompt:
                return row, "the tokenizer's chat template makes other tokens of it than the template of training"
            # The template's end is out of reach here: where it is white space, it is scored with every answer.
            text, moved, row["context"] = whole, "", example.prompt
        else:
            row["context"] = text.rstrip()
        said = tokenizer.decode(response, skip_special_tokens=False)
        if not _same_tokens(stock, text, said, prompt, response):
            return row, f"its {side} answer has other tokens where lm-eval joins it to the prompt"
        row |= {
            "moved": moved,
            side: said,
            f"{side}_tokens": len(response),
            f"{side}_bytes": len(said.encode()),
            f"_{side}": response,
            "_prompt": prompt,
        }
    row["_text"] = example.prompt if example.single_turn else None
    return row, None


def _same_tokens(
    tokenizer: Any, prompt: str, answer: str, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> bool:
    """Return whether lm-eval's way to encode prompt and answer gives these tokens, cut where it cuts."""
    kept = prompt.rstrip()
    whole = tokenizer.encode(prompt + answer, add_special_tokens=False)
    before = tokenizer.encode(kept, add_special_tokens=False)
    moved = len(prompt_ids) - len(before)
    return (
        whole == [*prompt_ids, *answer_ids]
        and before == list(prompt_ids[: len(before)])
        and (moved == 0) == (kept == prompt)
    )


def _public(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}


def _add_references(loaded: Loaded, rows: Sequence[dict[str, Any]], batch_size: int) -> None:
    """Add what the model that training started from says of both answers, and beta(x) of the prompt."""
    prompts = [row["_prompt"] for row in rows]
    with loaded.at_start() as start:
        for side in ("chosen", "rejected"):
            found = logps_of(loaded, start, prompts, [row[f"_{side}"] for row in rows], batch_size=batch_size)
            for row, value in zip(rows, found, strict=True):
                row[f"reference_{side}"] = value
    for row, beta in zip(rows, loaded.betas_of(prompts, batch_size), strict=True):
        row["beta"] = beta


# ---- the tasks' files


def _write_tasks(folder: Path, rows: Sequence[Mapping[str, Any]], pairs: bool) -> tuple[list[str], list[str]]:
    """Write the tasks' files; return the names of the tasks, and of the groups of one task a domain."""
    names = ["ledpo_answers"]
    if pairs:
        names.insert(0, "ledpo_pairs")
        if any("beta" in row for row in rows):
            names.insert(1, "ledpo_rewards")
    for stale in folder.glob("ledpo_*.yaml"):
        stale.unlink()
    for name in [*names, "ledpo_standard"]:
        shutil.copy(YAML / f"{name}.yaml", folder / f"{name}.yaml")
    domains = sorted({row["domain"] for row in rows if row["domain"]})
    groups = []
    for name in names if len(domains) > 1 else ():
        parts = []
        for domain in domains:
            part = f"{name}_{''.join(c if c.isalnum() else '_' for c in domain)}"
            parts.append(part)
            config = {"include": f"{name}.yaml", "task": part, "metadata": {"version": 1.0, "domain": domain}}
            write_text(folder / f"{part}.yaml", yaml.safe_dump(config, sort_keys=False))
        group = f"{name}_by_domain"
        config = {"group": group, "task": parts, "metadata": {"version": 1.0}}
        write_text(folder / f"{group}.yaml", yaml.safe_dump(config, sort_keys=False))
        groups.append(group)
    return names, groups
