#!/usr/bin/env bash
# Does a learned placement keep what a teacher needs? A teacher that solves associative recall, its search, and students
# of the learned, the uniform, random placements and none, over seeds. See docs/search.md. Usage:
#   JETTRAIN=.build/release/jettrain Tests/Experiments/recall/run.sh FOLDER SEED…     (about 20 minutes a seed on one core)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
jettrain=$(realpath "${JETTRAIN:-.build/release/jettrain}")
folder=$1
shift
mkdir -p "$folder"
cp "$here"/*.json "$here"/*.yaml "$folder"
cd "$folder"
recall=(--items 6 --keys 16 --queries 24)

error() { # share of wrong answers of a model, on texts of a seed that nothing else uses
  "$jettrain" eval "$1" --objective accuracy=recall "${recall[@]}" --sequences 256 --seed 99 |
    sed 's/.*"accuracy=recall":\([^,}]*\).*/\1/' | awk '{print 1 - $1}'
}

if [ ! -e data/recall/manifest.json ]; then
  for items in 2 4 6 8; do
    "$jettrain" tokens make-questions --task recall --items $items --keys 16 --queries 24 --count 30000 --seed $((items / 2)) \
      --output part$items.jsonl
  done
  cat part2.jsonl part4.jsonl part8.jsonl part6.jsonl | shuf --random-source=<(yes) >texts.jsonl
  "$jettrain" tokens build --output data/recall --pieces pieces --shard-tokens 500000 texts.jsonl
fi

for seed in "$@"; do
  base=seed$seed
  # The teacher: two layers learn recall fast, twelve slowly; so two are trained and put into twelve at places that the
  # seed draws, the others beginning as the identity, and all twelve are trained on. The uniform placement (3 and 9) is
  # left out of the draw: a teacher that sits there by chance would have nothing to tell.
  "$jettrain" pretrain --job teacher.yaml --set train.seed=$seed --run-dir $base/shallow
  python3 "$here/grow.py" $base/shallow/model 12 "$seed" $base/grown 3 9 | tee $base/places.txt
  "$jettrain" pretrain --job teacher.yaml --set model.student=$base/grown --set train.seed=$((seed + 100)) \
    --set train.tokens=3M --set train.lr=3e-4 --set train.min_lr=1e-5 --run-dir $base/teacher
  teacher=$base/teacher/model
  # Search.
  "$jettrain" distill --job supernet.yaml --set model.teacher=$teacher --set train.seed=$seed --run-dir $base/supernet
  "$jettrain" search placement $base/supernet/model --full 2 --strategy beam --strategy greedy --strategy random \
    --strategy evolution --strategy predictor --strategy reinforce --strategy differentiable --strategy uniform \
    --strategy exhaustive --width 1 --evaluations 66 --objective accuracy=recall --objective recall:0.001 "${recall[@]}" \
    --sequences 128 --seed $seed --run-dir $base/search | tee $base/search.txt
  # Students: the one found, uniform, none, and five at random.
  python3 - $base $seed <<'PYTHON'
import json, random, sys
base, seed = sys.argv[1], int(sys.argv[2])
config = json.load(open(base + "/search/config.json"))
chosen = random.Random(1000 + seed)
placements = {"uniform": [3, 9], "linear": []} | {f"random{i}": sorted(chosen.sample(range(12), 2)) for i in range(5)}
placements["learned"] = [i for i, kind in enumerate(config["layer_types"]) if kind == "attn"]
for name, full in placements.items():
    config["layer_types"] = ["attn" if layer in full else "gla" for layer in range(12)]
    json.dump(config, open(f"{base}/{name}.json", "w"))
    print(name, *full, file=open(f"{base}/{name}.txt", "w"))
PYTHON
  echo "seed $seed teacher: $(error $teacher) wrong; $(cat $base/places.txt)" >$base/table.txt
  for name in learned uniform linear random0 random1 random2 random3 random4; do
    "$jettrain" distill --job student.yaml --set model.teacher=$teacher --set model.student=$base/$name.json \
      --set train.seed=$seed --run-dir $base/student-$name
    echo "seed $seed $(cat $base/$name.txt): $(error $base/student-$name/model) wrong" >>$base/table.txt
  done
  cat $base/table.txt
done
