"""GGUF files made by the `gguf` package: one with an array of every type and what the package makes of each; the Llama of
Tests/Fixtures/golden/families/linear with its rows in llama.cpp's order and a tokenizer of the `gpt2` kind; the Qwen3 of
families/yarn, and the Llama of families/yarn-attention with bounds and a factor of its own.

usage: make_gguf_fixtures.py FIXTURES_FOLDER
"""
import json
import math
import os
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file, save_file

TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K]


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types(folder):
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(folder + "/types.gguf", "none")
    expected = {}
    for kind in TYPES:
        _, size = gguf.GGML_QUANT_SIZES[kind]
        if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
            # The package reads these and does not write them: random bits, with scales that are numbers.
            data = random.integers(0, 256, (3, size), dtype=np.uint8)
            for block in data:
                scales = (random.normal(size=2) * 0.01).astype(np.float16).view(np.uint8)
                if kind == Type.Q6_K:
                    block[208:210] = scales[:2]
                else:
                    block[0:4] = scales
        else:
            data = gguf.quants.quantize(random.normal(size=(3, 256)).astype(np.float32), kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(3, 256)
    finish(writer)
    save_file(expected, folder + "/types.safetensors")


def open_model(fixtures, family, architecture, path):
    """The model of a golden folder, its shape and arrays in a writer; `finish` still has to be called."""
    source = fixtures + "/golden/families/" + family
    with open(source + "/config.json", encoding="utf-8") as file:
        config = json.load(file)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, array in load_file(source + "/model.safetensors").items():
        stem, suffix = name.rsplit(".", 1)
        for part, heads in ((".q_proj", config["num_attention_heads"]), (".k_proj", config["num_key_value_heads"])):
            if architecture == gguf.MODEL_ARCH.LLAMA and stem.endswith(part):
                # llama.cpp rotates neighbouring channels, transformers halves.
                shape = (heads, 2, array.shape[0] // heads // 2) + array.shape[1:]
                array = array.reshape(shape).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(stem) + "." + suffix, np.ascontiguousarray(array))
    return writer, config["rope_parameters"]


def llama(fixtures, folder):
    writer, rope = open_model(fixtures, "linear", gguf.MODEL_ARCH.LLAMA, folder + "/llama.gguf")
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope["factor"])
    with open(fixtures + "/tokenizers/smollm/tokenizer.json", encoding="utf-8") as file:
        tokenizer = json.load(file)
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if id in special else 1 for id in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    finish(writer)


def yarn(fixtures, folder):
    writer, rope = open_model(fixtures, "yarn", gguf.MODEL_ARCH.QWEN3, folder + "/yarn.gguf")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    finish(writer)
    writer, rope = open_model(fixtures, "yarn-attention", gguf.MODEL_ARCH.LLAMA, folder + "/yarn-attention.gguf")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    # What llama.cpp multiplies onto the factor's own 0.1 ln(factor) + 1.
    writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"] / (0.1 * math.log(rope["factor"]) + 1))
    finish(writer)


def main():
    fixtures = sys.argv[1]
    folder = fixtures + "/gguf"
    os.makedirs(folder, exist_ok=True)
    types(folder)
    llama(fixtures, folder)
    yarn(fixtures, folder)


main()
