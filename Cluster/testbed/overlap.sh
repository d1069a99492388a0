#!/usr/bin/env bash
# What the communication of a step costs over a limited link, without and with overlap. In a testbed of two hosts:
#   Cluster/testbed/testbed 2 Cluster/testbed/overlap.sh [RATE]
set -euo pipefail
cd "$(dirname "$0")/../.."
jettrain=$(realpath "${JETTRAIN:-.build/release/jettrain}")
for host in host1 host2; do testbed limit $host "${1:-1gbit}"; done
# Of two sequences a rank, and of four as one rank has them.
for batch in "train.micro_batch=2" "train.global_batch=8"; do
  JETTRAIN_THREADS=1 mpirun --quiet --hostfile "$TESTBED/hosts" -n 2 -x JETTRAIN_THREADS "$jettrain" bench step \
    --job Jobs/bench/jet-mini.yaml --set "$batch"
done
