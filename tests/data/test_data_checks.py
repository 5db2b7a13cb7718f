"""Rows that cannot train, by hand."""

import pytest
from datasets import Dataset, IterableDataset

from ledpo_plugin.data.unusable import NoUsableData, drop_unusable, pair_fault, unpaired_fault

GOOD = {
    "chosen_input_ids": [1, 2, 3],
    "chosen_labels": [-100, 2, 3],
    "rejected_input_ids": [1, 4],
    "rejected_labels": [-100, 4],
}
EMPTY = GOOD | {"chosen_labels": [-100, -100, -100]}
NO_PROMPT = GOOD | {"rejected_labels": [1, 4]}
SAME = GOOD | {"rejected_input_ids": [1, 2, 3], "rejected_labels": [-100, 2, 3]}


@pytest.mark.parametrize(
    "row,fault",
    [(GOOD, None), (EMPTY, "empty response"), (NO_PROMPT, "no prompt token"), (SAME, "chosen and rejected identical")],
)
def test_faults_of_pairs(row, fault):
    found = pair_fault(row)
    assert (found is None) if fault is None else found.startswith(fault)


def test_faults_of_single_answers():
    good = {"labels": [-100, 2], "kl_labels": [-100, 3]}
    assert unpaired_fault(good) is None
    assert unpaired_fault(good | {"kl_labels": [-100, -100]}) == "empty response"
    assert unpaired_fault(good | {"labels": [1, 2]}).startswith("no prompt token")


def test_what_is_dropped_is_counted():
    said = []
    kept = drop_unusable(Dataset.from_list([GOOD, EMPTY, SAME, SAME, GOOD]), "train", "pairs", said.append)
    assert [row["chosen_input_ids"] for row in kept] == [[1, 2, 3]] * 2
    assert said == [
        "Dropped 3 of 5 rows of the train dataset: 2 chosen and rejected identical (within cutoff_len), "
        "1 empty response."
    ]


def test_nothing_is_said_of_good_data_and_several_sets_are_each_checked():
    said = []
    sets = {"a": Dataset.from_list([GOOD]), "b": Dataset.from_list([GOOD, EMPTY])}
    kept = drop_unusable(sets, "eval", "pairs", said.append)
    assert [len(part) for part in kept.values()] == [1, 1]
    assert len(said) == 1
    assert "the b dataset" in said[0]


def test_nothing_left_is_an_error_with_the_way_out():
    with pytest.raises(NoUsableData, match=r"No row of the train dataset can train: of 2, 2 empty response. Check"):
        drop_unusable(Dataset.from_list([EMPTY, EMPTY]), "train", "pairs", print)


def test_streamed_rows_are_dropped_as_they_come():
    stream = IterableDataset.from_generator(lambda: iter([GOOD, EMPTY, GOOD]))
    assert len(list(drop_unusable(stream, "train", "pairs", print))) == 2
