#!/usr/bin/env bash
# A real pretrained model becomes a hybrid on two cores: SmolLM2-135M-Instruct is fetched, some of its attention layers become
# JetBlocks, those are aligned with the attention that they replace and distilled, and teacher and student are compared.
# `./bootstrap demo --real` calls it, which sets jettrain and mpi_command; `Jobs/demo-real.sh --check …` only looks at the
# options.
#   --layers N         how many layers become JetBlocks: the first N of Jobs/smollm2/placement.txt
#   --hours H          how long the student learns, by the clock; what is made of it is measured first
#   --accept-licence   the model's licence (Apache-2.0) is accepted without a question
set -euo pipefail
layers=8
hours=0.25
accept=()
only_check=

usage() {
  printf 'demo --real: %s (--layers N, --hours H, --accept-licence)\n' "$*" >&2
  exit 64
}
if [ "${1:-}" = --check ]; then
  only_check=1
  shift
fi
while [ $# -gt 0 ]; do
  case "$1" in
    --layers | --hours)
      [ $# -gt 1 ] || usage "$1 takes a number"
      [ "$1" = --layers ] && layers=$2 || hours=$2
      shift 2
      ;;
    --accept-licence) accept=(--accept-licence); shift ;;
    *) usage "$1 is not known" ;;
  esac
done
[[ "$layers" =~ ^[0-9]{1,2}$ ]] && [ "$layers" -ge 1 ] && [ "$layers" -le 30 ] ||
  usage "--layers $layers: give 1 to 30 of the model's 30 layers"
[[ "$hours" =~ ^[0-9]{1,4}(\.[0-9]+)?$ ]] && awk -v h="$hours" 'BEGIN { exit !(h >= 0.02) }' ||
  usage "--hours $hours: give a number from 0.02 on"
[ -z "$only_check" ] || exit 0

data=Data/smollm2
job=Jobs/smollm2/distill.yaml
teacher=Models/smollm2-135m.gguf
student=Models/smollm2-hybrid
run_folder=Checkpoints/smollm2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -t 1 ]; then bold=$'\033[1m' dim=$'\033[2m' plain=$'\033[0m'; else bold='' dim='' plain=''; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
run() {
  printf '%s$ %s%s\n' "$dim" "$*" "$plain"
  "$@"
}
# The layers that become JetBlocks where N do, in order, as --layers takes them.
layers_of() { grep -v '^#' Jobs/smollm2/placement.txt | tr -s ' ' '\n' | head -n "$1" | sort -n | paste -sd,; }
# Training steps of both phases on random weights of the student at $1, once, as JSON lines.
measure() { $mpi_command "$jettrain" bench step --job "$job" --set model.student="$1" --steps 1; }
# The number that goes by the name $3 in the line of phase $2 of the file $1.
figure() { grep "\"phase\":\"$2\"" "$1" | grep -o "\"$3\":[0-9.e+]*" | cut -d: -f2; }
continue_texts() {
  run "$jettrain" generate "$1" --max-tokens 48 --prompt "The Debian system administrator should first" \
    --prompt "Once upon a time, in a small village by the sea," --prompt "The capital of France is" 2>/dev/null
}

step "1. SmolLM2-135M-Instruct is fetched, and its tokenizer cuts Debian's texts"
[ -f "$teacher" ] || run "$jettrain" models fetch smollm2-135m "${accept[@]}"
run "$jettrain" models list
now=$(date +%Y%m%d-%H%M%S)
for old in "$student" "$run_folder"; do
  if [ -e "$old" ]; then run mv "$old" "$old.before-$now"; fi
done
if [ ! -f "$data/manifest.json" ]; then
  Jobs/debian-texts.sh "$scratch"
  run "$jettrain" tokens build --output "$data" --separator % --tokenizer "$teacher" \
    "$scratch/debian-reference.txt" "$scratch/fortunes.txt"
fi

step "2. Layers $(layers_of "$layers") of 30 become JetBlocks, begun from the attention they replace"
run "$jettrain" convert "$teacher" --mixer jet --layers "$(layers_of "$layers")" --dtype float32 --output "$student"

step "3. The teacher's continuations, and the student's before it learns"
continue_texts "$teacher"
continue_texts "$student"

step "4. What $hours hours are here: training steps are timed"
measure "$student" | tee "$scratch/here.jsonl"
# A third of the time aligns layer by layer; a tenth of it is for what is not training: reading, looking, saving.
tokens_of() { # phase, share of the time
  awk -v rate="$(figure "$scratch/here.jsonl" "$1" tokens_per_s)" -v hours="$hours" -v share="$2" \
    'BEGIN { steps = int(rate * hours * 3600 * 0.9 * share / 1024); print (steps < 12 ? 12 : steps) * 1024 }'
}
align=$(tokens_of align 0.33)
distill=$(tokens_of distill 0.67)

step "5. Alignment on $align tokens, distillation on $distill"
began=$(date +%s)
run $mpi_command "$jettrain" distill --job "$job" --set "phases.0.tokens=$align" --set "phases.1.tokens=$distill"
echo "the student learned for $((($(date +%s) - began + 30) / 60)) minutes"

step "6. The student's continuations after"
continue_texts "$run_folder/model"

step "7. Loss and KL on held-out text; caches, and decoding behind 4K and 32K tokens"
run "$jettrain" compare --data "$data" --context 512 --sequences 16 teacher="$teacher" before="$student" \
  after="$run_folder/model"
run "$jettrain" bench decode --model "$run_folder/model" --teacher "$teacher" --contexts 4096,32768 | sed -u "/^{/d"

step "8. What 24 of the 30 layers would take"
run "$jettrain" convert "$teacher" --mixer jet --layers "$(layers_of 24)" --dtype float32 --output "$scratch/most" >/dev/null
measure "$scratch/most" | tee "$scratch/most.jsonl"
# Stage 1 of the 2B makes 461 TFLOP/s of an H100 (docs/speed.md: 36,000 tokens/s of 12.8 GFLOP each); a model as small as this
# one makes less, so that the card's figure is a lower bound of the time.
awk -v rate="$(figure "$scratch/most.jsonl" distill tokens_per_s)" -v here="$(figure "$scratch/most.jsonl" distill gflops)" \
  'BEGIN {
    for (millions = 40; millions <= 400; millions *= 10) {
      seconds = millions * 1e6 / rate
      printf "distillation of 24 layers on %d million tokens: %.1f days here (%.0f tokens/s), at least %.0f minutes on an H100\n",
        millions, seconds / 86400, rate, seconds * here / 461e3 / 60
    }
  }'
echo "./bootstrap demo --real --layers 24 --hours H does it here for H hours."
