"""Judgements from every format, and what of a file cannot be used; counts on the real files where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quilate.data.preferences import JudgedPrompt, Limits, Pair, Preferences, read_preferences, split_transcripts
from quilate.data.tables import SourceConfig, read_table
from quilate.errors import DataError


def read(*rows: dict[str, Any], **limits: Any) -> Preferences:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return read_preferences(rows, columns, Limits(**limits))


def ordered(judged: JudgedPrompt) -> set[tuple[str, str]]:
    """The pairs as texts."""
    return {(judged.completions[pair.better], judged.completions[pair.worse]) for pair in judged.pairs}


QUESTION = ({"role": "user", "content": "¿Qué es la fiebre?"},)


def test_pairs() -> None:
    found = read(
        {"prompt": "¿Qué es la fiebre?", "chosen": "Un síntoma.", "rejected": "Un año.", "group": "p1"},
        {"prompt": list(QUESTION), "chosen": [{"role": "assistant", "content": "Calor."}], "rejected": "Un año.",
         "group": "p1"},
        {"prompt": "¿Y la tos?", "chosen": "igual", "rejected": "igual", "group": "p2"},
        {"prompt": "¿Y la tos?", "chosen": " ", "rejected": "sí", "group": "p2"},
        {"prompt": "  ", "chosen": "no", "rejected": "sí", "group": "p2"},
        {"prompt": None, "chosen": "no", "rejected": "sí", "group": "p2"},
    )  # fmt: skip
    assert found.format == "pairs"
    [judged] = found.prompts  # one prompt however many rows it has: its pairs must be trained on together
    assert judged.prompt == QUESTION and judged.group == "p1" and judged.id == "row 1"
    assert ordered(judged) == {("Un síntoma.", "Un año."), ("Calor.", "Un año.")}
    assert found.counts == {
        "both completions are the same": 1,
        "a completion is empty": 1,
        "a message of the prompt is empty": 1,
        "a prompt is neither a text nor a list of messages": 1,
    }


def test_whole_conversations_share_all_but_their_last_message() -> None:
    chosen = [*QUESTION, {"role": "assistant", "content": "Un síntoma."}]
    rejected = [*QUESTION, {"role": "assistant", "content": "Nada."}]
    other = [{"role": "user", "content": "otra"}, rejected[1]]
    found = read({"chosen": chosen, "rejected": rejected}, {"chosen": chosen, "rejected": other})
    assert found.prompts[0].prompt == QUESTION
    assert found.counts == {"the conversations differ before their last message": 1}


def test_a_pair_preferred_both_ways_says_nothing() -> None:
    rows = [{"prompt": "p", "chosen": a, "rejected": b} for a, b in ("AB", "BA", "AC", "AC")]
    found = read(*rows)
    assert ordered(found.prompts[0]) == {("A", "C")}
    assert found.counts == {"pairs preferred both ways": 2, "judgements given before": 1}


def test_rankings_give_all_pairs_but_ties_and_missing_ranks() -> None:
    found = read(
        {"prompt": "p", "completions": ["a", "b", "c", "d", "e"], "ranks": [2, 0, 1, 1, None]},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [0]},
        {"prompt": "r", "completions": ["a", "b"], "ranks": [None, 1]},
        {"prompt": "s", "completions": ["a", "b"], "ranks": [0.0, float("nan")]},  # as Parquet has a missing number
    )
    [judged] = found.prompts
    assert ordered(judged) == {("b", "c"), ("b", "d"), ("b", "a"), ("c", "a"), ("d", "a")}
    strengths = {judged.completions[p.worse]: p.strength for p in judged.pairs if judged.completions[p.better] == "b"}
    assert strengths == {"c": 1.0, "d": 1.0, "a": 2.0}
    assert found.counts == {
        "completions without a rank": 3,
        "tied pairs": 1,
        "completions and ranks are not lists of one length": 1,
        "fewer than two completions have a rank": 2,
    }
    labels = dict(zip(judged.completions, judged.desirable(), strict=True))
    assert labels == {"a": False, "b": True, "c": None, "d": None}  # c and d won one and lost one


def test_labels_and_rewards() -> None:
    labelled = read(
        {"prompt": "p", "completion": "sí", "label": True},
        {"prompt": "p", "completion": "no", "label": False},
        {"prompt": "p", "completion": "quizá", "label": True},
        {"prompt": "p", "completion": "quizá", "label": False},
        {"prompt": "p", "completion": "nunca", "label": "mala"},
    )
    assert labelled.prompts[0].desirable() == [True, False, None]
    assert labelled.counts == {"a completion is labelled both ways": 1, "a label is neither true nor false": 1}
    rewarded = read(
        {"prompt": "p", "completion": "sí", "reward": 0.5},
        {"prompt": "p", "completion": "no", "reward": float("nan")},
        {"prompt": "p", "completion": "no", "reward": "alta"},
        {"prompt": "p", "completion": "no", "reward": -1},
    )
    assert rewarded.prompts[0].rewards == (0.5, -1.0)
    assert rewarded.counts == {"a reward is not a finite number": 2}


def test_a_correction_is_a_demonstration_and_a_pair() -> None:
    found = read(
        {"prompt": "p", "output": "mal", "correction": "bien", "derived": True},
        {"prompt": "q", "output": "bien", "correction": "bien", "derived": False},
    )
    first, second = found.prompts
    assert ordered(first) == {("bien", "mal")} and first.completions[first.demonstrations[0]] == "bien"
    assert first.derived and not second.derived
    assert second.pairs == () and second.demonstrations == (0,)
    assert found.counts == {"both completions are the same": 1}


def test_items_of_bigbench_in_both_layouts(tmp_path: Path) -> None:
    """A task file with `examples` and `target_scores`, and rows with `targets` as the hub's copy has them."""
    scored = {"examples": [
        {"input": "¿Cómo está mi tensión?", "target_scores": {"Muy alta; véala un médico.": 1, "Qué sé yo.": 0}},
        {"input": "Igual", "target_scores": {"a": 1, "b": 1}},
        {"input": "Una", "target_scores": {"a": 1}},
    ]}  # fmt: skip
    chosen = {"input": "¿Sí o no?", "targets": {"choices": ["no", "sí"], "labels": [0, 1]}}
    (tmp_path / "task.json").write_text(json.dumps({"name": "hhh", **scored}, ensure_ascii=False), encoding="utf-8")
    table = read_table(SourceConfig(path="task.json"), base=tmp_path)
    found = read_preferences(table.rows, table.columns)
    assert ordered(found.prompts[0]) == {("Muy alta; véala un médico.", "Qué sé yo.")}
    assert found.counts == {
        "all choices of an item score the same": 1,
        "an item has fewer than two choices, or one without a score": 1,
    }
    assert ordered(read(chosen).prompts[0]) == {("sí", "no")}
    with pytest.raises(DataError, match="one without a score"):
        read({"input": "¿?", "target_scores": {"a": float("nan"), "b": 1}})


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


def test_transcripts_part_at_the_last_answer_they_share_the_way_to() -> None:
    """The answers begin alike: the border is the turn's, not where the texts begin to differ."""
    prompt, better, worse = split_transcripts(
        transcript("¿Qué hora es?", "Las tres.", "¿Seguro?", "Sí, seguro."),
        transcript("¿Qué hora es?", "Las tres.", "¿Seguro?", "Sí, pero no mucho."),
    )
    assert [m["role"] for m in prompt] == ["user", "assistant", "user"]
    assert prompt[-1]["content"] == "¿Seguro?"
    assert (better, worse) == ("Sí, seguro.", "Sí, pero no mucho.")


def test_what_of_transcripts_is_refused() -> None:
    same = transcript("a", "b")
    found = read(
        {"chosen": transcript("a", "b"), "rejected": transcript("a", "c")},
        {"chosen": same, "rejected": same},
        {"chosen": transcript("a", "b", "c", "d"), "rejected": transcript("a", "e", "c", "d")},
        {"chosen": transcript("a", "b", "c", "d"), "rejected": transcript("a", "b")},
        {"chosen": transcript("x", "b"), "rejected": transcript("y", "b")},
        {"chosen": transcript("a", ""), "rejected": transcript("a", "b")},
        {"chosen": "Assistant: a", "rejected": transcript("a", "b")},
        {"chosen": None, "rejected": transcript("a", "b")},
    )
    assert found.format == "transcripts"
    assert len(found.prompts) == 1
    assert found.counts == {
        "both completions are the same": 1,
        "the conversations differ before their last message": 3,
        "a completion is empty": 1,
        "a transcript does not begin with the human": 1,
        "a transcript is not a text": 1,
    }


def post(ratio: float, label: int, a: str, b: str, post_id: str = "qt3nxl") -> dict[str, Any]:
    return {
        "post_id": post_id, "domain": "askculinary_train", "history": "¿Cómo se pela un tomate?", "human_ref_A": a,
        "human_ref_B": b, "labels": label, "score_ratio": ratio,
    }  # fmt: skip


def test_posts_are_filtered_by_ratio_and_capped_by_the_clearest() -> None:
    found = read(
        post(2.0, 1, "a", "b"), post(9.0, 0, "a", "c"), post(3.0, 1, "d", "e"), post(1.9, 1, "f", "g"),
        post(2.0, 2, "h", "i"), post(4.0, 1, "j", "k", "otra"), min_ratio=2.0, max_pairs=2,
    )  # fmt: skip
    first, second = found.prompts
    assert ordered(first) == {("c", "a"), ("d", "e")}  # label 1 means A, and 0 means B
    assert (first.group, second.group) == ("qt3nxl", "otra")
    assert found.counts == {
        "the ratio of scores is under 2": 1,
        "a label is neither 0 nor 1": 1,
        "pairs over the limit a prompt": 1,
    }


def reply(rank: int | None, text: str, **keys: Any) -> dict[str, Any]:
    return {"message_id": text, "text": text, "role": "assistant", "lang": "es", "rank": rank, "replies": []} | keys


def tree(*replies: dict[str, Any], **keys: Any) -> dict[str, Any]:
    prompt = {"message_id": "raíz", "text": "¿Qué es?", "role": "prompter", "lang": "es", "replies": list(replies)}
    return {"message_tree_id": "raíz", "tree_state": "ready_for_export", "prompt": prompt} | keys


FOLLOWED = tree(
    reply(1, "B"),
    reply(0, "A", replies=[
        {"message_id": "más", "text": "¿Y más?", "role": "prompter", "lang": "es", "replies": [
            reply(0, "AA"), reply(1, "AB", deleted=True), reply(2, "AC"), reply(None, "AD")]},
    ]),
    reply(1, "C"),
)  # fmt: skip


def flat(node: dict[str, Any], parent: str | None = None) -> list[dict[str, Any]]:
    """The same tree as flat messages, children before their parents: their order in the file means nothing."""
    row = {k: v for k, v in node.items() if k != "replies"} | {"parent_id": parent, "message_tree_id": "raíz"}
    row.setdefault("rank", None)
    return [*(m for child in node["replies"] for m in flat(child, node["message_id"])), row]


@pytest.mark.parametrize("as_messages", [False, True])
def test_trees_and_flat_messages_give_the_same_rankings(as_messages: bool) -> None:
    found = read(*flat(FOLLOWED["prompt"])) if as_messages else read(FOLLOWED)
    first, second = found.prompts
    assert ordered(first) == {("A", "B"), ("A", "C")}
    assert ordered(second) == {("AA", "AC")}
    assert [m["content"] for m in second.prompt] == ["¿Qué es?", "A", "¿Y más?"]
    assert {first.group, second.group} == {"raíz"}
    assert found.counts == {
        "tied pairs": 1,
        "completions without a rank": 1,
        "deleted messages, and what follows them": 1,
    }


def test_trees_in_another_state_or_language_and_orphans_are_counted() -> None:
    found = read(FOLLOWED, tree(reply(0, "x"), reply(1, "y"), tree_state="spam"))
    assert found.counts["trees not ready for export"] == 1
    with pytest.raises(DataError, match="2 rankings in another language"):
        read(FOLLOWED, language="eu")
    orphan = flat(reply(0, "suelta"), "perdida")
    assert read(*flat(FOLLOWED["prompt"]), *orphan).counts["message without its parent or its own name"] == 1


def test_a_message_below_itself_ends_the_walk() -> None:
    rows = flat(tree(reply(0, "A"), reply(1, "B"))["prompt"])
    circle = {"message_id": "raíz", "parent_id": "A", "message_tree_id": "raíz", "role": "prompter", "text": "t"}
    assert read(*rows, circle).counts["messages met twice"] == 1


def test_unknown_columns_and_files_without_a_judgement_are_data_errors() -> None:
    with pytest.raises(DataError, match="hold no judgements: texto"):
        read({"texto": "a"})
    with pytest.raises(DataError, match="not one of 1 rows gives a judgement: 1 both completions are the same"):
        read({"prompt": "p", "chosen": "a", "rejected": "a"})
    with pytest.raises(DataError, match="lacks a field of its format"):
        read({"message_tree_id": "t", "prompt": {"message_id": "m", "role": "prompter"}})


def test_a_record_survives_json() -> None:
    judged = read(FOLLOWED).prompts[0]
    again = JudgedPrompt.of_json(json.loads(json.dumps(judged.as_json())))
    assert again == judged and isinstance(again.pairs[0], Pair)


@pytest.mark.data
@pytest.mark.parametrize(
    ("path", "rows", "prompts", "pairs", "counts"),
    [
        # 1,026 ranked pairs in the file; the rest stands under deleted messages, or repeats a text.
        ("oasst1/en_validation_messages.jsonl.gz", 2022, 415, 1019, {"message without its parent or its own name": 3}),
        ("oasst1/en_100_trees.jsonl.gz", 100, 212, 754, {"completions without a rank": 6}),
        ("hh_rlhf/helpful-base/test.jsonl.gz", 2354, 2339, 2339,
         {"the conversations differ before their last message": 9, "both completions are the same": 2}),
        ("hh_rlhf/helpful-online/test.jsonl.gz", 1137, 1129, 1129,
         {"the conversations differ before their last message": 2, "both completions are the same": 2}),
        ("shp/shp_schema_example.jsonl", 1, 1, 1, {}),
    ],
)  # fmt: skip
def test_the_published_files(path: str, rows: int, prompts: int, pairs: int, counts: dict[str, int]) -> None:
    """Rows as published: HH-RLHF's test splits have 2,354 and 1,137 (Bai et al. 2022); none is lost uncounted."""
    folder = os.environ.get("QUILATE_DATA")
    if not folder or not (Path(folder) / path).exists():
        pytest.skip("QUILATE_DATA does not hold it")
    table = read_table(SourceConfig(path=str(Path(folder) / path)), base=Path())
    found = read_preferences(table.rows, table.columns)
    assert len(table.rows) == rows
    assert (len(found.prompts), sum(len(p.pairs) for p in found.prompts)) == (prompts, pairs)
    assert counts.items() <= found.counts.items()
    if "hh_rlhf" in path:
        assert rows == pairs + sum(found.counts.values())
    if "shp" in path:
        assert found.prompts[0].completions[found.prompts[0].pairs[0].better].startswith("Pectinex")
