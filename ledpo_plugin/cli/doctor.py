"""`ledpo doctor`: what is installed, what is hooked, and which known bugs this combination of the host has."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import requires, version
from types import SimpleNamespace

from packaging.requirements import Requirement

from ledpo_plugin import readiness
from ledpo_plugin.autoload import armed
from ledpo_plugin.common.run_record import package_versions
from ledpo_plugin.host import contract


@dataclass(frozen=True)
class HostBug:
    """A bug of the stock host, how it is recognised here, and what the plugin does about it."""

    title: str
    present: Callable[[], bool]
    remedy: str


def _losses_ignored() -> bool:
    """pref_loss reaches trl's dpo_loss only if trl reads self.loss_type, or the host passes loss_type."""
    trainer = importlib.import_module("llamafactory.train.dpo.trainer")
    takes_argument = "loss_type" in inspect.signature(trainer.DPOTrainer.dpo_loss).parameters
    source = inspect.getsource(trainer.CustomDPOTrainer.compute_preference_loss)
    return takes_argument and not re.search(r"\bloss_type\s*=[^=]", source)


def _ppo_refused() -> bool:
    source = inspect.getsource(importlib.import_module("llamafactory.train.ppo.trainer"))
    wanted = re.search(r'"(trl[<>=][^"]*)"', source)
    return wanted is not None and version("trl") not in Requirement(wanted.group(1)).specifier


def _json_recipes_crash() -> bool:
    return "json.load(Path" in inspect.getsource(importlib.import_module(contract.PARSER).read_args).replace(" ", "")


def _unchecked_trl() -> bool:
    needed = [Requirement(line) for line in requires("llamafactory") or []]
    return any(item.name == "trl" and version("trl") not in item.specifier for item in needed)


def _tokens_read_twice() -> bool:
    kind = contract.host_api().ModelArguments
    try:
        kind.copyfrom(kind(model_name_or_path="any", add_tokens="any"))
    except AttributeError:
        return True
    return False


def _long_context_refused() -> bool:
    from transformers import LlamaConfig

    rope = importlib.import_module("llamafactory.model.model_utils.rope")
    wanted = SimpleNamespace(rope_scaling="linear", model_max_length=32)
    try:
        rope.configure_rope(LlamaConfig(max_position_embeddings=16), wanted)
    except Exception as error:  # its class is huggingface_hub's, and not public
        return "max_position_embeddings" in str(error)
    return False


HOST_BUGS = (
    HostBug(
        "stage dpo with pref_loss hinge, ipo or kto_pair trains plain sigmoid DPO",
        _losses_ignored,
        "stage ledpo with the same pref_loss trains what the name says",
    ),
    HostBug(
        "stage ppo stops with an ImportError (it asks for an older trl)", _ppo_refused, "stage ledpo_ppo trains PPO"
    ),
    HostBug(".json recipes crash on reading", _json_recipes_crash, "write recipes as YAML"),
    HostBug(
        "new tokens (add_tokens, add_special_tokens) with a reference that is loaded stop the run",
        _tokens_read_twice,
        "save the model with its new tokens first, or use LoRA",
    ),
    HostBug(
        "rope_scaling beyond the model's own context stops the run",
        _long_context_refused,
        "write rope_parameters into the model's config.json",
    ),
    HostBug(
        "the installed trl is outside what LLaMA-Factory asks for", _unchecked_trl, "pip install a trl in its range"
    ),
)


def _hooked_in_a_new_process() -> dict:
    """Import the host in a fresh interpreter, as `llamafactory-cli` does, and ask there what is patched."""
    code = (
        "import json, llamafactory.train.tuner\n"
        "from ledpo_plugin.autoload.patches import installed_patches\n"
        "print('LEDPO' + json.dumps(installed_patches()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("LEDPO"):
            return {"patched": json.loads(line.removeprefix("LEDPO"))}
    return {"patched": [], "error": done.stderr.strip().splitlines()[-1:] or ["no output"]}


def _found(bug: HostBug) -> dict:
    """Return what is said of a bug; whether it is present is None on a host where that cannot be looked up."""
    try:
        present = bug.present()
    except Exception:  # of a host that is not the one these were seen in, anything may be missing
        present = None
    return {"bug": bug.title, "present": present, "with_ledpo": bug.remedy}


def examine() -> dict:
    """Return the state of the installation: versions, hooks, mismatches and the host's known bugs found here.

    What a run imports is imported, so that a module which fails there is named here.
    """
    report: dict = {
        "versions": package_versions(),
        "tested": str(contract.TESTED),
        "switched_off": os.environ.get("LEDPO_PLUGIN_DISABLE", "") not in ("", "0"),
        "watching": armed(),
    }
    if contract.host_version() is None:
        report["mismatches"] = readiness.mismatches()
        return report
    report |= _hooked_in_a_new_process()
    report["mismatches"] = readiness.mismatches()
    report["webui_mismatches"] = contract.webui_mismatches()
    report["host_bugs"] = [_found(bug) for bug in HOST_BUGS]
    return report


def healthy(report: dict) -> bool:
    """Return whether the plugin's stages will run here."""
    return not report["mismatches"] and bool(report.get("patched")) and not report["switched_off"]


def describe(report: dict) -> str:
    """Return the report as text."""
    lines = ["Versions"]
    lines += [f"  {name:14} {found or 'not installed'}" for name, found in report["versions"].items()]
    lines += [f"  tested with llamafactory {report['tested']}", "Hook"]
    if report["switched_off"]:
        lines.append("  switched off: LEDPO_PLUGIN_DISABLE is set")
    lines.append(f"  watching for LLaMA-Factory in new processes: {'yes' if report['watching'] else 'NO'}")
    lines += [f"  patched: {name}" for name in report.get("patched", [])] or ["  patched: nothing"]
    lines += [f"  {line}" for line in report.get("error", [])]
    if report["mismatches"]:
        lines += ["The LEDPO stages are refused here:"] + [f"  - {line}" for line in report["mismatches"]]
    if report.get("webui_mismatches"):
        lines += ["The web UI does not list the LEDPO stages:"]
        lines += [f"  - {line}" for line in report["webui_mismatches"]]
    if "host_bugs" in report:
        lines.append("Known bugs of the host")
        for item in report["host_bugs"]:
            known = {True: f"PRESENT  ({item['with_ledpo']})", False: "absent", None: "cannot be looked up here"}
            lines.append(f"  {item['bug']}: {known[item['present']]}")
    lines.append("The LEDPO stages will run." if healthy(report) else "The LEDPO stages will NOT run.")
    return "\n".join(lines)
