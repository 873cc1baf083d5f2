"""Generation against transformers' own, and what batching, slots and stopping must not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import CONTEXT, tiny_falcon, tiny_gpt2, tiny_llama
from transformers import PreTrainedModel

from quilate.errors import DataError
from quilate.inference.generation import Generator
from quilate.inference.sampling import Sampling

LENGTHS = (7, 1, 30, 12, 30, 3)


def prompts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 384, (n,), generator=generator).tolist() for n in lengths]


def by_transformers(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=0, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_falcon, lambda: tiny_falcon(alibi=True)])
@pytest.mark.parametrize("batch", [64, 2, 1])
def test_greedy_equals_transformers(make: Callable[[], PreTrainedModel], batch: int) -> None:
    """Prompts of all lengths, in more and fewer slots than there are prompts; the model is left as it was.

    Falcon does not ask transformers' registry for its attention.
    """
    model = make().eval()
    wanted = [by_transformers(model, prompt, 20) for prompt in prompts()]
    attention = model.config._attn_implementation
    assert Generator(model, stop=(0,), batch=batch).generate(prompts(), max_new_tokens=20) == wanted
    assert model.config._attn_implementation == attention
    assert [by_transformers(model, prompt, 20) for prompt in prompts()] == wanted


def test_it_stops_at_a_stop_token_and_includes_it() -> None:
    model = tiny_llama().eval()
    free = Generator(model, stop=()).generate(prompts(), max_new_tokens=20)
    assert all(len(tokens) == 20 for tokens in free)
    stop = free[2][4]
    for tokens, whole in zip(Generator(model, stop=(stop,)).generate(prompts(), max_new_tokens=20), free, strict=True):
        assert tokens == (whole[: whole.index(stop) + 1] if stop in whole else whole)


def test_the_models_own_end_is_the_default() -> None:
    model = tiny_llama()
    model.generation_config.eos_token_id = [0, 5]
    assert Generator(model).stop == {0, 5}


def test_a_sequence_ends_where_the_context_does() -> None:
    prompt = prompts((CONTEXT - 3,))
    assert len(Generator(tiny_llama(), stop=()).generate(prompt, max_new_tokens=50)[0]) == 3


@pytest.mark.parametrize(("bad", "said"), [([1] * CONTEXT, f"prompt 2 of 2 has {CONTEXT} tokens"), ([], "is empty")])
def test_an_impossible_prompt_is_refused(bad: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Generator(tiny_llama()).generate([[1], bad], max_new_tokens=1)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_p=0.9)])
def test_a_draw_does_not_depend_on_the_batch_around_it(sampling: Sampling) -> None:
    """fp32, where batches differ by roundings only: alone, in two slots and all together, the same tokens."""
    model = tiny_llama()
    runs = [
        Generator(model, stop=(), batch=batch).generate(prompts(), max_new_tokens=15, sampling=sampling, seed=3)
        for batch in (1, 2, 64)
    ]
    assert runs[0] == runs[1] == runs[2]
    other = Generator(model, stop=()).generate(prompts(), max_new_tokens=15, sampling=sampling, seed=4)
    assert other != runs[0]


def test_equal_prompts_are_read_once_and_continued_differently() -> None:
    model = tiny_llama()
    generator = Generator(model, stop=())
    passes: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_args: passes.append(_args[2].shape[-2]))
    prompt = prompts((30,))[0]
    drawn = generator.generate([prompt] * 8, max_new_tokens=10, sampling=Sampling(1.0))
    assert passes.count(30) == 1
    assert len({tuple(tokens) for tokens in drawn}) > 4


def test_the_stream_gives_tokens_as_they_come_and_then_the_end() -> None:
    model = tiny_llama()
    wanted = Generator(model, stop=()).generate(prompts(), max_new_tokens=5)
    seen: list[list[int]] = [[] for _ in LENGTHS]
    ended: set[int] = set()
    for row, token in Generator(model, stop=()).stream(prompts(), max_new_tokens=5):
        assert row not in ended
        if token is None:
            ended.add(row)
        else:
            seen[row].append(token)
    assert seen == wanted
    assert ended == set(range(len(LENGTHS)))


def test_bf16_follows_its_own_forward_pass() -> None:
    """Each greedy token is among the near-best of a plain forward pass over prompt and answer."""
    model = tiny_llama(dtype=torch.bfloat16).eval().requires_grad_(False)
    answers = Generator(model, stop=()).generate(prompts(), max_new_tokens=20)
    for prompt, answer in zip(prompts(), answers, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        best = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        assert float((best - chosen).max()) <= 0.02 * float(logits.abs().max())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampling_keeps_what_a_forward_pass_says_of_its_tokens(temperature: float) -> None:
    model = tiny_llama().eval()
    generator, sampling = Generator(model, stop=(5,), batch=2), Sampling(temperature)
    tokens, log_probs = generator.sample(prompts(), max_new_tokens=12, sampling=sampling, seed=3)
    assert tokens == generator.generate(prompts(), max_new_tokens=12, sampling=sampling, seed=3)
    plain = tiny_llama().eval()
    for prompt, row, kept in zip(prompts(), tokens, log_probs, strict=True):
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
        exact = (logits.double() / temperature).log_softmax(-1)[torch.arange(len(row)), row]
        assert kept == pytest.approx(exact.tolist(), abs=1e-4)
