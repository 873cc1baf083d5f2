"""Take each guard away, one at a time, and see its test fail: `python tests/faults/mutations.py [--write] [NAME ...]`.

A test that stays green without what it tests is no test. The work is done on a copy of the tree. `--write` puts the
results into the table of docs/reliability.md; `--missing` tries those that it has none of. A mutation is a text of the
source and what takes its place; `tests/faults/test_mutations.py` checks that each text still occurs exactly once.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
ALL_GREEN, NOT_RUN = "**all green**", "not run"
COPIED = ("quilate", "tests", "recipes", "docs", "benchmarks", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """`fault`: its number in docs/reliability.md; `tests`: what must fail, as pytest takes it."""

    fault: str
    guard: str
    file: str
    old: str
    new: str
    tests: str


LOOP, GUARDS, CHECKPOINT = "quilate/engine/loop.py", "quilate/engine/guards.py", "quilate/engine/checkpoint.py"
FILES, INTERRUPTS, RUNLOG = "quilate/files.py", "quilate/engine/interrupts.py", "quilate/engine/runlog.py"
FIT, SAVED, SPIKES = "tests/engine/test_fit.py", "tests/engine/test_checkpoint.py", "tests/faults/test_loss_spikes.py"
MEMORY, PHASES = "tests/faults/test_out_of_memory.py", "tests/faults/test_every_phase.py"
CLOCKS, LOSSES = "tests/faults/test_signals_and_clocks.py", "tests/equivalence/test_losses.py"
TOGETHER = "tests/engine/test_distributed.py"

MUTATIONS = [
    Mutation("1", "random streams come back with a checkpoint", LOOP,
             '        self.streams.restore(checkpoint.tensors["streams"])\n', "", f"{FIT} -k dropout"),
    Mutation("1", "the optimizer comes back with a checkpoint", LOOP,
             '        self.optimizer.restore(checkpoint.tensors["optimizer"])\n', "", f"{FIT} -k interrupted_equals"),
    Mutation("1", "the rounding's random stream is among those saved", "quilate/rng.py",
             'states = {f"stream.{name}": generator.get_state() for name, generator in self._generators.items()}',
             "states = {}", f"{FIT} -k interrupted_equals"),
    Mutation("2, 3", "a run goes on at the checkpoint's step", LOOP,
             'self.step, self.counts = checkpoint.step, dict(state["counts"])',
             'self.step, self.counts = checkpoint.step + 1, dict(state["counts"])', f"{FIT} -k interrupted_equals"),
    Mutation("1", "metrics behind the checkpoint are dropped on resume", RUNLOG,
             'if row["step"] <= resumed_step]', "]", f"{FIT} -k killed_after"),
    Mutation("4", "a checkpoint is written beside its place and renamed", FILES,
             "    temporary = temporary_of(path)\n    try:", "    temporary = path\n    try:",
             "tests/faults/test_kill_at_save.py"),
    Mutation("4", "debris of a killed save is cleared away", CHECKPOINT,
             '            shutil.rmtree(debris, ignore_errors=True)\n', "            pass\n",
             f"{SAVED} -k debris"),
    Mutation("4", "files are on disk before the rename", FILES,
             "                    os.fsync(handle.fileno())\n", "                    pass\n", f"{CLOCKS} -k on_disk"),
    Mutation("4", "the rename itself is on disk", FILES,
             "            temporary.replace(path)\n            fsync_folder(path.parent)\n            shutil",
             "            temporary.replace(path)\n            shutil", f"{CLOCKS} -k on_disk"),
    Mutation("5", "a missing file rejects the checkpoint", CHECKPOINT,
             "        if not file.is_file():\n", "        if False:\n", f"{SAVED} -k without_a_file"),
    Mutation("5", "an older checkpoint serves when the newest is damaged", CHECKPOINT,
             "for path in reversed(self._paths()):", "for path in self._paths()[-1:]:", f"{SAVED} -k without_a_file"),
    Mutation("5, 8", "damaged checkpoints are never a fresh start", CHECKPOINT,
             "        if problems:\n", "        if False:\n", f"{SAVED} -k never_a_fresh"),
    Mutation("6", "every file's digest is checked", CHECKPOINT,
             '        if sha256_of_file(file) != expected["sha256"]:\n', "        if False:\n", f"{SAVED} -k flipped"),
    Mutation("6", "the manifest's own digest is checked", CHECKPOINT,
             "    if digest(manifest) != written:\n", "    if False:\n", f"{SAVED} -k flipped"),
    Mutation("6", "in a stage too: digests before tensors", CHECKPOINT,
             '        if sha256_of_file(file) != expected["sha256"]:\n', "        if False:\n",
             f"{PHASES} -k killed_damaged"),
    Mutation("7", "every file's size is checked", CHECKPOINT,
             '        if file.stat().st_size != expected["bytes"]:\n',
             '        if file.stat().st_size != expected["bytes"]:\n            continue\n        if False:\n',
             f"{SAVED} -k truncated"),
    Mutation("9", "room is looked for before writing", CHECKPOINT,
             "                    self._check_room(checkpoint)\n", "", f"{SAVED} -k too_little_room"),
    Mutation("9", "a full disk is explained", "quilate/errors.py",
             "        if error.errno in (errno.ENOSPC, errno.EDQUOT):\n", "        if False:\n",
             f"{SAVED} -k full_disk"),
    Mutation("9", "a real full disk leaves no debris", FILES,
             "    finally:\n        shutil.rmtree(temporary, ignore_errors=True)\n", "    finally:\n        pass\n",
             "tests/faults/test_full_disk.py"),
    Mutation("10", "older checkpoints go after the newer is saved, not before", CHECKPOINT,
             "self._check_room(checkpoint)\n",
             "self._check_room(checkpoint); [shutil.rmtree(old) for old in self._paths()]\n",
             f"{SAVED} -k full_disk"),
    Mutation("10", "of checkpoints the newest are kept", CHECKPOINT,
             "set(up_to_now[-self.keep :])", "set(up_to_now[: self.keep])", f"{SAVED} -k pruned"),
    Mutation("10", "a rejected later checkpoint does not outlive the good one", CHECKPOINT,
             "if path.name <= self._path(saved).name]", "]", f"{SAVED} -k never_outlives"),
    Mutation("11", "a signal is a request", INTERRUPTS,
             "        request.signal = signal.Signals(number).name\n", "        pass\n", f"{CLOCKS} -k first_signal"),
    Mutation("11", "the second signal ends the process", INTERRUPTS,
             "            os._exit(Interrupted.exit_code)\n", "            pass\n", f"{CLOCKS} -k first_signal"),
    Mutation("11", "a stopped step is saved", LOOP,
             "        if (due or stopping) and run.step < len(batches):\n",
             "        if due and run.step < len(batches):\n", f"{FIT} -k interrupted_equals"),
    Mutation("11", "a stop is heard while data are tokenized", "quilate/data/tokens.py",
             "                check_stop()\n", "", f"{PHASES} -k tokenized"),
    Mutation("11", "a stop is heard while measuring", "quilate/evaluation/bits_per_byte.py",
             "        check_stop()\n", "", f"{PHASES} -k 'stop_elsewhere and before'"),
    Mutation("11", "a stop is heard while completions are scored", "quilate/engine/completions.py",
             "            check_stop()\n", "", f"{PHASES} -k 'stop_elsewhere and reference'"),
    Mutation("16", "other data under a resumed run are refused", LOOP,
             'if state["batches"] != self.batches.fingerprint or state["total_steps"] != len(self.batches):',
             "if False:", f"{FIT} -k other_data"),
    Mutation("16", "what earlier stages left is compared with its digests", "quilate/recipe/worker.py",
             "        check_outputs(Path(source))\n", "        pass\n", f"{PHASES} -k one_bit"),
    Mutation("16", "a tokenizer is part of a model's identity", "quilate/models/source.py",
             '(".safetensors", ".json", ".jinja", ".model", ".txt")', '(".safetensors",)',
             "tests/faults/test_altered_inputs.py"),
    Mutation("16", "a checkpoint of another model is refused", "quilate/optim/master.py",
             "        if shapes != given:", "        if False:", f"{FIT} -k another_model"),
    Mutation("17", "a loss that is not finite updates nothing", LOOP,
             "    applied = math.isfinite(loss) and math.isfinite(norm) and loss <= loss_limit\n",
             "    applied = not loss > loss_limit\n", f"{FIT} -k bad_micro_batch"),
    Mutation("17", "a gradient that is not finite updates nothing", LOOP,
             "math.isfinite(loss) and math.isfinite(norm) and", "math.isfinite(loss) and",
             f"{FIT} -k bad_micro_batch"),
    Mutation("17", "the gradients of a refused update are forgotten", LOOP,
             "    else:\n        optimizer.clear_gradients()\n", "", f"{FIT} -k bad_micro_batch"),
    Mutation("17", "the samples of a refused update are named", LOOP,
             '            self.name_samples("refused", micro_batches, self.step, not result.finite_here)\n', "",
             f"{FIT} -k names_its"),
    Mutation("17", "a loss that is not finite in one process is so in all", LOOP,
             "    loss = world.sum(loss)\n", "", f"{TOGETHER} -k nan"),
    Mutation("17", "what is not a number is logged as it is", RUNLOG,
             "return str(value) if isinstance(value, float) and not math.isfinite(value) else value",
             "return 0.0 if isinstance(value, float) and not math.isfinite(value) else value", f"{FIT} -k names_its"),
    Mutation("17", "refusals in a row end the run", LOOP,
             "        if self.refused_in_a_row >= MAX_REFUSED_IN_A_ROW:\n", "        if False:\n",
             f"{FIT} -k in_a_row"),
    Mutation("18", "`skip` leaves the update out", LOOP,
             'math.inf if guards.loss_spike == "warn" else limit', "math.inf", f"{SPIKES} -k skip_leaves"),
    Mutation("18", "`stop` saves before the spike", LOOP,
             "            checkpointer.save(run.snapshot())\n            run.name_samples(\"spike\"",
             "            run.name_samples(\"spike\"", f"{SPIKES} -k stop_saves"),
    Mutation("18", "`rewind` takes parameters back", LOOP,
             "            run.rewind(rewind_points)\n", "            run.counts[\"rewinds\"] += 1\n",
             f"{SPIKES} -k takes_everything"),
    Mutation("18", "rewinds have a budget", LOOP,
             '            if run.counts["rewinds"] == guards.rewinds:\n', "            if False:\n",
             f"{SPIKES} -k budget"),
    Mutation("18", "a resumed run never starts before its rewind point", LOOP,
             "            checkpointer.save(run.snapshot())  # first: a resumed run never starts before its rewind "
             "point\n", "", f"{SPIKES} -k must_go_back_to"),
    Mutation("18", "the statistics survive a resume", LOOP,
             '        self.watch.restore(checkpoint.state["losses"])\n', "", f"{SPIKES} -k statistics_survive"),
    Mutation("18", "few losses call nothing a spike", GUARDS,
             "        if len(self._losses) < ENOUGH:\n", "        if len(self._losses) < 1:\n",
             f"{SPIKES} -k what_a_spike"),
    Mutation("19", "short of memory, the micro-batch is halved", GUARDS,
             "if not is_out_of_memory(error) or self", "if is_out_of_memory(error) or self", f"{MEMORY} -k halved_it"),
    Mutation("19", "gradients of the aborted attempt are forgotten", GUARDS,
             "            self.optimizer.clear_gradients()\n", "", f"{MEMORY} -k no_trace"),
    Mutation("19", "random streams go back to before the attempt", GUARDS,
             "            self.streams.restore(random)\n", "", f"{MEMORY} -k no_trace"),
    Mutation("19", "an update that has begun is not tried again", GUARDS,
             " or self.optimizer.updates != updates or", " or", f"{MEMORY} -k within_the_update"),
    Mutation("19", "a resumed run remembers what fits", LOOP,
             '        self.memory.lower(state["micro_batch_tokens"], self.counts["memory_halvings"])\n', "",
             f"{MEMORY} -k remembers"),
    Mutation("19", "one sample too large is an error", GUARDS,
             "        while limit > 1:\n",
             "        while True:\n            if limit <= 1:\n                raise KeyError\n",
             f"{MEMORY} -k one_sample"),
    Mutation("20", "the loss is divided by the whole step's weight", LOOP,
             "        (loss_sum * world.loss_scale / weight).backward()",
             "        (loss_sum / batch.weight / len(micro_batches)).backward()",
             f"{LOSSES} -k eight_micro"),
    Mutation("20", "documents of a packed row do not see one another", "quilate/models/encoder.py",
             "DocumentLayout.of(lengths, self", "DocumentLayout.of([sum(lengths)], self",
             f"{LOSSES} -k packed_loss"),
    Mutation("20", "micro-batches' gradients are summed in fp32", "quilate/optim/master.py",
             "self._accumulated[name] = gradient.float()", "self._accumulated[name] = gradient",
             "tests/optim/test_adamw.py -k small_gradients"),
    Mutation("20", "the gradients of all processes are added up", LOOP,
             "    world.add_up(optimizer.gradients())\n", "", f"{TOGETHER} -k as_one_does"),
    Mutation("20", "FSDP's mean over processes becomes the sum", LOOP,
             "(loss_sum * world.loss_scale / weight)", "(loss_sum / weight)", f"{TOGETHER} -k as_one_does"),
    Mutation("21", "each random stream has a generator of its own", "quilate/rng.py",
             "            generator = torch.Generator()\n", "            generator = torch.default_generator\n",
             f"{FIT} tests/engine/test_rng.py"),
    Mutation("22", "custom code in a config is refused", "quilate/models/source.py",
             '    if content.get("auto_map") or content.get("custom_pipelines"):\n', "    if False:\n",
             "tests/security/test_untrusted_models.py -k remote_code"),
    Mutation("22", "weights that are only pickles are refused", "quilate/models/source.py",
             "        if pickles:\n", "        if False:\n", "tests/security/test_untrusted_models.py -k pickle"),
    Mutation("22", "a checkpoint's tensors are safetensors or refused", CHECKPOINT,
             "    except SafetensorError as error:", "    except ZeroDivisionError as error:",
             "tests/security/test_poisoned_checkpoints.py -k any_place"),
    Mutation("22", "templates run in a sandbox", "quilate/tokenization/sandbox.py",
             "from jinja2.sandbox import ImmutableSandboxedEnvironment",
             "from jinja2 import Environment as ImmutableSandboxedEnvironment",
             "tests/security tests/tokenization/test_sandbox.py -k \"sandbox or escape or leave\""),
    Mutation("23", "a decompression bomb is bounded", "quilate/data/lines.py",
             "        if total > MAX_FILE_BYTES:\n", "        if False:\n",
             "tests/data/test_tables.py -k bomb"),
    Mutation("", "one run a folder", FILES,
             "        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "        pass\n",
             "tests/faults/test_killed_stage.py -k two_runs"),
]  # fmt: skip


def tried(mutation: Mutation, tree: Path) -> str:
    """What pytest says of the tree without the guard: the first failure, or "" when all stay green."""
    source = tree / mutation.file
    whole = source.read_text(encoding="utf-8")
    if whole.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.file}: {mutation.old!r} occurs {whole.count(mutation.old)} times, not once")
    source.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, output = pytest_in_fork(mutation.tests, tree)
    finally:
        source.write_text(whole, encoding="utf-8")
    if code == 0:
        return ""
    if code != 1:
        raise SystemExit(f"pytest could not run {mutation.tests}:\n{output[-4000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) \S+?::(\w+)", output, re.MULTILINE)
    assert failed is not None, output[-2000:]
    return f"`{failed[1]}`: {seen(output)}"


def pytest_in_fork(tests: str, tree: Path) -> tuple[int, str]:
    """The exit code and output of pytest, run in `tree` by a fork of this process, which has imported what takes
    seconds and nothing of quilate."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(tree)
            sys.path.insert(0, str(tree))
            os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
            sys.dont_write_bytecode = True
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)])
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def seen(output: str) -> str:
    """The failing assertion or error, on one line that fits a table."""
    text = next((line[1:].strip() for line in output.splitlines() if line.startswith("E  ")), "")
    return re.sub(r"\s+", " ", re.sub(r"/tmp/\S*/", "…/", text)).replace("|", "\\|").replace("`", "'")[:110]


def row(mutation: Mutation, result: str) -> str:
    return f"| {mutation.fault or '–'} | {mutation.guard} | `{mutation.file.removeprefix('quilate/')}` | {result} |"


def main(arguments: list[str]) -> None:
    wanted = [a for a in arguments if not a.startswith("--")]
    chosen = [m for m in MUTATIONS if not wanted or any(w in f"{m.fault} {m.guard} {m.file}" for w in wanted)]
    if "--missing" in arguments:
        known = shown(PAGE.read_text(encoding="utf-8"))
        chosen = [m for m in chosen if known.get(m.guard, NOT_RUN) == NOT_RUN]
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    results = {}
    with tempfile.TemporaryDirectory() as place:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, Path(place) / name)
        for mutation in chosen:
            results[mutation.guard] = tried(mutation, Path(place)) or ALL_GREEN
            print(row(mutation, results[mutation.guard]), flush=True)
            if "--write" in arguments:
                write(results)


def write(results: dict[str, str]) -> None:
    """Put results into the page's table; those of other mutations stay."""
    page = PAGE.read_text(encoding="utf-8")
    results = shown(page) | results
    rows = [row(mutation, results.get(mutation.guard, NOT_RUN)) for mutation in MUTATIONS]
    table = "\n".join(["| fault | guard taken away | in | what failed |", "| --- | --- | --- | --- |", *rows])
    text = re.sub(
        r"(<!-- mutations -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{table}\n{found[2]}",
        page,
        flags=re.DOTALL,
    )
    PAGE.write_text(text, encoding="utf-8")


def shown(page: str) -> dict[str, str]:
    """The results that the page has, by guard."""
    table = page.partition("<!-- mutations -->")[2].partition("<!-- end -->")[0]
    rows = [line.strip("| ").split(" | ", 3) for line in table.splitlines()[3:]]
    return {guard: result for _, guard, _, result in rows}


if __name__ == "__main__":
    main(sys.argv[1:])
