#!/usr/bin/env bash
# The whole recipe on two ranks, in minutes: data, teacher, which layer must stay attention, what no attention costs, stage 1,
# stage 2 with a stop and a resume, and one page that shows it. `./bootstrap demo [TEXT…]` calls it, which sets jettrain and
# mpi_command; `Jobs/demo.sh --check [TEXT…]` only looks at the texts. SEED is that of data and weights.
set -euo pipefail
data=Data/demo
seed=${SEED:-1}
least=20000

if [ -t 1 ]; then bold=$'\033[1m' dim=$'\033[2m' plain=$'\033[0m'; else bold='' dim='' plain=''; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
run() {
  printf '%s$ %s%s\n' "$dim" "$*" "$plain"
  "$@"
}
die() {
  printf 'demo: %s\n' "$*" >&2
  exit 65
}

# Nothing is moved, removed or built before this has passed.
check() {
  local total=0 text
  for text in "$@"; do
    [ -e "$text" ] || die "$text: there is no such text"
    [ -r "$text" ] || die "$text: cannot be read"
    [ -f "$text" ] || [ -d "$text" ] || die "$text: is neither a file nor a folder"
    total=$((total + $(find "$text" -type f -readable -exec cat {} + | wc -c)))
  done
  [ $# -eq 0 ] || [ "$total" -ge "$least" ] ||
    die "$* $([ $# -eq 1 ] && echo holds || echo hold) $total bytes together; the demo wants $least or more, any text will do"
}

if [ "${1:-}" = --check ]; then
  shift
  check "$@"
  exit
fi
check "$@"

runs=(teacher supernet search all-linear converted distill finetune)
step "What this does"
echo "It makes token shards of $([ $# -gt 0 ] && echo "$*" || echo "Debian's reference manual and fortunes") and of made-up roll calls (in $data, made anew),"
echo "trains a small full-attention teacher that answers them, finds the layer that must stay attention, distils a hybrid with it"
echo "and a student without any attention, fine-tunes the hybrid, and ends with Checkpoints/demo/report.html."
echo "Runs of before under Checkpoints (${runs[*]}) are moved aside, never removed."

step "1. Texts and questions become token shards"
rm -rf "$data"
mkdir -p "$data" Checkpoints/demo
now=$(date +%Y%m%d-%H%M%S)
for name in "${runs[@]}"; do
  if [ -e "Checkpoints/$name" ]; then
    run mv "Checkpoints/$name" "Checkpoints/$name.before-$now"
  fi
done
rm -f Checkpoints/demo/report.html
if [ $# -gt 0 ]; then
  run "$jettrain" tokens build --output "$data/text" "$@"
else
  text=$(mktemp -d)
  trap 'rm -rf "$text"' EXIT
  Jobs/debian-texts.sh "$text"
  run "$jettrain" tokens build --output "$data/text" --separator % "$text/debian-reference.txt" "$text/fortunes.txt"
fi
# Rolls of the held-out eighth are never made to train on, whatever the seed.
run "$jettrain" tokens make-questions --task roll-call --count 20000 --fewest-items 2 --items 20 --queries 24 --split training \
  --seed "$seed" --output "$data/roll-calls.jsonl"
run "$jettrain" tokens make-questions --task roll-call --count 100 --items 20 --queries 1 --split held-out --seed "$seed" \
  --output "$data/held-out.jsonl"
run "$jettrain" tokens build --output "$data/roll-call" --pieces pieces --shard-tokens 500000 "$data/roll-calls.jsonl"
run "$jettrain" tokens verify "$data/text" "$data/roll-call"

step "2. A small full-attention teacher is trained"
run $mpi_command "$jettrain" pretrain --set train.seed="$seed"

step "3. Which layer must stay attention? Each alone is put back into an all-linear student"
run $mpi_command "$jettrain" distill --job Jobs/supernet.yaml --set train.seed="$seed"
run $mpi_command "$jettrain" search placement Checkpoints/supernet/model --full 1 --strategy kl-restore \
  --teacher Checkpoints/teacher/model --data "$data" --mix demo --context 512 --sequences 24 --seed "$seed" --run-dir Checkpoints/search

step "4. Without any attention: the same distillation of an all-linear student"
run $mpi_command "$jettrain" distill --job Jobs/all-linear.yaml --set train.seed="$seed"

step "5. Stage 1: a hybrid with that one layer, converted, then distilled"
run "$jettrain" convert Checkpoints/teacher/model --config Checkpoints/search/config.json --output Checkpoints/converted
run $mpi_command "$jettrain" distill --set model.student=Checkpoints/search/config.json --set train.seed="$seed"

step "6. Stage 2: the hybrid is fine-tuned, stopped half way, and resumed"
code=0
run $mpi_command "$jettrain" finetune --stop-at-step 400 --set train.seed="$seed" || code=$?
[ "$code" -eq 75 ] || { echo "expected exit code 75 of a stopped run, got $code" >&2; exit 1; }
run "$jettrain" checkpoint list Checkpoints/finetune
run $mpi_command "$jettrain" finetune --resume must --set train.seed="$seed"
run "$jettrain" checkpoint verify Checkpoints/finetune

step "7. Side by side"
run "$jettrain" compare --data "$data" --mix demo --context 512 --sequences 64 --items 20 --queries 16 --seed "$seed" \
  --accuracy roll-call-letters --accuracy roll-call-sums --samples "$data/held-out.jsonl" --show 12 --match equals \
  --title "jettrain's demo: one attention layer of four" --report Checkpoints/demo/report.html \
  --note "Roll calls: of a row of 20 letters the capital ones are there (1), the small ones not (0); sums stand between." \
  --note "No roll that is asked here was trained on; 20 letters are the longest rolls of the training." \
  --note "Stage 2 learns from text alone, on two fifths of the teacher's tokens: where it ends above the teacher's loss, that is why." \
  teacher=Checkpoints/teacher/model all-linear=Checkpoints/all-linear/model converted=Checkpoints/converted \
  stage-1=Checkpoints/distill/model stage-2=Checkpoints/finetune/model
