"""Model directories, templates and YAML from strangers: refused with exit code 3 or 2, and nothing of theirs is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quilate.errors import ConfigError, ModelError
from quilate.files import read_yaml
from quilate.models.load import load_causal, load_tokenizer, save_model
from quilate.models.source import check_model_directory, resolve_model
from quilate.models.tuning.lora import LoraConfig, add_lora


@pytest.fixture
def model(tmp_path: Path, llama_directory: Path) -> Path:
    return Path(shutil.copytree(llama_directory, tmp_path / "modelo"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that hostile content would create."""
    return tmp_path / "canario"


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    adapted = add_lora(load_causal(model, dtype=torch.float32), LoraConfig(rank=2), base=model)
    save_model(adapted, load_tokenizer(model), tmp_path / "adaptador")
    return tmp_path / "adaptador"


class Bomb:
    """Unpickling it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (self.canary, "w")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(directory: Path, match: str) -> ModelError:
    """Refused when it is resolved and when it is loaded, before any library opens it."""
    for attempt in (
        lambda: resolve_model(str(directory)),
        lambda: load_causal(directory, dtype=torch.float32),
    ):
        with pytest.raises(ModelError, match=match) as caught:
            attempt()
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl", "a.ckpt"])
def test_a_directory_of_pickles_only_is_refused_unopened(model: Path, canary: Path, name: str) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Bomb(canary)))
    refused(model, "only as pickles")
    assert not canary.exists()


def test_a_pickle_beside_safetensors_is_not_opened(model: Path, canary: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (model / name).write_bytes(pickle.dumps(Bomb(canary)))
    load_causal(resolve_model(str(model)).path, dtype=torch.float32)
    load_tokenizer(model)
    assert not canary.exists()


def test_a_pickled_adapter_behind_a_decoy_is_refused(adapter: Path, canary: Path) -> None:
    """peft looks for adapter_model.safetensors and then for adapter_model.bin; another safetensors file is no
    adapter."""
    (adapter / "adapter_model.safetensors").rename(adapter / "decoy.safetensors")
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    refused(adapter, r"adapter_model\.safetensors|pickles")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_remote_code_is_refused(model: Path, canary: Path, name: str) -> None:
    code = f"open({str(canary)!r}, 'w')\n"
    for module in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (model / module).write_text(code)
    edit(model / name, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"})
    assert "never" in refused(model, "auto_map").message
    assert not canary.exists()


def test_a_config_cannot_name_an_attention_kernel(model: Path, canary: Path) -> None:
    """transformers can fetch attention kernels from a hub name in a config; the caller's choice must win over it."""
    edit(model / "config.json", _attn_implementation_internal="evil/kernel", attn_implementation="evil/kernel")
    loaded = load_causal(model, dtype=torch.float32)
    assert loaded.config._attn_implementation == "sdpa"
    assert not canary.exists()


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.5, 0.999])
def test_a_safetensors_file_cut_short_is_refused(model: Path, share: float) -> None:
    path = model / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "model.safetensors" in refused(model, "cut short").message


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b'{"a": 1}', b'{"a": {"data_offsets": "x"}}', b"\xff\xfe{}", b"null", b"7"]
)
def test_a_nonsense_header_is_refused(model: Path, header: bytes) -> None:
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(model, r"model\.safetensors")


def test_a_missing_tensor_is_refused_not_drawn_at_random(model: Path) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_causal(model, dtype=torch.float32)


def test_a_tensor_of_another_shape_is_refused(model: Path) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.zeros(31)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_causal(model, dtype=torch.float32)


def test_no_config_no_model(model: Path, tmp_path: Path) -> None:
    (model / "config.json").unlink()
    refused(model, r"no config\.json")
    refused(tmp_path / "nada", "no model at|no config")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"'])
def test_a_broken_config_is_a_data_error(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    from quilate.errors import DataError

    with pytest.raises(DataError, match=r"config\.json") as caught:
        resolve_model(str(model))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_broken_tokenizer_is_a_model_error(model: Path, name: str, content: str) -> None:
    (model / name).write_text(content)
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(model)


@pytest.mark.parametrize("base", ["/no/such/model", "owner/on-the-hub", None, 7])
def test_an_adapter_without_its_base_is_refused(adapter: Path, base: object) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(ModelError, match="adapter") as caught:
        load_causal(adapter, dtype=torch.float32)
    assert caught.value.exit_code == 3


def test_an_adapter_that_is_its_own_base_is_refused(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(ModelError, match="adapter"):
        load_causal(adapter, dtype=torch.float32)


def test_an_adapter_of_an_unknown_kind_is_refused(adapter: Path) -> None:
    for kind in ("NO_SUCH_METHOD", None, 3):
        edit(adapter / "adapter_config.json", peft_type=kind)
        with pytest.raises(ModelError, match="adapter"):
            load_causal(adapter, dtype=torch.float32)


@pytest.mark.parametrize("size", [0, 3, 4, 24, 1000])
def test_a_gguf_cut_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("QUILATE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "modelo.gguf"
    path.write_bytes(tiny_gguf(tmp_path)[:size])
    with pytest.raises(ModelError, match="GGUF") as caught:
        resolve_model(str(path))
    assert caught.value.exit_code == 3
    assert not [p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]


def tiny_gguf(folder: Path) -> bytes:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(folder / "whole.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(97 + n) for n in range(20)])
    writer.add_tensor("token_embd.weight", np.zeros((20, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "whole.gguf").read_bytes()


def test_things_that_are_no_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "notas.txt").write_text("hola")
    with pytest.raises(ModelError, match=r"not a model directory nor a \.gguf"):
        resolve_model(str(tmp_path / "notas.txt"))
    with pytest.raises(ModelError, match="no model at"):
        resolve_model("./no/hay/nada")


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__['os'].system('touch CANARY') }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{% for k in ().__class__.__base__.__subclasses__() %}{{ k }}{% endfor %}",
    "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "{{ messages | attr('__class__') }}",
    "{% include '/etc/passwd' %}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_chat_template_cannot_leave_its_sandbox(model: Path, canary: Path, escape: str) -> None:
    from quilate.inference.chat import ChatSession

    (model / "chat_template.jinja").write_text(escape.replace("CANARY", str(canary)))
    with pytest.raises(ConfigError) as caught:
        conversation = ChatSession(model)
        conversation.messages.append({"role": "user", "content": "hola"})
        conversation.prompt()
    assert caught.value.exit_code == 2
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch CANARY']",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
        "a: !!python/object/new:builtins.open ['CANARY', 'w']",
        "!!python/object/apply:builtins.open ['CANARY', 'w']",
        "a: !cualquiera {b: 1}",
    ],
)
def test_tagged_yaml_is_refused(tmp_path: Path, canary: Path, text: str) -> None:
    (tmp_path / "receta.yaml").write_text(text.replace("CANARY", str(canary)))
    with pytest.raises(ConfigError, match=r"receta\.yaml") as caught:
        read_yaml(tmp_path / "receta.yaml")
    assert caught.value.exit_code == 2
    assert not canary.exists()


def test_a_checked_directory_passes(llama_directory: Path) -> None:
    """The control: what the tests above alter is accepted unaltered."""
    check_model_directory(llama_directory)
    assert resolve_model(str(llama_directory)).path == llama_directory.resolve()
