#!/usr/bin/env bash
# What action.yml runs: overlap-tool verify, with a summary for the job's page and outputs for later steps.
# Inputs are CHECKPOINT, TILE, SCHEDULE, IMAGE and ARGUMENTS; GitHub sets the other variables.
set -euo pipefail

if ! command -v overlap-tool > /dev/null; then
  python -m pip install --quiet "$(dirname "${BASH_SOURCE[0]}")/.."
fi

folder=$(mktemp -d "${RUNNER_TEMP:-/tmp}/overlap-tool.XXXXXX")
options=()
if [[ -n "${TILE:-}" ]]; then options+=(--tile "$TILE"); fi
if [[ -n "${SCHEDULE:-}" ]]; then options+=(--schedule "$SCHEDULE"); fi
while IFS= read -r image; do
  if [[ -n "$image" ]]; then options+=(--image "$image"); fi
done <<< "${IMAGE:-}"
read -r -a further <<< "${ARGUMENTS:-}" || true

code=0
overlap-tool verify "$CHECKPOINT" "${options[@]}" "${further[@]}" \
  --report "$folder/report.json" --junit "$folder/junit.xml" --html "$folder/report.html" \
  --summary "$folder/summary.md" || code=$?

case $code in
  0) verdict=holds ;;
  1) verdict=fails ;;
  *) verdict=error ;;
esac
report="" junit="" html=""
if [[ -f "$folder/summary.md" ]]; then
  report="$folder/report.json" junit="$folder/junit.xml" html="$folder/report.html"
  cat "$folder/summary.md" >> "$GITHUB_STEP_SUMMARY"
else
  verdict=error
fi
{
  echo "report=$report"
  echo "junit=$junit"
  echo "html=$html"
  echo "verdict=$verdict"
} >> "$GITHUB_OUTPUT"
exit "$code"
