"""What the tables share: the kinds of beta, how a recipe key is described, and what a formula was checked against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args

# How a beta comes about: it stays, it follows the steps of the run, the loss trains it, or a published rule computes it
# from the batch.
Kind = Literal["constant", "scheduled", "learned", "published"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Code that several rows name, at the commit that was read.
DPO_CODE = "eric-mitchell/direct-preference-optimization@f8b8c0f"
HALOS = "ContextualAI/HALOs@4831988:train/trainers.py"
LEDPO_CODE = "1587causalai/llama_factory"
HOST_CODE = "LLaMA-Factory 0.9.5"
LIKE_HOST = "test_stock_parity.py::test_losses_equal_the_stock_stage_step_by_step"


@dataclass(frozen=True)
class Check:
    """What a formula was compared with; docs/checked_against.md is made from it.

    Attributes:
        read: What ours was compared with, line by line: code at a commit or release, or a derivation.
        tests: Tests that would fail if ours changed, each as file::function in tests/.
        differs: Where implementations that were read compute something else; empty where none was seen to.
    """

    read: str
    tests: tuple[str, ...]
    differs: str = ""


class Names(Sequence[str]):
    """The names in a table as they are when they are asked for, so that a row that is added later counts."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table

    def __getitem__(self, place: Any) -> Any:
        return list(self._table)[place]

    def __len__(self) -> int:
        return len(self._table)


def key(default: Any, help: str, **facts: Any) -> Any:
    """Return the dataclass field of a recipe key; `ledpo_plugin.hparams` says which facts there are."""
    return field(default=default, metadata={"help": help, **facts})


def implementation(where: str, package: str) -> Any:
    """Return what a row names; its module is imported now.

    Args:
        where: "module:name"; a module that starts with a dot is one of `package`.
        package: dotted name of the package that implements the rows of the table.
    """
    module, _, name = where.partition(":")
    return getattr(import_module(module, package), name)


def either(names: Any) -> str:
    """Return names as in a sentence: `a, b or c`.

    Raises:
        ValueError: there are none.
    """
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last
