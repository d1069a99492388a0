"""Writes what a reference implementation computes, for `jettrain verify` (docs/verify.md): transformers' own model, or
with --trust-remote-code the modelling code that lies in the folder (NVlabs' for jet_nemotron).

usage: make_golden.py MODEL_FOLDER OUT.safetensors [--batch 2] [--tokens 97] [--seed 0] [--no-gradients]
"""
import argparse

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def golden(forward, parameters, vocabulary, batch, tokens, seed, gradients):
    """`forward(ids)` gives (logits, [hidden.0, …]); hidden.i is the input of layer i, the last is after the norm."""
    ids = torch.randint(0, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(seed))
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    if tokens == 1:
        labels[:] = ids
    logits, hidden = forward(ids)
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100)
    arrays = {"input_ids": ids, "labels": labels, "logits": logits, "loss": loss.reshape(1)}
    arrays |= {f"hidden.{i}": x for i, x in enumerate(hidden)}
    if gradients:
        loss.backward()
        arrays |= {f"grad.{name}": p.grad for name, p in parameters if p.grad is not None}
    return {name: x.detach().clone().contiguous() for name, x in arrays.items()}


def golden_of_folder(folder, batch, tokens, seed, gradients=True, trust=False):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=trust
    ).eval()

    def forward(ids):
        out = model(ids, output_hidden_states=True, use_cache=False)
        return out.logits, out.hidden_states

    names = [(name, p) for name, p in model.named_parameters()]
    return golden(forward, names, model.config.vocab_size, batch, tokens, seed, gradients)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=97)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-gradients", action="store_true")
    parser.add_argument("--trust-remote-code", action="store_true")
    o = parser.parse_args()
    save_file(golden_of_folder(o.model, o.batch, o.tokens, o.seed, not o.no_gradients, o.trust_remote_code), o.out)
