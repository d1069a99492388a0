#!/usr/bin/env bash
# Writes Debian's reference manual and fortunes, which ./bootstrap installs, into the folder $1 as two texts whose documents
# (chapters, sections, sayings) stand between lines of %.
set -euo pipefail
zcat /usr/share/debian-reference/debian-reference.en.txt.gz |
  awk '/^Chapter [0-9]+\.|^[0-9]+\.[0-9]+\. /{print "%"} {print}' >"$1/debian-reference.txt"
for file in /usr/share/games/fortunes/*; do
  case "$file" in *.dat | *.u8) ;; *) [ -f "$file" ] && cat "$file" ;; esac
done >"$1/fortunes.txt"
