"""Decoding: settings, every row as if alone, beta-adaptive values, loading, keeping what is finished."""

import json
import math

import pytest
import torch
from conftest import history, train
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from eval_harness.generation import DecodingError, generate, load, read_decoding, score_outputs
from eval_harness.generation.decoding import adapted
from eval_harness.generation.warping import Filters, Penalty
from ledpo_plugin.cli import main
from ledpo_plugin.modeling.generate import GumbelNoise, row_seed
from ledpo_plugin.modeling.inference import beta_of_prompts

PROMPTS = [
    "river stone light",
    "answer",
    "silver market morning island window thunder candle garden winter bridge",
    "copper signal paper",
    "engine cloud",
]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A LEDPO run whose head tells prompts apart."""
    folder = tmp_path_factory.mktemp("generation") / "ledpo"
    recipe = tiny.recipe(folder, beta_mode="head", beta_lr_ratio=5, default_system="Be brief.", max_steps=4)
    return train(recipe)


@pytest.fixture(scope="module")
def loaded(run):
    return load(run)


# ---- settings


def test_settings_are_read_and_given_back():
    given = {"method": "sample", "temperature": 0.7, "top_p": 0.9, "adaptive": {"of": "temperature", "power": 2}}
    found = read_decoding(given)
    assert found.draws
    assert found.adaptive.low == pytest.approx(0.175)
    assert found.adaptive.high == pytest.approx(2.8)
    assert read_decoding(found.settings()) == found
    assert not read_decoding({}).draws


def test_a_file_of_settings(tmp_path):
    path = tmp_path / "decoding.yaml"
    path.write_text("method: sample\ntemperature: 5.0e-1\n")
    assert read_decoding(path).temperature == 0.5


def test_all_problems_of_settings_are_said_at_once():
    with pytest.raises(DecodingError) as error:
        read_decoding({"method": "greedy", "temperature": -1, "topp": 0.9, "num_beams": 2.5, "top_k": True})
    text = str(error.value)
    for part in ("topp", "Did you mean 'top_p'", "temperature: -1", "num_beams: 2.5", "top_k: True", "draws none"):
        assert part in text
    assert "nothing was generated" in text


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"method": "beam"}, "set num_beams: 4"),
        ({"method": "sample", "num_beams": 3}, "has no beams"),
        ({"method": "sampling"}, "Did you mean 'sample'"),
        ({"method": "sample", "adaptive": {"of": "temperature"}}, "needs a value to start from"),
        ({"method": "sample", "temperature": 1, "adaptive": {"of": "top_k"}}, "setting that can follow beta"),
        ({"method": "sample", "temperature": 1, "adaptive": {"of": "temperature", "high": 0.5}}, "have low <="),
        ({"method": "sample", "temperature": 1, "adaptive": {"of": "temperature", "centre": "x"}}, "beta0"),
        ({"method": "sample", "temperature": 1, "adaptive": {"of": "temperature", "spread": 0}}, "above 0"),
        ({"method": "sample", "temperature": 1, "adaptive": {"of": "temperature", "spread": 1, "power": 1}}, "remove"),
        ({"method": "sample", "top_p": float("nan")}, "top_p"),
        (["greedy"], "mapping"),
    ],
)
def test_settings_that_cannot_act_are_refused(given, part):
    with pytest.raises(DecodingError, match=part.replace("<", "<")):
        read_decoding(given)


# ---- beta-adaptive values


def _adaptive(of: str, value: float, **rule):
    return read_decoding({"method": "sample", "temperature": 1.0, of: value, "adaptive": {"of": of, **rule}})


def test_adapted_values_by_hand():
    # centre 0.1: temperature 0.8 (0.1 / beta)
    rule = _adaptive("temperature", 0.8, centre="beta0", low=0.1, high=8)
    assert adapted(rule, [0.1, 0.2, 0.05], 0.1) == pytest.approx([0.8, 0.4, 1.6])
    # the geometric mean of 0.1 and 0.4 is 0.2
    rule = _adaptive("temperature", 0.8, power=0.5, low=0.1, high=8)
    assert adapted(rule, [0.1, 0.4], 99) == pytest.approx([0.8 * 2**0.5, 0.8 / 2**0.5])
    # more truncation is a larger min_p, and a smaller top_p
    rule = _adaptive("min_p", 0.1, centre="beta0")
    assert adapted(rule, [0.2, 0.05], 0.1) == pytest.approx([0.2, 0.05])
    rule = _adaptive("top_p", 0.5, centre="beta0", low=0.3, high=0.9)
    assert adapted(rule, [0.1, 0.2, 0.01], 0.1) == pytest.approx([0.5, 0.3, 0.9])


def test_a_spread_is_the_deviation_of_the_logarithms():
    rule = _adaptive("temperature", 1.0, spread=0.5, low=0.01, high=50)
    found = adapted(rule, [0.1, 0.1001, 0.0999, 0.1], 0.1)
    logs = torch.tensor(found, dtype=torch.float64).log()
    assert float(logs.std(unbiased=False)) == pytest.approx(0.5, rel=1e-9)
    assert float(logs.mean()) == pytest.approx(0, abs=1e-9)
    assert found[2] > found[0] > found[1]
    assert adapted(rule, [0.1] * 3, 0.1) == [1.0] * 3


def test_power_0_is_the_fixed_setting_and_nonsense_is_refused():
    rule = _adaptive("temperature", 0.7, power=0)
    assert adapted(rule, [0.01, 5.0], 0.1) == [0.7, 0.7]
    with pytest.raises(ValueError, match="positive"):
        adapted(rule, [0.1, 0.0], 0.1)
    assert adapted(rule, [], 0.1) == []


# ---- rows of a batch


def test_each_row_is_filtered_as_transformers_filters_it_alone():
    torch.manual_seed(0)
    scores, ids = torch.randn(4, 50), torch.randint(0, 50, (4, 7))
    decoding = read_decoding(
        {"method": "sample", "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95}
    )
    plain = LogitsProcessorList(
        [
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.01),
            TypicalLogitsWarper(0.95),
        ]
    )
    assert torch.equal(Filters(decoding, None)(ids, scores.clone()), plain(ids, scores.clone()))
    own = _adaptive("temperature", 0.7)
    values = [0.3, 0.7, 1.0, 1.9]
    found = Filters(own, values)(ids, scores.clone())
    for row, value in enumerate(values):
        wanted = TemperatureLogitsWarper(value)(ids[row : row + 1], scores[row : row + 1].clone())
        assert torch.equal(found[row : row + 1], wanted)
    own = read_decoding({"method": "sample", "temperature": 1.0, "top_p": 0.5, "adaptive": {"of": "top_p"}})
    found = Filters(own, [0.2, 0.5, 0.9, 1.0])(ids, scores.clone())
    kept = found.isfinite().sum(1).tolist()
    assert kept[0] < kept[1] < kept[2] < kept[3] == 50


def test_padding_is_not_penalised():
    scores = torch.ones(2, 5)
    ids = torch.tensor([[0, 0, 3], [1, 2, 3]])  # the first row is padded twice with token 0
    found = Penalty(2.0, [2, 0])(ids, scores)
    assert found.tolist() == [[1, 1, 1, 0.5, 1], [1, 0.5, 0.5, 0.5, 1]]
    assert torch.equal(found[1:], RepetitionPenaltyLogitsProcessor(2.0)(ids[1:], scores[1:]))


def test_draws_have_the_distribution_of_the_softmax():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draw = GumbelNoise([row_seed(3, "x")])
    n = 20_000
    counts = torch.zeros(4)
    for _ in range(n):
        counts[draw(None, logits).argmax()] += 1
    wanted = logits.softmax(1)[0]
    apart = (counts / n - wanted).abs() / (wanted * (1 - wanted) / n).sqrt()
    assert float(apart.max()) < 4  # standard errors
    assert not torch.isneginf(GumbelNoise([1])(None, torch.full((1, 4), 0.0))).any()


# ---- a real run


def test_greedy_is_transformers_own(loaded):
    rows = generate(loaded, PROMPTS[:1], read_decoding({}), max_new_tokens=8)
    ids = loaded.encode(PROMPTS[:1])
    config = GenerationConfig(do_sample=False, max_new_tokens=8, eos_token_id=loaded.stops(), pad_token_id=0)
    wanted = loaded.model.generate(torch.tensor(ids), generation_config=config)[0, len(ids[0]) :].tolist()
    wanted = [token for token in wanted if token not in loaded.stops()]
    assert rows[0]["ids"] == wanted
    assert rows[0]["tokens"] == len(wanted)
    assert rows[0]["prompt_tokens"] == len(ids[0])


def test_the_recipe_s_system_prompt_is_in_the_prompt(loaded):
    text = loaded.tokenizer.decode(loaded.encode(["hello"])[0], skip_special_tokens=False)
    assert "Be brief." in text


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"method": "sample", "temperature": 0.9, "top_p": 0.95},
        {"method": "sample", "temperature": 0.9, "adaptive": {"of": "temperature", "spread": 0.5}},
        {"method": "beam", "num_beams": 3},
        {"method": "sample", "temperature": 1.0, "typical_p": 0.9, "repetition_penalty": 1.2},
    ],
    ids=["greedy", "nucleus", "adaptive", "beams", "typical"],
)
def test_an_answer_does_not_depend_on_its_batch(loaded, given):
    decoding = read_decoding(given)
    whole = generate(loaded, PROMPTS, decoding, seed=5, max_new_tokens=6, batch_size=5)
    small = generate(loaded, PROMPTS, decoding, seed=5, max_new_tokens=6, batch_size=2)
    assert [row["ids"] for row in whole] == [row["ids"] for row in small]
    assert [row["instruction"] for row in whole] == PROMPTS
    other = generate(loaded, PROMPTS, decoding, seed=6, max_new_tokens=6, batch_size=5)
    assert ([row["ids"] for row in other] != [row["ids"] for row in whole]) is decoding.draws


def test_temperatures_are_ordered_against_beta(loaded):
    decoding = read_decoding({"method": "sample", "temperature": 0.8, "adaptive": {"of": "temperature", "spread": 0.3}})
    rows = generate(loaded, PROMPTS, decoding, max_new_tokens=2)
    by_beta = sorted(rows, key=lambda row: row["beta"])
    temperatures = [row["temperature"] for row in by_beta]
    assert len({row["beta"] for row in rows}) == len(PROMPTS)
    assert temperatures == sorted(temperatures, reverse=True)
    fixed = read_decoding({"method": "sample", "temperature": 0.8})
    none = read_decoding({"method": "sample", "temperature": 0.8, "adaptive": {"of": "temperature", "power": 0}})
    own, other = (generate(loaded, PROMPTS, each, seed=2, max_new_tokens=6) for each in (fixed, none))
    assert [row["ids"] for row in own] == [row["ids"] for row in other]


def test_betas_are_those_of_ledpo_beta_and_of_training(loaded, run):
    wanted = [row["beta"] for row in beta_of_prompts(run, PROMPTS)]
    assert loaded.betas(PROMPTS, batch_size=2) == pytest.approx(wanted, rel=1e-5)
    assert loaded.per_prompt


def test_a_fixed_beta_has_nothing_to_adapt_to(tiny, tmp_path):
    found = load(train(tiny.recipe(tmp_path / "dpo", beta_mode="fixed", pref_beta=0.3, max_steps=1)))
    assert not found.per_prompt
    assert found.betas(PROMPTS[:2]) == pytest.approx([0.3, 0.3])
    decoding = read_decoding({"method": "sample", "temperature": 0.8, "adaptive": {"of": "temperature"}})
    with pytest.raises(ValueError, match="Name a run of a learned head"):
        generate(found, PROMPTS, decoding)


def test_scores_are_those_of_the_trainer(loaded, run, tiny):
    """The mean margin over held-out pairs, of log-ratios and of rewards, is what evaluation in training logs."""
    recipe = json.loads((run / "ledpo_run.json").read_text())["recipe"]
    logged = train(
        recipe
        | {
            "do_train": False,
            "do_eval": True,
            "eval_dataset": "heldout",
            "output_dir": str(run.parent / "evaluated"),
            "adapter_name_or_path": str(run),
            "create_new_adapter": False,
            "beta_head_path": str(run),
        }
    )
    metrics = json.loads((logged / "eval_results.json").read_text())
    pairs = json.loads((tiny.data / "heldout.json").read_text())
    prompts = [pair["conversations"][0]["value"] for pair in pairs]
    sides = {}
    for side in ("chosen", "rejected"):
        messages = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": pair[side]["value"]}]
            for prompt, pair in zip(prompts, pairs, strict=True)
        ]
        ids = [loaded.template.encode_oneturn(loaded.tokenizer, each)[1] for each in messages]
        sides[side] = score_outputs(loaded, prompts, ids, batch_size=4)
    ratios = [
        [ours - theirs for ours, theirs in zip(own["logps"], own["reference_logps"], strict=True)]
        for own in (sides["chosen"], sides["rejected"])
    ]
    margins = [chosen - rejected for chosen, rejected in zip(*ratios, strict=True)]
    rewards = [c - r for c, r in zip(sides["chosen"]["rewards"], sides["rejected"]["rewards"], strict=True)]
    assert sum(margins) / len(margins) == pytest.approx(metrics["eval_margins/beta_free"], abs=1e-4)
    assert sum(rewards) / len(rewards) == pytest.approx(metrics["eval_rewards/margins"], abs=1e-4)


def test_entropy_and_likelihood_by_hand(loaded):
    ids, answer = loaded.encode(["engine"])[0], [65, 66, 67]
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids + answer])).logits[0].double()
    logp = logits.log_softmax(1)[len(ids) - 1 : -1]
    found = score_outputs(loaded, ["engine", "answer"], [answer, []])
    assert found["logps"][0] == pytest.approx(float(logp[range(3), answer].sum()), abs=1e-4)
    assert found["entropy"][0] == pytest.approx(float(-(logp.exp() * logp).sum(1).mean()), abs=1e-4)
    assert found["lengths"] == [3, 0]
    assert found["logps"][1] is found["rewards"][1] is None


def test_what_is_finished_is_kept_and_a_torn_batch_is_made_again(loaded, tmp_path, monkeypatch):
    from eval_harness.generation import generating

    decoding = read_decoding({"method": "sample", "temperature": 1.0})
    arguments = {"seed": 4, "max_new_tokens": 5, "batch_size": 2}
    wanted = generate(loaded, PROMPTS, decoding, **arguments)
    calls = []
    real = generating.BACKENDS["transformers"]

    def killed_at_the_second(*args):
        calls.append(args[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setitem(generating.BACKENDS, "transformers", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        generate(loaded, PROMPTS, decoding, folder=tmp_path, **arguments)
    found = generate(loaded, PROMPTS, decoding, folder=tmp_path, **arguments)
    assert len(calls) == 4  # one finished, one killed, and the two that were left
    same = [{key: value for key, value in row.items() if key != "seconds"} for row in found]
    assert same == [{key: value for key, value in row.items() if key != "seconds"} for row in wanted]
    first = tmp_path / "00000.json"
    first.write_text(first.read_text()[:40])
    assert [row["ids"] for row in generate(loaded, PROMPTS, decoding, folder=tmp_path, **arguments)] == [
        row["ids"] for row in wanted
    ]
    assert len(calls) == 5
    other = generate(loaded, PROMPTS, decoding, folder=tmp_path, **arguments | {"seed": 9})
    assert [row["ids"] for row in other] != [row["ids"] for row in wanted]  # of another call, nothing is taken


def test_loading_says_what_is_missing(tiny, run, tmp_path):
    with pytest.raises(ValueError, match="a template was not given"):
        load(tiny.model)
    with pytest.raises(ValueError, match="has its own template"):
        load(run, template="chatml")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        load(tiny.model, template="chatml", adapter=str(tmp_path))
    plain = load(tiny.model, template="chatml")
    with pytest.raises(ValueError, match="no beta head"):
        plain.betas(PROMPTS)
    assert "rewards" not in score_outputs(plain, ["engine"], [[65]])


def test_a_changed_weight_file_is_another_model(run, tmp_path):
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    before = load(copy).identity
    assert load(copy).identity == before
    path = copy / "adapter_model.safetensors"
    text = bytearray(path.read_bytes())
    text[-1] ^= 1
    path.write_bytes(bytes(text))
    assert load(copy).identity != before


def test_whole_numbers_in_yaml_are_numbers(loaded):
    decoding = read_decoding({"method": "sample", "temperature": 1, "top_k": 3.0, "repetition_penalty": 1})
    assert generate(loaded, PROMPTS[:1], decoding, max_new_tokens=2)
    with pytest.raises(DecodingError, match="typical_p"):
        read_decoding({"method": "sample", "typical_p": 1.0})
    with pytest.raises(ValueError, match="batch_size is 0"):
        generate(loaded, PROMPTS[:1], decoding, batch_size=0)
    with pytest.raises(KeyError, match="Did you mean 'transformers'"):
        generate(loaded, PROMPTS[:1], decoding, backend="transformer")


def test_a_beta_that_depends_on_answers_gives_no_rewards(tiny, tmp_path):
    found = load(train(tiny.recipe(tmp_path / "run", beta_mode="beta_dpo", max_steps=1)))
    assert not found.has_beta
    scores = score_outputs(found, ["engine"], [[65]])
    assert "rewards" not in scores
    assert scores["reference_logps"][0] is not None


def test_vllm_is_asked_for_by_name_only(loaded):
    with pytest.raises(RuntimeError, match="pip install vllm"):
        generate(loaded, PROMPTS[:1], read_decoding({}), backend="vllm")


# ---- the command


def test_the_command_writes_outputs_and_where_they_are_from(run, tmp_path, capsys):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.json"
    prompts.write_text("\n".join(PROMPTS))
    arguments = ["eval", "generate", str(run), "--prompts", str(prompts), "--output", str(output)]
    assert main([*arguments, "--temperature", "0.9", "--max-new-tokens", "4", "--name", "ours"]) == 0
    rows = json.loads(output.read_text())
    assert [row["instruction"] for row in rows] == PROMPTS
    assert {row["generator"] for row in rows} == {"ours"}
    about = json.loads(output.with_name("out.json.provenance.json").read_text())
    assert about["decoding"] == {"method": "sample", "temperature": 0.9}
    assert about["n"] == len(PROMPTS)
    assert about["tokens"] == sum(row["tokens"] for row in rows)
    assert about["versions"]["transformers"]
    assert "5 answers of ours" in capsys.readouterr().out


def test_the_command_reads_a_data_set(run, tiny, tmp_path):
    output = tmp_path / "out.json"
    arguments = ["eval", "generate", str(run), "--dataset", "heldout", "--dataset-dir", str(tiny.data)]
    assert main([*arguments, "--output", str(output), "--limit", "3", "--max-new-tokens", "2"]) == 0
    assert len(json.loads(output.read_text())) == 3


@pytest.mark.parametrize(
    ("text", "name", "part"),
    [
        ("", "p.txt", "holds no prompt"),
        ("a\nb\na\n", "p.txt", "it is prompt 1 again"),
        ('["a", "  "]', "p.json", "it is empty"),
        ('["a", ', "p.json", "malformed"),
        ('[{"nothing": 1}]', "p.json", "holds no prompt"),
    ],
)
def test_bad_prompts_are_refused_before_a_model_loads(tmp_path, capsys, text, name, part):
    path = tmp_path / name
    path.write_text(text)
    arguments = ["eval", "generate", "no/such/model", "--prompts", str(path), "--output", str(tmp_path / "o.json")]
    assert main(arguments) == 1
    assert part in capsys.readouterr().err


def test_prompts_of_files_in_other_shapes(tmp_path):
    from eval_harness.generation.prompts import prompts_of_file

    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a\u2028b"}\n{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n'
    )
    (tmp_path / "p.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert prompts_of_file(tmp_path / "p.jsonl") == ["a\u2028b", "u"]
    assert prompts_of_file(tmp_path / "p.txt") == ["one", "two"]


def test_greedy_wins_over_no_flag_and_flags_must_fit(tmp_path, capsys):
    path = tmp_path / "p.txt"
    path.write_text("a\n")
    arguments = ["eval", "generate", "no/such/model", "--prompts", str(path), "--output", str(tmp_path / "o.json")]
    assert main([*arguments, "--num-beams", "2", "--top-p", "0.5"]) == 1
    assert "draws none" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_model_knows_the_capital_of_france():
    found = load(".ledpo/models/SmolLM2-135M-Instruct", template="smollm2")
    (row,) = generate(found, ["What is the capital of France?"], read_decoding({}), max_new_tokens=20)
    assert "Paris" in row["output"]
    assert row["ended"]
    assert math.isfinite(score_outputs(found, [row["instruction"]], [row["ids"]])["logps"][0])


def test_training_was_real(run):
    assert len([row for row in history(run) if "loss" in row]) == 4
