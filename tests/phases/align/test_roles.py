"""Policy, reference, value and reward models: who they are, that they share one base, and their log-probabilities."""

from __future__ import annotations

import pytest
import torch
from judged import Folder
from online_support import asked, online
from transformers import AutoModelForCausalLM

from quilate.data.packing import pack
from quilate.models.reward import load_reward_model
from quilate.phases.align.online import Online
from quilate.phases.align.rollouts import Rollouts, example_of
from quilate.phases.stage import model_of

TEMPERATURE = 0.7


def of_transformers(folder: Folder, rollouts: Rollouts) -> torch.Tensor:
    """[B, T] the base's log-probabilities of the completions at the temperature, one at a time."""
    model = AutoModelForCausalLM.from_pretrained(model_of(folder.root / "base")).eval()
    result = torch.zeros(rollouts.mask.shape)
    written = rollouts.completions
    for row, (prompt, tokens) in enumerate(zip(written.prompts, written.tokens, strict=True)):
        ids = torch.tensor([[*prompt.tokens, *tokens]])
        with torch.no_grad():
            log_probs = (model(input_ids=ids).logits[0] / TEMPERATURE).log_softmax(-1)
        places = range(len(prompt.tokens) - 1, ids.shape[1] - 1)
        result[row, : len(tokens)] = torch.stack([log_probs[at, ids[0, at + 1]] for at in places])
    return result


def disturb(part: Online) -> None:
    """As training would: the policy's adapter no longer does nothing."""
    with torch.no_grad():
        for name, parameter in part.roles.trained.named_parameters():
            if "lora_B.default" in name or (part.roles.adapters is None and name.startswith("policy")):
                parameter.add_(0.05)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_policy_starts_as_its_reference_and_leaves_it_alone(folder: Folder, method: str) -> None:
    part = online(asked(folder), "ppo", method=method, temperature=TEMPERATURE)
    prompts = part.prompts[:6]
    before = part.rollouts(prompts, "a")
    assert torch.equal(before.log_probs, before.reference)  # the KL is 0, not nearly
    torch.testing.assert_close(before.reference, of_transformers(folder, before), atol=1e-4, rtol=1e-4)
    assert before.values is not None and not before.values.any()
    disturb(part)
    after = part.rollouts(prompts, "a")
    torch.testing.assert_close(after.reference, of_transformers(folder, after), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after.log_probs, after.reference, atol=1e-2)
    assert after.completions.tokens != before.completions.tokens  # it is the policy that writes


def test_a_reward_stages_adapter_judges_on_the_policys_own_base(folder: Folder) -> None:
    folder.stage("reward", "juez", method="lora", epochs=1)
    judge = {"juez": {"kind": "stage", "on": "juez", "weight": 0.5}}
    part = online(folder, "ppo", rewards=judge, format="chat", inputs={"reward:juez": folder.root / "juez"})
    roles = part.roles
    assert roles.shared == ("juez",) and roles.value is not None
    rollouts = part.rollouts(part.prompts[:4], "a")
    whole = load_reward_model(folder.root / "juez" / "model", dtype=torch.float32)
    for row, (prompt, tokens) in enumerate(zip(rollouts.completions.prompts, rollouts.completions.tokens, strict=True)):
        packed = pack([example_of("x", prompt, tokens)])
        with torch.no_grad():
            expected = float(whole(packed.input_ids, packed.position_ids, packed.lengths))
            values = roles.value(packed)
        assert float(rollouts.rewards["juez"][row]) == pytest.approx(expected, abs=1e-4)
        # The value model starts as the judge times its weight: before the last token it says what the judge says of all
        # but that one.
        if len(tokens) > 1:
            shorter = pack([example_of("x", prompt, tokens[:-1])])
            with torch.no_grad():
                judged = float(roles.rewards["juez"](shorter))
            assert float(values[-1]) == pytest.approx(0.5 * judged, abs=1e-4)


def test_one_base_is_in_memory_with_lora(folder: Folder) -> None:
    folder.stage("reward", "juez", method="lora", epochs=1)
    judge = {"juez": {"kind": "stage", "on": "juez"}}
    part = online(folder, "ppo", rewards=judge, format="chat", inputs={"reward:juez": folder.root / "juez"})
    encoders = [part.roles.policy, part.roles.reference, part.roles.value.role, part.roles.rewards["juez"].role]  # type: ignore[union-attr]
    assert len({id(role.encoder.divided.body) for role in encoders}) == 1
    trained = {name for name, p in part.roles.trained.named_parameters() if p.requires_grad}
    assert trained and all(".default." in n or ".value." in n or n.startswith("value_head") for n in trained)
    part.rollouts(part.prompts[:2], "a")  # every role has had its turn; the same are trainable
    assert trained == {name for name, p in part.roles.trained.named_parameters() if p.requires_grad}
    saved = part.roles.finished_model()
    assert list(saved.peft_config) == ["default"]


def test_a_judge_of_another_base_stands_beside_and_is_said_to(folder: Folder) -> None:
    folder.stage("reward", "juez", method="full", epochs=1)
    judge = {"juez": {"kind": "stage", "on": "juez"}}
    part = online(folder, "grpo", rewards=judge, format="chat", inputs={"reward:juez": folder.root / "juez"})
    assert part.roles.shared == () and part.roles.value is None
    assert any("a model of its own" in note for note in folder.notes)
    assert part.rollouts(part.prompts[:2], "a").rewards["juez"].shape == (2,)
