"""Writes Tests/Fixtures/golden/{mamba2,gdn}-layer: models of one layer whose mixer is transformers' own code (Mamba2Mixer;
Qwen3-Next's Gated DeltaNet), the little around it from jet_twin.py; weights under jettrain's names, outputs and gradients.

usage: make_layer_fixtures.py JETTRAIN FIXTURE_FOLDER
"""
import json
import subprocess
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextGatedDeltaNet

import jet_twin
from make_golden import golden

program, target = sys.argv[1], sys.argv[2]


def mamba2(p, config, c):
    layer = Mamba2Mixer(
        Mamba2Config(hidden_size=config["hidden_size"], num_heads=c["num_heads"], head_dim=c["head_dim"],
                     state_size=c["state_size"], n_groups=c["n_groups"], conv_kernel=4, chunk_size=32,
                     expand=c["num_heads"] * c["head_dim"] // config["hidden_size"], use_bias=False,
                     layer_norm_epsilon=1e-5, hidden_act="silu"), layer_idx=0)
    return lambda x: torch.func.functional_call(layer, p, (x,))


def gdn(p, config, c):
    heads, keys, values = c["num_heads"], c["head_dim"], round(c["head_dim"] * c["expand_v"])
    layer = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(hidden_size=config["hidden_size"], linear_num_value_heads=heads, linear_num_key_heads=heads,
                        linear_key_head_dim=keys, linear_value_head_dim=values, linear_conv_kernel_dim=4,
                        hidden_act="silu", rms_norm_eps=1e-5), layer_idx=0)

    def by_head(*names):
        # Qwen3-Next stacks, head by head, what are projections of their own here.
        rows = [p[n + "_proj.weight"].reshape(heads, -1, config["hidden_size"]) for n in names]
        return torch.cat(rows, 1).reshape(-1, config["hidden_size"])

    weights = {
        "in_proj_qkvz.weight": by_head("q", "k", "v", "g"), "in_proj_ba.weight": by_head("b", "a"),
        "conv1d.weight": torch.cat([p[n + "_conv1d.weight"] for n in "qkv"]), "dt_bias": p["dt_bias"],
        "A_log": p["A_log"], "norm.weight": p["o_norm.weight"], "out_proj.weight": p["o_proj.weight"],
    }
    return lambda x: torch.func.functional_call(layer, weights, (x,))


for kind, make, settings in [
    ("mamba2", mamba2, {"num_heads": 6, "head_dim": 8, "state_size": 14, "n_groups": 2, "norm_eps": 1e-5}),
    ("gdn", gdn, {"num_heads": 3, "head_dim": 10, "expand_v": 1.6, "norm_eps": 1e-5}),
]:
    folder = f"{target}/{kind}-layer"
    config = dict(model_type="jet_nemotron", vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=1,
                  num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6, rope_theta=1e6, torch_dtype="float32",
                  tie_word_embeddings=True, layer_types=[kind], efficient_attention_config={kind: settings})
    with open("/tmp/layer.json", "w") as file:
        json.dump(config, file)
    subprocess.run([program, "convert", "--config", "/tmp/layer.json", "--output", folder], check=True)
    weights = load_file(folder + "/model.safetensors")
    torch.manual_seed(7)
    for w in weights.values():
        w += torch.randn_like(w) * (0.2 if w.dim() == 1 else 0.1)
    save_file(weights, folder + "/model.safetensors", metadata={"format": "pt"})
    weights = {name: w.requires_grad_() for name, w in weights.items()}
    jet_twin.linear = lambda x, p, c, kind: make(p, config, c)(x)
    arrays = golden(lambda ids: jet_twin.forward(ids, weights, config), weights.items(), 64, 2, 75, 1, True)
    save_file(arrays, folder + "/golden.safetensors", metadata={"from": f"transformers {transformers.__version__}"})
    print(subprocess.run([program, "verify", folder, folder + "/golden.safetensors"], capture_output=True, text=True).stdout)
