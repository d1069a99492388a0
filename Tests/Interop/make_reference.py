"""What transformers computes of a GGUF file, dequantised to float32: log-probabilities of real texts and the likeliest next
tokens, for RealModelTests. The ids are jettrain's own, since transformers' tokenizer made of a GGUF file may be wrong.

usage: make_reference.py MODEL.gguf JETTRAIN OUT.json TEXT_FILE…
"""
import json
import os
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM


def main():
    path, program, out, files = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    model = AutoModelForCausalLM.from_pretrained(
        os.path.dirname(path) or ".", gguf_file=os.path.basename(path), dtype=torch.float32).eval()
    texts = []
    for file in files:
        with open(file, "rb") as source:
            text = source.read(1600).decode("utf-8", errors="ignore")
        ids = subprocess.run([program, "tokens", "encode", "--tokenizer", path], input=text.encode(), check=True,
                             capture_output=True).stdout
        ids = [model.config.bos_token_id] + [int(i) for i in ids.split()][:383]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        texts.append({"text": text, "ids": ids, "argmax": logs.argmax(-1).tolist(),
                      "logprobs": [logs[i, ids[i + 1]].item() for i in range(len(ids) - 1)]})
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"model": os.path.basename(path), "texts": texts}, file)


main()
