"""The training stages the plugin adds: a name, the loss behind it and the data it trains on."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .common.lookup import by_name
from .hparams import ROLLOUT_STAGES


@dataclass(frozen=True)
class Stage:
    """One row of the table of stages."""

    name: str
    title: str  # for people
    default_loss: str
    any_loss: bool  # True: `pref_loss` chooses among the pairwise losses; False: the stage is its loss
    default_beta_mode: str  # where the loss admits it, else "fixed"
    data: Literal["pairs", "unpaired", "prompts"]

    @property
    def rollouts(self) -> bool:
        """Whether it trains, also or only, on answers that the policy has just given."""
        return self.name in ROLLOUT_STAGES

    @property
    def loss_data(self) -> Literal["pairs", "unpaired"]:
        """The data of its loss: where the data is prompts, the loss is of pairs made of their answers."""
        return "pairs" if self.data == "prompts" else self.data


STAGES: Mapping[str, Stage] = MappingProxyType(
    by_name(
        Stage("ledpo", "LEDPO", "sigmoid", True, "head", "pairs"),
        Stage("ledpo_ipo", "LEDPO IPO", "ipo", False, "fixed", "pairs"),
        Stage("ledpo_hinge", "LEDPO Hinge", "hinge", False, "fixed", "pairs"),
        Stage("ledpo_orpo", "LEDPO ORPO", "orpo", False, "fixed", "pairs"),
        Stage("ledpo_simpo", "LEDPO SimPO", "simpo", False, "fixed", "pairs"),
        Stage("ledpo_kto", "LEDPO KTO", "kto", False, "fixed", "unpaired"),
        Stage("ledpo_ppo", "LEDPO PPO", "sigmoid", False, "fixed", "prompts"),
        Stage("ledpo_alternate", "LEDPO and PPO", "sigmoid", True, "head", "pairs"),
    )
)
