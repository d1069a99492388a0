"""Models in and out: folders that transformers wrote are read by jettrain with equal outputs and gradients, and folders
that jettrain wrote are read by transformers, at shapes of every kind; hybrids against the twin in jet_twin.py.

usage: parity.py JETTRAIN WORK_FOLDER
"""
import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from transformers.utils import logging

from jet_twin import forward
from make_golden import golden, golden_of_folder

logging.disable_progress_bar()
program, work = sys.argv[1], sys.argv[2]


def run(*arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"jettrain {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


def verify(folder, arrays, what):
    path = folder + ".golden.safetensors"
    save_file(arrays, path)
    lines = run("verify", folder, path, "--tolerance", "1e-5", "--gradient-tolerance", "1e-4").splitlines()
    print(f"{what}: " + "; ".join(line for line in lines if "largest error" in line))


QWEN = {
    # name: (changes of the configuration, dtype, batch, tokens)
    "tied-f32": ({}, torch.float32, 2, 97),
    "untied-bf16-one-token": ({"tie_word_embeddings": False}, torch.bfloat16, 1, 1),
    "f16-three-heads": ({"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48}, torch.float16, 3, 5),
    "five-heads-bf16": ({"num_attention_heads": 5, "num_key_value_heads": 5, "hidden_size": 70}, torch.bfloat16, 1, 64),
    "wide-heads-theta": ({"head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, torch.float32, 1, 65),
    "window": ({"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, torch.float32, 2, 33),
    "window-longer-than-text": ({"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 0}, torch.float32, 1, 9),
}

for name, (changes, dtype, batch, tokens) in QWEN.items():
    torch.manual_seed(len(name))
    base = dict(vocab_size=211, hidden_size=64, intermediate_size=120, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, tie_word_embeddings=True)
    model = Qwen2ForCausalLM(Qwen2Config(**(base | changes)))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.08) if p.dim() > 1 else p.add_(torch.randn_like(p) * 0.1)
    folder = f"{work}/{name}"
    model.to(dtype).save_pretrained(folder, max_shard_size="40KB" if "bf16" in name else "5GB")
    # Of a single token the softmax is 1 and its gradients are nothing but rounding.
    verify(folder, golden_of_folder(folder, batch, tokens, seed=1, gradients=tokens > 1), name)
    for type in ["bfloat16", "float32"]:
        exported = f"{folder}-{type}"
        run("checkpoint", "export", folder, "--output", exported, "--dtype", type)
        back = AutoModelForCausalLM.from_pretrained(exported, dtype="auto")
        assert back.dtype == getattr(torch, type), (back.dtype, type)
        expected = model.to(dtype).state_dict()
        for key, value in back.state_dict().items():
            # bfloat16 by rounding to nearest even, as torch rounds.
            assert torch.equal(value, expected[key].to(getattr(torch, type))), key
        verify(exported, golden_of_folder(exported, batch, tokens, seed=2, gradients=False), f"{name} exported as {type}")

JET = {
    "jet-small-values": ({"num_heads": 3, "head_dim": 10, "expand_v": 0.8}, {}, 1, 65),
    "jet-one-token": ({"num_heads": 1, "head_dim": 16, "expand_v": 2.0}, {"tie_word_embeddings": False}, 1, 1),
    "jet-two-tokens": ({"num_heads": 2, "head_dim": 24, "expand_v": 1.3333333333}, {}, 3, 2),
    "jet-odd": ({"num_heads": 5, "head_dim": 7, "expand_v": 2.2857142857}, {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 50}, 2, 131),
    "jet-untied-63": ({"num_heads": 4, "head_dim": 32, "expand_v": 2.0}, {"tie_word_embeddings": False, "num_key_value_heads": 4}, 1, 63),
}

with open(os.path.dirname(os.path.abspath(__file__)) + "/../Fixtures/all-mixers.json") as file:
    ALL = json.load(file)
MIXERS = ["gla", "retnet", "mamba2", "deltanet", "gdn", "rwkv7"]
for kind in MIXERS:
    # Each linear mixer alone, in two layers, so that its gradients are seen by themselves.
    JET[kind] = (ALL["efficient_attention_config"]["jet"], ALL | {"num_hidden_layers": 2, "layer_types": [kind, kind]}, 2, 75)
JET["all-mixers"] = (ALL["efficient_attention_config"]["jet"], ALL, 1, 40)

for name, (jet, changes, batch, tokens) in JET.items():
    config = dict(model_type="jet_nemotron", vocab_size=150, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                  num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6, torch_dtype="float32",
                  tie_word_embeddings=True, layer_types=["jet", "swa", "attn", "jet"],
                  efficient_attention_config={"jet": {"norm_eps": "1e-5", "conv_size": 4, "dconv_generator_reduction": 4} | jet,
                                              "swa": {"window_size": 9}}) | changes
    folder = f"{work}/{name}"
    with open(folder + ".json", "w") as file:
        json.dump(config, file)
    run("convert", "--config", folder + ".json", "--output", folder, "--seed", "3")
    weights = load_file(folder + "/model.safetensors")
    torch.manual_seed(5)
    for key, w in weights.items():
        # Away from the initial values, of which many are zero.
        w += torch.randn_like(w) * (0.1 if w.dim() == 1 else 0.05)
    save_file(weights, folder + "/model.safetensors", metadata={"format": "pt"})
    weights = {key: w.requires_grad_() for key, w in weights.items()}
    arrays = golden(lambda ids: forward(ids, weights, config), weights.items(), config["vocab_size"], batch, tokens, 1, tokens > 1)
    verify(folder, arrays, name)
print(f"{len(QWEN)} shapes of qwen2 and {len(JET)} of jet_nemotron agree")
