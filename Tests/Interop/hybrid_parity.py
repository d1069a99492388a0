"""Loads exported hybrids in transformers with the modelling code beside them and compares logits with jettrain's, by way of
`jettrain verify` on what transformers computes; then lets `generate` answer with and without the caches. Before that, noise goes
on every parameter of the new mixers, so that what begins as zeros, ones or identities takes part.

usage: hybrid_parity.py JETTRAIN TEACHER FOLDER [--layers 3,11,20] [--mixers jet,gdn,gla,mixed]
"""
import argparse
import json
import os
import shutil
import subprocess
import sys

import torch
from make_golden import golden_of_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def stir(folder):
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        types = json.load(file)["layer_types"]
    arrays = load_file(f"{folder}/model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name in sorted(arrays):
        part = name.split(".")
        if "self_attn" in part and types[int(part[2])] not in ("attn", "swa", "full_attention", "sliding_attention"):
            arrays[name] += 0.01 * torch.randn(arrays[name].shape, generator=generator)
    save_file(arrays, f"{folder}/model.safetensors", metadata={"format": "pt"})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("jettrain")
    parser.add_argument("teacher")
    parser.add_argument("folder")
    parser.add_argument("--layers", default="3,11,20")
    parser.add_argument("--mixers", default="jet,gdn,gla,mixed")
    o = parser.parse_args()
    failed = 0
    for mixer in o.mixers.split(","):
        folder = f"{o.folder}/{mixer}"
        shutil.rmtree(folder, ignore_errors=True)
        if mixer == "mixed":
            # One layer after the other gets a mixer of its own: those that begin from the attention they replace. (Random ones
            # in a pretrained model make it so uneven that float32 itself is 2.5e-5 from float64.)
            source, kinds = o.teacher, ["jet", "gdn", "gla", "retnet", "deltanet"]
            for number, kind in enumerate(kinds):
                target = folder if number == len(kinds) - 1 else f"{folder}-{number}"
                shutil.rmtree(target, ignore_errors=True)
                subprocess.run([o.jettrain, "convert", source, "--mixer", kind, "--layers", str(5 * number + 1), "--dtype",
                                "float32", "--output", target], check=True, capture_output=True)
                if source != o.teacher:
                    shutil.rmtree(source)
                source = target
        else:
            subprocess.run([o.jettrain, "convert", o.teacher, "--mixer", mixer, "--layers", o.layers, "--dtype", "float32",
                            "--output", folder], check=True, capture_output=True)
        stir(folder)
        golden = golden_of_folder(folder, 1, 48, 5, gradients=False, trust=True)
        # What the bound is of. States on the way to them are nearer, but for the last two of a pretrained model whose layers
        # were replaced and not trained: those cancel what the model piled up before, to 2.5e-5.
        golden = {name: golden[name] for name in ("input_ids", "logits")}
        save_file(golden, f"{folder}/golden.safetensors")
        verified = subprocess.run([o.jettrain, "verify", folder, f"{folder}/golden.safetensors"], capture_output=True, text=True)
        print(mixer, verified.stdout.strip().split("\n")[-1], verified.stderr.strip(), flush=True)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
        ids = golden["input_ids"][:, :12]
        cached = model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
        whole = ids
        with torch.no_grad():
            for _ in range(cached.shape[1] - ids.shape[1]):
                whole = torch.cat([whole, model(whole).logits[:, -1:].argmax(-1)], 1)
        same = torch.equal(cached, whole)
        print(mixer, "generate", "equals one pass over everything" if same else f"differs: {cached} {whole}")
        again = f"{folder}-again"
        model.save_pretrained(again)
        print(mixer, "saved again:", sorted(os.listdir(again)))
        shutil.rmtree(again)
        failed += verified.returncode != 0 or not same
    sys.exit(1 if failed else 0)


main()
