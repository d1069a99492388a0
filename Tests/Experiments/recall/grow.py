"""Makes a model deeper without changing what it computes: its layers go to places drawn by a seed, the layers between
begin as the identity (o_proj and down_proj zero). Usage: grow.py FOLDER LAYERS SEED OUTPUT [AVOIDED PLACE…]. Standard
library only."""

import json
import os
import random
import re
import struct
import sys

source, layers, seed, output = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
config = json.load(open(source + "/config.json"))
old = config["num_hidden_layers"]
chosen = random.Random(seed)
free = [place for place in range(layers) if str(place) not in sys.argv[5:]]
places = sorted(chosen.sample(free, old))

with open(source + "/model.safetensors", "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    data = file.read()
header.pop("__metadata__", None)
arrays = {}
for name, entry in header.items():
    start, end = entry["data_offsets"]
    match = re.match(r"model\.layers\.(\d+)\.(.*)", name)
    if not match:
        arrays[name] = (entry, data[start:end])
        continue
    layer, rest = int(match[1]), match[2]
    arrays[f"model.layers.{places[layer]}.{rest}"] = (entry, data[start:end])
    if layer > 0:
        continue
    count = (end - start) // 4
    for place in set(range(layers)) - set(places):
        if rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight") or rest.endswith("bias"):
            values = bytes(end - start)
        elif rest.endswith("norm.weight") or "layernorm" in rest:
            values = struct.pack("<f", 1.0) * count
        else:
            values = struct.pack(f"<{count}f", *(chosen.gauss(0, config["initializer_range"]) for _ in range(count)))
        arrays[f"model.layers.{place}.{rest}"] = (entry, values)

os.makedirs(output, exist_ok=True)
offset, table, body = 0, {}, b""
for name in sorted(arrays):
    entry, values = arrays[name]
    assert entry["dtype"] == "F32", name
    table[name] = dict(entry, data_offsets=[offset, offset + len(values)])
    offset += len(values)
    body += values
text = json.dumps(table).encode()
text += b" " * (-len(text) % 8)
with open(output + "/model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + body)
config["num_hidden_layers"] = layers
json.dump(config, open(output + "/config.json", "w"), indent=2)
print("layers", *places, "of", layers, "are those of", source)
