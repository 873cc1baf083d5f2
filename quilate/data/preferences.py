"""Human judgements of completions, from the files people publish them in, unmodified, to one form.

Read here: pairs, rankings, labels, rewards and corrections in columns; HH-RLHF's transcripts; OASST1's trees and flat
messages; SHP's posts; items in BIG-bench's layout. What cannot be used is counted by its reason. All judgements of one
prompt end up together, for they must be trained on together (see `quilate.objectives.preference.bradley_terry`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple, TypeGuard

from quilate.data.oasst import Tree, read_trees
from quilate.errors import DataError
from quilate.files import digest
from quilate.tokenization.chat import Message

Row = Mapping[str, Any]

ROLES = ("system", "user", "assistant")


class Pair(NamedTuple):
    """Completion `better` was preferred to `worse` (indices). `strength` is how clearly, where the source tells: the
    distance of two ranks, or SHP's ratio of scores."""

    better: int
    worse: int
    strength: float | None = None


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt, completions of it, and what was said of them.

    Attributes:
        id: unique in its file.
        prompt: messages, the last one the user's.
        completions: distinct and not empty.
        pairs: which were preferred to which; ties are absent.
        labels: for each completion whether it is desirable, or None.
        rewards: for each completion a number, or None.
        demonstrations: indices of completions that people wrote to be imitated.
        group: what must stay on one side of a split: a conversation, a post, a patient.
        derived: the judgements follow from a rule; nobody made them.
        times: how often the source has each completion with its reward; empty where each counts once.
    """

    id: str
    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    pairs: tuple[Pair, ...]
    labels: tuple[bool | None, ...]
    rewards: tuple[float | None, ...]
    demonstrations: tuple[int, ...]
    group: str
    derived: bool = False
    times: tuple[int, ...] = ()

    @property
    def question(self) -> str:
        """What the user opens with."""
        return next(message["content"] for message in self.prompt if message["role"] == "user")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> JudgedPrompt:
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**(lists | {"pairs": tuple(Pair(*pair) for pair in value["pairs"])}))

    def desirable(self) -> list[bool | None]:
        """Each completion's label, or whether it won more pairs than it lost; None where that is even."""
        balance = Counter[int]()
        for pair in self.pairs:
            balance[pair.better] += 1
            balance[pair.worse] -= 1
        return [
            label if label is not None else (balance[i] > 0 if balance[i] else None)
            for i, label in enumerate(self.labels)
        ]


@dataclass(frozen=True)
class Preferences:
    """What a file holds; `counts` says what was left out, by reason, and `format` how it was read."""

    prompts: list[JudgedPrompt]
    counts: dict[str, int]
    format: str


@dataclass(frozen=True)
class Limits:
    """What to take of an SHP or OASST1 file; see `quilate.phases.align.preferences.PreferencesConfig`."""

    min_ratio: float = 2.0
    max_pairs: int | None = 5
    language: str | None = None


class _Unusable(Exception):
    """A record that gives no judgement; its message is the reason that is counted."""


@dataclass
class _Draft:
    id: str
    prompt: tuple[Message, ...]
    group: str
    derived: bool
    completions: dict[str, int] = field(default_factory=dict)
    pairs: dict[tuple[int, int], float | None] = field(default_factory=dict)
    labels: dict[int, bool | None] = field(default_factory=dict)
    rewards: dict[int, float] = field(default_factory=dict)
    times: Counter[int] = field(default_factory=Counter)
    demonstrations: dict[int, None] = field(default_factory=dict)

    def add(self, completion: str) -> int:
        return self.completions.setdefault(completion, len(self.completions))


class _Collector:
    """Gathers judgements by prompt and counts what is left out."""

    def __init__(self) -> None:
        self.drafts: dict[str, _Draft] = {}
        self.counts: Counter[str] = Counter()

    def of(self, id: str, prompt: Sequence[Message], *, group: str | None = None, derived: bool = False) -> _Draft:
        """The draft of this prompt, new or met before: a prompt that a file repeats is one prompt."""
        if not prompt or prompt[-1]["role"] != "user":
            raise _Unusable("a prompt does not end with the user's message")
        if not all(message["content"].strip() for message in prompt):
            raise _Unusable("a message of the prompt is empty")
        group = group or digest(next(m["content"] for m in prompt if m["role"] == "user"))[:16]
        key = digest([list(prompt), group, derived])
        return self.drafts.setdefault(key, _Draft(id, tuple(prompt), group, derived))

    def prefer(self, draft: _Draft, better: str, worse: str, strength: float | None = None) -> None:
        if not better.strip() or not worse.strip():
            raise _Unusable("a completion is empty")
        if better == worse:
            raise _Unusable("both completions are the same")
        pair = draft.add(better), draft.add(worse)
        if pair in draft.pairs:
            self.counts["judgements given before"] += 1
        draft.pairs[pair] = strength

    def finish(self, name: str, max_pairs: int | None = None) -> Preferences:
        prompts: list[JudgedPrompt] = []
        ids = Counter[str]()
        for draft in self.drafts.values():
            ids[draft.id] += 1
            id = draft.id if ids[draft.id] == 1 else f"{draft.id} ({ids[draft.id]})"
            pairs = [Pair(*pair, strength) for pair, strength in draft.pairs.items() if pair[::-1] not in draft.pairs]
            self.counts["pairs preferred both ways"] += len(draft.pairs) - len(pairs)
            if max_pairs is not None and len(pairs) > max_pairs:
                self.counts["pairs over the limit a prompt"] += len(pairs) - max_pairs
                pairs = sorted(pairs, key=lambda p: -(p.strength or 0.0))[:max_pairs]
            everything = range(len(draft.completions))
            labels = tuple(draft.labels.get(i) for i in everything)
            judges = pairs or draft.rewards or draft.demonstrations or any(label is not None for label in labels)
            if judges or name == PROMPTS_ONLY:
                rewards = tuple(draft.rewards.get(i) for i in everything)
                judged = draft.prompt, tuple(draft.completions), tuple(pairs), labels, rewards
                times = tuple(draft.times[i] for i in everything) if draft.times else ()
                demonstrations = tuple(draft.demonstrations)
                prompts.append(JudgedPrompt(id, *judged, demonstrations, draft.group, draft.derived, times))
        return Preferences(prompts, {k: v for k, v in self.counts.items() if v}, name)


def read_preferences(rows: Sequence[Row], columns: Sequence[str], limits: Limits = Limits()) -> Preferences:
    """The judgements in a table, whose columns tell the format (see `FORMATS`).

    Args:
        rows: as `read_table` gives them; a column that a row lacks is missing or None.

    Raises:
        DataError: the columns are of no format that is known, or not one row can be used.
    """
    name = next((name for name, f in FORMATS.items() if set(f.columns) <= set(columns)), None)
    if name == PROMPTS_ONLY and not set(columns) <= {"prompt", "group"}:
        name = None  # judgements, but of a form that is not known: not to be passed over in silence
    if name is None:
        known = "; ".join(" + ".join(f.columns) for f in FORMATS.values())
        raise DataError(f"these columns hold no judgements: {', '.join(columns)}", hint=f"known: {known}")
    collector = _Collector()
    chosen = FORMATS[name]
    try:
        chosen.read(rows, collector, limits)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"a message lacks a field of its format ({name}), or has one of another kind: {error}",
            hint="give the file as it was published",
        ) from error
    found = collector.finish(name, limits.max_pairs if name == "shp" else None)
    if not found.prompts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.counts.items())
        raise DataError(f"not one of {len(rows)} rows gives a judgement: {reasons or 'none says anything'}")
    return found


def _each_row(read_one: Callable[[str, Row, _Collector, Limits], None]) -> _Reader:
    """A reader of a table in which every row stands for itself; what a row lacks is counted, not fatal."""

    def read(rows: Sequence[Row], collector: _Collector, limits: Limits) -> None:
        for number, row in enumerate(rows, start=1):
            try:
                read_one(f"row {number}", row, collector, limits)
            except _Unusable as reason:
                collector.counts[str(reason)] += 1
            except (KeyError, TypeError, ValueError):
                collector.counts["a field is missing or not of its kind"] += 1

    return read


def _read_pair(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    draft = _draft_of(id, row, collector)
    collector.prefer(draft, _completion(row, "chosen"), _completion(row, "rejected"))


def _read_correction(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    """A person's correction of an output is a demonstration, and preferred to it."""
    draft = _draft_of(id, row, collector)
    correction = _completion(row, "correction")
    if not correction.strip():
        raise _Unusable("a completion is empty")
    draft.demonstrations[draft.add(correction)] = None
    collector.prefer(draft, correction, _completion(row, "output"))


def _read_label(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    label = row.get("label")
    if not isinstance(label, bool) and label not in (0, 1):
        raise _Unusable("a label is neither true nor false")
    draft = _draft_of(id, row, collector)
    index = draft.add(_not_empty(_completion(row, "completion")))
    if draft.labels.get(index, bool(label)) is not bool(label):
        draft.labels[index] = None
        raise _Unusable("a completion is labelled both ways")
    draft.labels[index] = bool(label)


def _read_reward(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    reward = row.get("reward")
    if not _is_number(reward):
        raise _Unusable("a reward is not a finite number")
    draft = _draft_of(id, row, collector)
    index = draft.add(_not_empty(_completion(row, "completion")))
    if draft.rewards.setdefault(index, float(reward)) != reward:
        raise _Unusable("a completion has two rewards; the first is kept")
    draft.times[index] += 1


def _read_prompt(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    _draft_of(id, row, collector)


def _read_ranking(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    completions, ranks = row.get("completions"), row.get("ranks")
    if not isinstance(completions, list) or not isinstance(ranks, list) or len(completions) != len(ranks):
        raise _Unusable("completions and ranks are not lists of one length")
    _rank(collector, _draft_of(id, row, collector), list(zip(map(_text_of, completions), ranks, strict=True)))


def _rank(collector: _Collector, draft: _Draft, ranked: list[tuple[str, Any]]) -> None:
    """All C(K, 2) pairs of a ranking, 0 or 1 the best; equal ranks make none, and are counted."""
    usable = [(text, rank) for text, rank in ranked if _is_number(rank)]
    collector.counts["completions without a rank"] += len(ranked) - len(usable)
    if len(usable) < 2:
        raise _Unusable("fewer than two completions have a rank")
    for (text, rank), (other, other_rank) in combinations(usable, 2):
        if rank == other_rank:
            collector.counts["tied pairs"] += 1
            continue
        better, worse = (text, other) if rank < other_rank else (other, text)
        try:
            collector.prefer(draft, better, worse, float(abs(rank - other_rank)))
        except _Unusable as reason:
            collector.counts[str(reason)] += 1


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it can be compared; of a NaN, which tables hold where nothing stands, every comparison is false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _draft_of(id: str, row: Row, collector: _Collector) -> _Draft:
    group = row.get("group")
    return collector.of(
        id, _messages(row), group=None if group is None else str(group), derived=bool(row.get("derived"))
    )


def _messages(row: Row) -> list[Message]:
    """The prompt of a row: a text is the user's; messages are taken as they are."""
    prompt = row.get("prompt")
    if prompt is None and isinstance(row.get("chosen"), list):
        return _shared_messages(row["chosen"], row.get("rejected"))
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        return [_message(value) for value in prompt]
    raise _Unusable("a prompt is neither a text nor a list of messages")


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping) or value.get("role") not in ROLES or not isinstance(value.get("content"), str):
        raise _Unusable("a message has no role or no content")
    return {"role": value["role"], "content": value["content"]}


def _shared_messages(chosen: Any, rejected: Any) -> list[Message]:
    """The prompt of two whole conversations: all but each one's last message, which must be the same."""
    if not isinstance(rejected, list) or chosen[:-1] != rejected[:-1]:
        raise _Unusable("the conversations differ before their last message")
    return [_message(value) for value in chosen[:-1]]


def _completion(row: Row, column: str) -> str:
    return _text_of(row.get(column))


def _text_of(value: Any) -> str:
    """A completion: a text, or messages of which the last is the assistant's."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and (last := _message(value[-1]))["role"] == "assistant":
        return last["content"]
    raise _Unusable("a completion is neither a text nor the assistant's message")


def _not_empty(completion: str) -> str:
    if not completion.strip():
        raise _Unusable("a completion is empty")
    return completion


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def split_transcripts(chosen: str, rejected: str) -> tuple[list[Message], str, str]:
    """HH-RLHF's two whole transcripts (Bai et al. 2022) as what they share and the answer each ends with.

    The border is the last "Assistant:" of the longest common prefix. Pairs that part before their last answer compare
    conversations, not answers, and are refused.
    """
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise _Unusable("a transcript is not a text")
    if not chosen.startswith(HUMAN) or not rejected.startswith(HUMAN):
        raise _Unusable("a transcript does not begin with the human")
    if chosen == rejected:
        raise _Unusable("both completions are the same")
    shorter = min(len(chosen), len(rejected))
    shared = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    border = chosen.rfind(ASSISTANT, 0, shared)
    answers = [text[border + len(ASSISTANT) :] for text in (chosen, rejected)]
    if border < 0 or any(mark in answer for mark in (HUMAN, ASSISTANT) for answer in answers):
        raise _Unusable("the conversations differ before their last message")
    return list(_turns(chosen[:border])), answers[0].strip(), answers[1].strip()


def _turns(transcript: str) -> Iterator[Message]:
    for part in transcript.split(HUMAN)[1:]:
        question, *answers = part.split(ASSISTANT)
        yield {"role": "user", "content": question.strip()}
        for answer in answers:
            yield {"role": "assistant", "content": answer.strip()}


def _read_transcripts(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    if isinstance(row.get("chosen"), list):
        return _read_pair(id, row, collector, limits)
    prompt, better, worse = split_transcripts(row["chosen"], row["rejected"])
    return collector.prefer(collector.of(id, prompt), better, worse)


def _read_post(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    """Two comments on a post of SHP (Ethayarajh et al. 2022); `labels` 1 means that A is preferred."""
    if row.get("labels") not in (0, 1):
        raise _Unusable("a label is neither 0 nor 1")
    ratio = float(row["score_ratio"])
    if not ratio >= limits.min_ratio:
        raise _Unusable(f"the ratio of scores is under {limits.min_ratio:g}")
    comments = [str(row["human_ref_A"]), str(row["human_ref_B"])]
    better, worse = comments if row["labels"] == 1 else comments[::-1]
    post = str(row["post_id"])
    draft = collector.of(post, [{"role": "user", "content": str(row["history"])}], group=post)
    collector.prefer(draft, better, worse, ratio)


def _read_trees(rows: Sequence[Row], collector: _Collector, limits: Limits, *, nested: bool) -> None:
    """OASST1 (Köpf et al. 2023)."""
    for tree in read_trees(rows, nested=nested, counts=collector.counts):
        if tree.root.get("tree_state", "ready_for_export") != "ready_for_export":
            collector.counts["trees not ready for export"] += 1
        else:
            _walk(tree, collector, limits)


def _walk(tree: Tree, collector: _Collector, limits: Limits) -> None:
    """Every question of a tree whose answers were ranked."""
    pending: list[tuple[Row, list[Message]]] = [(tree.root, [])]
    seen: set[str] = set()
    while pending:
        message, above = pending.pop()
        if message["message_id"] in seen:  # a message below itself would be walked forever
            collector.counts["messages met twice"] += 1
            continue
        seen.add(message["message_id"])
        if message.get("deleted"):
            collector.counts["deleted messages, and what follows them"] += 1
            continue
        role = "user" if message["role"] == "prompter" else "assistant"
        path = [*above, {"role": role, "content": str(message["text"])}]
        children = tree.below(message)
        pending += [(child, path) for child in reversed(children)]
        answers = [c for c in children if c["role"] == "assistant" and not c.get("deleted")]
        if role != "user" or len(answers) < 2:
            continue
        if limits.language not in (None, message.get("lang")):
            collector.counts["rankings in another language"] += 1
            continue
        try:
            draft = collector.of(str(message["message_id"]), path, group=tree.name)
            _rank(collector, draft, [(str(answer["text"]), answer.get("rank")) for answer in answers])
        except _Unusable as reason:
            collector.counts[str(reason)] += 1


def _read_item(id: str, row: Row, collector: _Collector, limits: Limits) -> None:
    """An item of BIG-bench (Srivastava et al. 2023), such as those of "helpful, honest, harmless" (Askell et al. 2021):
    every choice is preferred to those that score less."""
    scores = row.get("target_scores")
    if scores is None:
        targets = row["targets"]
        scores = dict(zip(targets["choices"], targets["labels"], strict=True))
    numbers = [score for score in scores.values() if _is_number(score)]
    if len(numbers) < len(scores) or len(scores) < 2:
        raise _Unusable("an item has fewer than two choices, or one without a score")
    if len(set(numbers)) < 2:
        raise _Unusable("all choices of an item score the same")
    draft = collector.of(id, [{"role": "user", "content": _text_of(row["input"])}])
    for choice, other in combinations(map(_text_of, scores), 2):
        if scores[choice] != scores[other]:
            better, worse = (choice, other) if scores[choice] > scores[other] else (other, choice)
            collector.prefer(draft, better, worse)


_Reader = Callable[[Sequence[Row], _Collector, Limits], None]


class _Format(NamedTuple):
    columns: tuple[str, ...]
    read: _Reader


PROMPTS_ONLY = "prompts"

# The first whose columns are all there is taken.
FORMATS: dict[str, _Format] = {
    "shp": _Format(
        ("post_id", "history", "human_ref_A", "human_ref_B", "labels", "score_ratio"), _each_row(_read_post)
    ),
    "oasst trees": _Format(("message_tree_id", "prompt"), partial(_read_trees, nested=True)),
    "oasst messages": _Format(
        ("message_id", "parent_id", "message_tree_id", "role", "text", "rank"), partial(_read_trees, nested=False)
    ),
    "pairs": _Format(("prompt", "chosen", "rejected"), _each_row(_read_pair)),
    "transcripts": _Format(("chosen", "rejected"), _each_row(_read_transcripts)),
    "rankings": _Format(("prompt", "completions", "ranks"), _each_row(_read_ranking)),
    "corrections": _Format(("prompt", "output", "correction"), _each_row(_read_correction)),
    "items": _Format(("input", "target_scores"), _each_row(_read_item)),
    "items of choices": _Format(("input", "targets"), _each_row(_read_item)),
    "labels": _Format(("prompt", "completion", "label"), _each_row(_read_label)),
    "rewards": _Format(("prompt", "completion", "reward"), _each_row(_read_reward)),
    PROMPTS_ONLY: _Format(("prompt",), _each_row(_read_prompt)),
}
