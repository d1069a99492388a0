#!/usr/bin/env bash
# The whole recipe on two ranks, in minutes: text, teacher, stage 1, stage 2 with a stop and a resume, comparison.
# Called by `./bootstrap demo [TEXT…]`, which sets jettrain and mpi_command.
set -euo pipefail
data=Data/demo

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() {
  printf '\033[2m$ %s\033[0m\n' "$*"
  "$@"
}

step "1. Text becomes token shards"
rm -rf "$data"
mkdir -p "$data"
# Runs of before are moved aside, never removed.
for name in teacher distill finetune; do
  if [ -e "Checkpoints/$name" ]; then
    aside="Checkpoints/$name.before-$(date +%Y%m%d-%H%M%S)"
    echo "Checkpoints/$name exists; moving it to $aside"
    mv "Checkpoints/$name" "$aside"
  fi
done
if [ $# -gt 0 ]; then
  run "$jettrain" tokens build --output "$data/nemotron-cc" --stands-in-for nemotron-cc --shard-tokens 500000 "$@"
else
  text=$(mktemp -d)
  trap 'rm -rf "$text"' EXIT
  zcat /usr/share/debian-reference/debian-reference.en.txt.gz |
    awk '/^Chapter [0-9]+\.|^[0-9]+\.[0-9]+\. /{print "%"} {print}' >"$text/debian-reference.txt"
  for file in /usr/share/games/fortunes/*; do
    case "$file" in *.dat | *.u8) ;; *) [ -f "$file" ] && cat "$file" >>"$text/fortunes.txt" ;; esac
  done
  run "$jettrain" tokens build --output "$data/nemotron-cc" --stands-in-for nemotron-cc --separator % \
    --shard-tokens 500000 "$text/debian-reference.txt" "$text/fortunes.txt"
fi
run "$jettrain" tokens make-questions --count 20000 --seed 7 --split training --output "$data/questions.jsonl"
run "$jettrain" tokens make-questions --count 200 --seed 8 --split held-out --output "$data/held-out-questions.jsonl"
run "$jettrain" tokens build --output "$data/redstone-qa" --stands-in-for redstone-qa \
  --template 'Question: {question}\nAnswer: {answer}\n' --shard-tokens 500000 "$data/questions.jsonl"
run "$jettrain" tokens verify "$data/nemotron-cc" "$data/redstone-qa"

step "2. A small full-attention teacher is trained"
run $mpi_command "$jettrain" pretrain

step "3. Stage 1: a JetBlock hybrid is distilled from it"
run $mpi_command "$jettrain" distill

step "4. Stage 2: the hybrid is fine-tuned, stopped half way, and resumed"
code=0
run $mpi_command "$jettrain" finetune --mix redstone-qa --stop-at-step 75 || code=$?
[ "$code" -eq 75 ] || { echo "expected exit code 75 of a stopped run, got $code" >&2; exit 1; }
run "$jettrain" checkpoint list Checkpoints/finetune
run $mpi_command "$jettrain" finetune --mix redstone-qa --resume must
run "$jettrain" checkpoint verify Checkpoints/finetune

step "5. Teacher and student compared"
run "$jettrain" generate Checkpoints/finetune/model --max-tokens 80 \
  --prompt $'Question: Ada has 12 apples and gets 3 more. How many apples has Ada now?\nAnswer:'
run "$jettrain" compare --data "$data" --mix redstone-qa --sequences 128 teacher=Checkpoints/teacher/model \
  student-stage-1=Checkpoints/distill/model student-stage-2=Checkpoints/finetune/model
