"""A trained LEDPO run as a source of rewards: what its folder says, and why it may not serve. Loads no weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledpo_plugin.common.run_record import RECORD, read_record
from ledpo_plugin.facts import BETAS, LOSSES, Loss
from ledpo_plugin.host.arguments import DRAWN
from ledpo_plugin.hparams import FROZEN
from ledpo_plugin.modeling.adapters import CONFIG, WEIGHTS, below, names_of
from ledpo_plugin.modeling.head_file import HeadFileError, load_config
from ledpo_plugin.reference.cache import default_folder, files_hash
from ledpo_plugin.stages import STAGES


class RunProblem(ValueError):
    """A folder that is no run with an implicit reward; `fix` says what to do."""

    def __init__(self, why: str, fix: str):
        super().__init__(why)
        self.why, self.fix = why, fix


@dataclass(frozen=True)
class Run:
    """What a run's folder says of its reward beta(x) * (log pi(y|x) - log pi_ref(y|x))."""

    folder: Path
    base: str  # model_name_or_path
    names: list[str]  # adapters that its recipe named
    below: list[str]  # of these, those that are merged into the base, so that its own adapter stands on them
    has_adapter: bool  # its weights are an adapter, not a whole model
    frozen: bool  # its reference holds all of these adapters, the last one as it was when training started
    ref_model: str | None
    ref_adapters: str | None
    loss: Loss
    head: dict[str, Any]  # configuration of its beta head


def read_run(where: str) -> Run:
    """Return what the folder of a run, or one of its checkpoints, says.

    Raises:
        RunProblem: it is no run, or one without an implicit reward of the answer alone.
    """
    folder = Path(where)
    need = "name the output_dir of a run of a LEDPO stage"
    if not folder.is_dir():
        raise RunProblem("there is no such folder", need)
    try:
        record = read_record(folder)
        recipe, base, name = record["recipe"], record["model_name_or_path"], record["pref_loss"]
    except FileNotFoundError:
        raise RunProblem(f"the folder holds no {RECORD}: it is no LEDPO run", need) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunProblem(f"its {RECORD} cannot be read ({error})", need) from None
    stage = STAGES.get(record.get("stage"))
    if stage is not None and stage.data == "prompts":
        why = f"stage {stage.name} learned from no preferences, so that it has no reward of its own"
        raise RunProblem(why, "name the reward that it was trained on, or a run of stage ledpo")
    loss = LOSSES.get(name)
    if loss is None or not loss.needs_reference:
        why = f"its loss {name} compares with no reference, so that it has no implicit reward"
        raise RunProblem(why, "name a run whose loss has a reference, such as sigmoid")
    if recipe.get("pissa_init"):
        why = "it was trained with pissa_init: true, so that its adapter does not fit a base that is loaded anew"
        raise RunProblem(why, "train the run anew without pissa_init")
    drawn = [key for key in DRAWN if recipe.get(key)]
    if drawn:
        why = f"it was trained with {drawn[0]}, so that a base that is loaded anew lacks the weights it started from"
        raise RunProblem(why, "save the model with its new tokens first, and train the run on that")
    try:
        head = load_config(folder)
    except HeadFileError as error:
        raise RunProblem(f"its beta cannot be read ({error})", need) from None
    mode = head["beta_mode"]
    if mode not in BETAS or not BETAS[mode].before_answers:
        why = f"its beta_mode {mode} decides beta from pairs of answers, so that one answer has no reward"
        raise RunProblem(why, "name a run with beta_mode head, ppl, global or fixed")
    has_adapter = (folder / CONFIG).is_file()
    weights = folder / WEIGHTS if has_adapter else None
    if weights is not None and not weights.is_file():
        raise RunProblem(f"it holds no {WEIGHTS}: adapters are read from safetensors only", need)
    if weights is None and not (folder / "config.json").is_file():
        raise RunProblem("it holds neither an adapter nor a model (training has not ended?)", need)
    adapters = recipe.get("adapter_name_or_path")
    return Run(
        folder=folder,
        base=base,
        names=names_of(adapters),
        below=below(adapters, bool(recipe.get("create_new_adapter"))),
        has_adapter=has_adapter,
        frozen=recipe.get("reference_adapter") == FROZEN,
        ref_model=record.get("ref_model"),
        ref_adapters=recipe.get("ref_model_adapters"),
        loss=loss,
        head=head,
    )


def same_model(one: str, other: str) -> bool:
    """Whether two names of models mean the same weights and tokenizer: one folder, one hub name, or equal files."""
    if one == other:
        return True
    first, second = Path(one), Path(other)
    if not (first.is_dir() and second.is_dir()):
        return False
    return first.samefile(second) or files_hash(one, default_folder()) == files_hash(other, default_folder())


def same_models(some: list[str], others: list[str]) -> bool:
    """Whether two lists name the same models or adapters in the same order."""
    return len(some) == len(others) and all(map(same_model, some, others))
