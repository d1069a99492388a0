#!/usr/bin/env bash
# A real pretrained model becomes a hybrid on two cores: SmolLM2-135M-Instruct is fetched, some of its attention layers become
# JetBlocks, and the three are compared. Called by `./bootstrap demo --real [--layers N] [--hours H]`, which sets jettrain and
# mpi_command. Asks for the model's licence; --accept-licence answers.
set -euo pipefail
layers=6
hours=0.25
accept=()
while [ $# -gt 0 ]; do
  case "$1" in
    --layers) layers=${2:?--layers takes a number}; shift 2 ;;
    --hours) hours=${2:?--hours takes a number}; shift 2 ;;
    --accept-licence) accept=(--accept-licence); shift ;;
    *) echo "demo --real: $1 is not known (--layers N, --hours H, --accept-licence)" >&2; exit 64 ;;
  esac
done
[[ "$layers" =~ ^[0-9]+$ ]] && [ "$layers" -ge 1 ] && [ "$layers" -le 30 ] ||
  { echo "demo --real: --layers $layers: give 1 to 30 of the model's 30 layers" >&2; exit 64; }
[[ "$hours" =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "demo --real: --hours $hours is no number" >&2; exit 64; }

data=Data/smollm2
teacher=Models/smollm2-135m.gguf
student=Models/smollm2-hybrid
# The layers in the order in which they are replaced: spread over the deeper half first.
order=(27 24 21 18 15 12 28 25 22 19 16 13 10 26 23 20 17 14 11 9 8 7 6 5 4 29 3 2 1 0)
chosen=$(printf '%s\n' "${order[@]:0:$layers}" | sort -n | paste -sd,)
# An estimate for two cores, not measured yet; a third of it aligns layer by layer.
tokens=$(awk -v h="$hours" 'BEGIN { t = int(72000 * h / 0.25); print t < 8192 ? 8192 : t }')

if [ -t 1 ]; then bold=$'\033[1m' dim=$'\033[2m' plain=$'\033[0m'; else bold='' dim='' plain=''; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
run() {
  printf '%s$ %s%s\n' "$dim" "$*" "$plain"
  "$@"
}
continue_texts() {
  run "$jettrain" generate "$1" --max-tokens 48 --prompt "The Debian system administrator should first" \
    --prompt "Once upon a time, in a small village by the sea," 2>/dev/null
}

step "1. SmolLM2-135M-Instruct is fetched, and its tokenizer cuts Debian's texts"
[ -f "$teacher" ] || run "$jettrain" models fetch smollm2-135m "${accept[@]}"
run "$jettrain" models list
for old in "$student" Checkpoints/smollm2; do
  if [ -e "$old" ]; then
    aside="$old.before-$(date +%Y%m%d-%H%M%S)"
    echo "$old exists; moving it to $aside"
    mv "$old" "$aside"
  fi
done
if [ ! -f "$data/nemotron-cc/manifest.json" ]; then
  text=$(mktemp -d)
  trap 'rm -rf "$text"' EXIT
  zcat /usr/share/debian-reference/debian-reference.en.txt.gz |
    awk '/^Chapter [0-9]+\.|^[0-9]+\.[0-9]+\. /{print "%"} {print}' >"$text/debian-reference.txt"
  for file in /usr/share/games/fortunes/*; do
    case "$file" in *.dat | *.u8) ;; *) [ -f "$file" ] && cat "$file" >>"$text/fortunes.txt" ;; esac
  done
  run "$jettrain" tokens build --output "$data/nemotron-cc" --stands-in-for nemotron-cc --separator % --tokenizer "$teacher" \
    "$text/debian-reference.txt" "$text/fortunes.txt"
fi

step "2. Layers $chosen of 30 become JetBlocks, begun from the attention they replace"
run "$jettrain" convert "$teacher" --mixer jet --layers "$chosen" --dtype float32 --output "$student"

step "3. The teacher's continuations, and the student's before it learns"
continue_texts "$teacher"
continue_texts "$student"

step "4. Alignment and distillation, $tokens tokens"
run $mpi_command "$jettrain" distill --job Jobs/smollm2.yaml --set "phases.0.tokens=$((tokens / 3))" \
  --set "phases.1.tokens=$((tokens * 2 / 3))"

step "5. The student's continuations after"
continue_texts Checkpoints/smollm2/model

step "6. Loss and KL on held-out text, caches and decoding"
run "$jettrain" compare --data "$data" --mix nemotron-cc --sequences 8 teacher="$teacher" before="$student" \
  after=Checkpoints/smollm2/model
run "$jettrain" bench decode --model Checkpoints/smollm2/model --teacher "$teacher" --contexts 4096,32768
