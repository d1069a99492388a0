#!/usr/bin/env bash
# Computes Jobs/smollm2/placement.txt anew: trains the supernet of SmolLM2-135M, puts each attention layer alone back into the
# student that has none (kl-restore), and prints the layers, first the one that brings least. Wants Data/smollm2 and the model,
# which `./bootstrap demo --real` makes and fetches, and jettrain on the PATH or in $jettrain.
#   MPI="mpirun --bind-to none -n 2" Jobs/smollm2/placement.sh >placement.txt
set -euo pipefail
jettrain=${jettrain:-jettrain}
mpi=${MPI:-mpirun --bind-to none -n 2}
search=Checkpoints/smollm2-search
$mpi "$jettrain" distill --job Jobs/smollm2/supernet.yaml >&2
$mpi "$jettrain" search placement Checkpoints/smollm2-supernet/model --full 22 --strategy kl-restore --strategy uniform \
  --teacher Models/smollm2-135m.gguf --data Data/smollm2 --context 512 --sequences 4 --run-dir "$search" >&2
# Rows of the table are: layer, KL with it alone, share of the best. The higher that KL, the less is the layer missed.
"$jettrain" search show "$search" | awk '$1 ~ /^[0-9]+$/ && NF >= 4 {print $2, $1}' | sort -rn | cut -d' ' -f2 | paste -sd' '
