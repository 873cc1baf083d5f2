"""The stages of alignment by one call from Python: `quilate.align`."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from quilate.config import validate
from quilate.engine.interrupts import StopRequest, stop_on_signals
from quilate.errors import ConfigError, DataError
from quilate.files import digest, folder_lock, make_folder, read_json, write_json, write_jsonl
from quilate.phases.align.cloning import CLONING, clone
from quilate.phases.align.functions import SECONDS
from quilate.phases.align.grpo import GRPO, grpo
from quilate.phases.align.ilql import ILQL, learn_values
from quilate.phases.align.offline import start_offline
from quilate.phases.align.online import learn, start
from quilate.phases.align.ppo import PPO, ppo
from quilate.phases.align.preferences import PREFERENCES
from quilate.phases.conversations import CONVERSATIONS
from quilate.phases.inputs import BASE
from quilate.phases.stage import StageContext, StageKind, StageReport

Method = Literal["ppo", "grpo", "rloo", "ilql", "cloning"]
Function = Callable[..., Any]
Reward = Function | Mapping[str, Any]  # a function, or a source as a recipe has it: {"kind": "rules", "path": ...}

SET = "asked"  # what the set of prompts or samples is called in logs and reports

KINDS: dict[str, StageKind[Any]] = {"ppo": PPO, "grpo": GRPO, "rloo": GRPO, "ilql": ILQL, "cloning": CLONING}
ONLINE = ("ppo", "grpo", "rloo")


@dataclass(frozen=True)
class Aligned:
    """What `align` made.

    Attributes:
        model: a plain model or adapter directory.
        folder: the run directory, with `metrics.jsonl`, `rollouts.jsonl` and what was written before and after.
        before, after: the mean reward (or loss) by set of prompts; with intervals in `report`.
    """

    model: Path
    folder: Path
    before: dict[str, float]
    after: dict[str, float]
    report: StageReport


def align(
    model: str | Path,
    *,
    reward: Function | Mapping[str, Reward] | None = None,
    prompts: Sequence[str] | Sequence[Sequence[Mapping[str, str]]] | None = None,
    answers: Sequence[str] | None = None,
    samples: Sequence[tuple[str, str]] | None = None,
    rewards: Sequence[float] | None = None,
    method: Method | None = None,
    out: str | Path = "runs/align",
    seed: int = 0,
    held_out: float = 0.1,
    timeout: float = SECONDS,
    note: Callable[[str], None] = print,
    **settings: Any,
) -> Aligned:
    """Align a model with rewards: of what it writes itself after `prompts`, or of given `samples`.

    Called again with the same arguments after an interruption, it goes on from its last checkpoint; the functions
    themselves cannot be compared.

    Args:
        model: a model directory, a .gguf file, `package:NAME` or a hub name.
        reward: `(prompts, completions) -> scores`, or several by name; they are added. Among them may be sources as a
            recipe has them, which also carry a weight: `{"kind": "rules", "path": "rules.yaml", "weight": 0.5}`, or
            `{"function": f, "weight": 0.5}`. With `samples` it only measures.
        prompts: texts, or conversations that end with the user's message.
        answers: the right answer to each prompt, for rewards of kind `answer` and functions that take `answers`.
        samples: prompts and completions; rewards: a number for each.
        method: by default `grpo` with prompts and `ilql` with samples.
        out: the run directory.
        held_out: share of the prompts to measure with.
        timeout: seconds that a call of a function may take.
        note: called with lines for people.
        settings: any key of the stage, such as `lr`, `epochs`, `format`; see docs/recipes.md.

    Raises:
        ConfigError: the arguments do not go together, or a setting is not one.
        DataError: a reward raised, hung, gave no number or not as many as completions, which are then in
            `bad-reward.jsonl` of the run directory; or a prompt or sample cannot be used.
        Interrupted: Ctrl-C; what was learned is saved.
    """
    chosen = method or ("ilql" if samples is not None else "grpo")
    if chosen not in KINDS:
        raise ConfigError(f"'{chosen}' is no method", hint=f"known: {', '.join(KINDS)}")
    rows = _rows(chosen, prompts, answers, samples, rewards)
    config, functions = _config(chosen, reward, settings, timeout=timeout, answered=answers is not None)
    kind = KINDS[chosen]
    stage_config = validate(kind.config, config, source="align")  # before anything is read or written
    folder = make_folder(Path(out).resolve())
    with folder_lock(folder), _stop() as stop:
        _same_call(folder, [str(model), stage_config.as_json(), digest(rows), seed, held_out])
        run = _Run(folder, seed, note, stop)
        write_jsonl(folder / "rows.jsonl", rows)
        base = run.once(BASE, "base", {"model": str(model)}, {})
        asked = {"path": str(folder / "rows.jsonl"), "held_out": float(held_out)}
        role = "conversations" if answers is not None else "preferences"
        sets = run.once(CONVERSATIONS if answers is not None else PREFERENCES, SET, {role: asked}, {})
        context = run.context(kind, "policy", config, {"model": base, f"{role}:{SET}": sets})
        report = _train(chosen, context, functions)
        write_json(folder / "report.json", asdict(report))
    return Aligned(context.folder / "model", folder, report.facts["before"], report.facts["after"], report)


def _train(method: str, context: StageContext[Any], functions: Mapping[str, Function]) -> StageReport:
    match method:
        case "ppo":
            return learn(start(context, value=True, functions=functions), ppo(context.config))
        case "grpo" | "rloo":
            return learn(start(context, value=False, functions=functions), grpo(context.config))
        case "ilql":
            return learn_values(start_offline(context, functions))
        case _:
            return clone(start_offline(context, functions))


def _rows(
    method: str,
    prompts: Sequence[Any] | None,
    answers: Sequence[str] | None,
    samples: Sequence[tuple[str, str]] | None,
    rewards: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """The data as a file of it would be."""
    if method in ONLINE:
        if prompts is None or samples is not None or rewards is not None:
            raise ConfigError(f"{method} learns from what it writes", hint="give `prompts` and a `reward`")
        if answers is None:
            return [{"prompt": prompt} for prompt in prompts]
        if len(answers) != len(prompts):
            raise ConfigError(f"{len(answers)} answers for {len(prompts)} prompts", hint="give one for each")
        return [{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)]
    if samples is None or rewards is None or prompts is not None or answers is not None:
        raise ConfigError(f"{method} learns from a data set", hint="give `samples` and their `rewards`")
    if len(rewards) != len(samples):
        raise ConfigError(f"{len(rewards)} rewards for {len(samples)} samples", hint="give one for each")
    if any(isinstance(sample, str) or len(sample) != 2 for sample in samples):
        raise ConfigError("a sample is no pair", hint="give each as (prompt, completion)")
    return [{"prompt": p, "completion": c, "reward": float(r)} for (p, c), r in zip(samples, rewards, strict=True)]


def _config(
    method: str, reward: Any, settings: Mapping[str, Any], *, timeout: float, answered: bool
) -> tuple[dict[str, Any], dict[str, Function]]:
    """The stage's config as a recipe would have it, and the functions that its rewards of kind `function` are."""
    if reward is None and method in ONLINE:
        raise ConfigError(f"{method} needs a `reward`", hint="give a function (prompts, completions) -> scores")
    named = {} if reward is None else dict(reward) if isinstance(reward, Mapping) else {"reward": reward}
    sources, functions = dict[str, Any](), dict[str, Function]()
    for name, source in named.items():
        if callable(source):
            source = {"function": source}
        source = dict(source)
        if "function" in source:
            functions[name] = source.pop("function")
            source = {"kind": "function", "path": _place(functions[name]), "timeout": float(timeout)} | source
        sources[name] = source
    config = {"kind": KINDS[method].name, "rewards": sources} | dict(settings)
    config["conversations" if answered else "preferences"] = [SET]
    if method == "rloo":
        config["advantage"] = "rloo"
    return config, functions


def _place(function: Function) -> str:
    """Where a function stands, for the record."""
    try:
        file = Path(inspect.getsourcefile(function) or "").name
    except TypeError:  # a callable object
        file = ""
    name = getattr(function, "__name__", type(function).__name__)
    return f"{file if file.endswith('.py') else 'interactive.py'}:{name if name.isidentifier() else 'function'}"


@contextmanager
def _stop() -> Iterator[StopRequest]:
    """Ctrl-C saves before it ends the call; only the main thread is told of it."""
    if threading.current_thread() is threading.main_thread():
        with stop_on_signals() as stop:
            yield stop
    else:
        yield StopRequest()


def _same_call(folder: Path, call: list[Any]) -> None:
    """Raises:
    DataError: the folder holds another run, or a finished one.
    """
    path = folder / "call.json"
    identity = digest(call)
    if path.exists() and read_json(path)["id"] != identity:
        raise DataError(f"{folder} holds a run with other arguments", hint="give another `out`")
    if (folder / "report.json").exists():
        raise DataError(f"{folder} holds a finished run", hint="use its policy/model, or give another `out`")
    write_json(path, {"id": identity})


@dataclass(frozen=True)
class _Run:
    folder: Path
    seed: int
    note: Callable[[str], None]
    stop: StopRequest

    def context(
        self, kind: StageKind[Any], name: str, config: Mapping[str, Any], inputs: dict[str, Path]
    ) -> StageContext[Any]:
        place = make_folder(self.folder / name)
        write_json(place / "config.json", dict(config))
        parsed = validate(kind.config, dict(config), source="align")
        return StageContext(parsed, inputs, place, self.seed, Path.cwd(), lambda _: None, self.note, self.stop)

    def once(self, kind: StageKind[Any], name: str, config: dict[str, Any], inputs: dict[str, Path]) -> Path:
        """The folder of a small stage, which a resumed run need not run again."""
        context = self.context(kind, name, config, inputs)
        done = context.folder / "done.json"
        if not done.exists():
            write_json(done, asdict(kind.run(context)))
        return context.folder
