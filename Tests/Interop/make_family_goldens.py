"""Small models of random weights of what the shared goldens do not have, and what transformers' own classes compute of them:
Mistral's windows, `linear` and `yarn` scaling of the rotary angles, biases of Llama, a query scale of Gemma's own.

usage: make_family_goldens.py OUTPUT_FOLDER
"""
import os
import sys

import torch
from make_golden import golden_of_folder
from safetensors.torch import save_file
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config
from transformers import AutoModelForCausalLM

SHAPE = dict(vocab_size=48, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None)


def rope(kind, theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


MODELS = {
    "mistral": MistralConfig(**SHAPE, sliding_window=9, tie_word_embeddings=False),
    "linear": LlamaConfig(**SHAPE, tie_word_embeddings=True, attention_bias=True,
                          rope_parameters=rope("linear", factor=4.0)),
    "yarn": Qwen3Config(**SHAPE, tie_word_embeddings=True,
                        rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "yarn-attention": LlamaConfig(**SHAPE, tie_word_embeddings=True,
                                  rope_parameters=rope("yarn", factor=8.0, original_max_position_embeddings=16,
                                                       attention_factor=1.3, beta_fast=16, beta_slow=2)),
    "gemma-scale": Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=21, sliding_window=7,
                                    layer_types=["sliding_attention", "full_attention"],
                                    rope_parameters={"full_attention": rope("linear", 1e6, factor=8.0),
                                                     "sliding_attention": rope("default")}),
}


def main():
    for name, config in MODELS.items():
        folder = f"{sys.argv[1]}/{name}"
        os.makedirs(folder, exist_ok=True)
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            # Wide enough that every part shows.
            torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(folder)
        for file in ("generation_config.json",):
            if os.path.exists(f"{folder}/{file}"):
                os.remove(f"{folder}/{file}")
        save_file(golden_of_folder(folder, 2, 45, 1), f"{folder}/golden.safetensors")


main()
