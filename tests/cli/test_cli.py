"""The `ledpo` command, on runs made here."""

import json

import pytest
from conftest import series, train, write_recipe

from ledpo_plugin.cli import main
from ledpo_plugin.modeling.prompt_files import read_prompts

PROMPTS = ["river stone", "light garden winter bridge", "what is the answer to this question"]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run whose head has learned something."""
    folder = tmp_path_factory.mktemp("run")
    return train(
        tiny.recipe(
            folder / "run", beta_mode="head", max_steps=8, save_strategy="steps", save_steps=4, beta_penalty=0.0
        )
    )


def _rows(capsys, *arguments: str) -> list[dict]:
    capsys.readouterr()
    assert main(["beta", *arguments, "--jsonl"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_beta_of_prompts_from_every_kind_of_file(run, tmp_path, capsys):
    files = {
        "p.txt": "\n".join(PROMPTS),
        "p.json": json.dumps(PROMPTS),
        "records.json": json.dumps([{"instruction": p, "input": "", "output": "x"} for p in PROMPTS]),
        "p.jsonl": "\n".join(json.dumps({"conversations": [{"from": "human", "value": p}]}) for p in PROMPTS),
    }
    found = []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        found.append([row["beta"] for row in _rows(capsys, str(run), "--prompts", str(tmp_path / name))])
    assert all(betas == pytest.approx(found[0], rel=1e-5) for betas in found)
    assert len(set(found[0])) == 3
    assert all(0.01 < beta < 1.0 for beta in found[0])


def test_beta_of_a_prompt_is_what_training_used_for_it(tiny, run, tmp_path, capsys):
    """The prompts of the held-out pairs, through the command and through the trainer's own evaluation."""
    recipe = tiny.recipe(
        tmp_path / "eval",
        beta_mode="head",
        do_train=False,
        do_eval=True,
        dataset=None,
        eval_dataset="heldout",
        adapter_name_or_path=str(run),
        beta_head_path=str(run),
    )
    logged = json.loads((train(recipe) / "eval_results.json").read_text())
    betas = [row["beta"] for row in _rows(capsys, str(run), "--prompts", str(tiny.data / "heldout.json"))]
    assert min(betas) == pytest.approx(logged["eval_beta/min"], rel=1e-4)
    assert max(betas) == pytest.approx(logged["eval_beta/max"], rel=1e-4)
    assert sum(betas) / len(betas) == pytest.approx(logged["eval_beta/mean"], rel=1e-4)


def test_a_checkpoint_is_a_run_too_and_batches_do_not_matter(run, capsys):
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    whole = _rows(capsys, str(run / "checkpoint-8"), *prompts)
    single = _rows(capsys, str(run), *prompts, "--batch-size", "1")
    assert [row["beta"] for row in whole] == pytest.approx([row["beta"] for row in single], rel=1e-4)
    first = _rows(capsys, str(run / "checkpoint-4"), *prompts)
    assert [row["beta"] for row in first] != [row["beta"] for row in whole]


@pytest.mark.parametrize("mode,source", [("ppl", "reference"), ("head", "policy"), ("global", None)])
def test_other_modes_and_sources(tiny, tmp_path, capsys, mode, source):
    run = train(tiny.recipe(tmp_path / "run", beta_mode=mode, beta_head_source=source, max_steps=4))
    rows = _rows(capsys, str(run), "--prompt", PROMPTS[0], "--prompt", PROMPTS[1])
    assert (rows[0]["beta"] == rows[1]["beta"]) == (mode == "global")


def test_the_table_shows_prompts_as_text_and_the_highest_beta_first(run, capsys):
    assert main(["beta", str(run), "--prompt", "river\x1b[31m red", "--prompt", "light"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("   ")]
    assert "\x1b" not in "".join(lines)
    values = [float(line.split()[0]) for line in lines[1:]]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["beta", "/nowhere", "--prompt", "a"], "Point to the folder of a run"),
        (["beta", "{run}"], "Give prompts"),
        (["beta", "{run}", "--prompts", "/no/file.txt"], "No such file"),
    ],
)
def test_mistakes_are_one_sentence(run, capsys, arguments, message):
    assert main([argument.replace("{run}", str(run)) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_beta_of_a_batch_rule_is_refused_with_the_reason(tiny, tmp_path, capsys):
    run = train(tiny.recipe(tmp_path / "run", beta_mode="beta_dpo", max_steps=2))
    assert main(["beta", str(run), "--prompt", "a"]) == 1
    assert "not from the prompt alone" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[]", '[{"other": 1}]', "[3]"])
def test_files_without_prompts_are_refused(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="prompt"):
        read_prompts(path)


def test_validate(tiny, tmp_path, capsys):
    good = write_recipe(tmp_path / "good.yaml", tiny.recipe(tmp_path / "a"))
    bad = write_recipe(tmp_path / "bad.yaml", tiny.recipe(tmp_path / "b", beta_mode="haed", pref_beta=0))
    stock = write_recipe(tmp_path / "stock.yaml", tiny.recipe(tmp_path / "c", stage="dpo"))
    assert main(["validate", good, stock]) == 0
    assert main(["validate", good, bad]) == 1
    text = capsys.readouterr().out
    assert f"{good}: good" in text
    assert "haed" in text
    assert "pref_beta" in text


def test_the_recipes_of_the_project_are_valid_on_a_machine_that_has_what_they_need(capsys):
    from pathlib import Path

    main(["validate", "--no-files", *map(str, (Path(__file__).parents[2] / "yaml_recipes").rglob("*.yaml"))])
    text = capsys.readouterr().out
    assert ": good" in text
    assert [line for line in text.splitlines() if "Fix:" in line] == []


def test_cache_fills_what_training_then_uses(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    recipe = tiny.recipe(tmp_path / "run", beta_mode="head", eval_dataset="heldout", max_steps=12)
    path = write_recipe(tmp_path / "r.yaml", recipe)
    assert main(["cache", path, "per_device_eval_batch_size=3"]) == 0
    assert "48 of 48 pairs added" in capsys.readouterr().out
    assert main(["cache", path]) == 0
    assert "0 of 48 pairs added" in capsys.readouterr().out
    passes = []
    monkeypatch.setattr("ledpo_plugin.training.passes.to_values", lambda *a: passes.append(1))
    cached = train(recipe)
    assert passes == []
    anew = train(recipe | {"output_dir": str(tmp_path / "anew"), "disable_reference_cache": True})
    assert series(cached, "loss") == pytest.approx(series(anew, "loss"), rel=1e-4)


def test_cache_says_what_cannot_be_cached(tiny, tmp_path, capsys):
    path = write_recipe(tmp_path / "r.yaml", tiny.recipe(tmp_path / "run", beta_mode="epsilon_dpo"))
    assert main(["cache", path]) == 1
    assert "cannot be cached" in capsys.readouterr().err
