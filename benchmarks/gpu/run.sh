#!/usr/bin/env bash
# Everything that wants a GPU, in one command and under ten minutes: the tests marked ``gpu``, costs
# and plans, samples a second and memory, several ranks on one GPU, messages, the loader alone.
# JSON goes to $OUT, or results/.
#
#   bash benchmarks/gpu/run.sh                        one NVIDIA GPU, no network, nothing installed
#   bash benchmarks/gpu/run.sh --device cpu --tiny    try the script itself on a processor
#
# $PYTHON is used, else .venv's, else python3. A part that fails does not stop the others. Every part
# has a limit, and after 590 s in all none is begun.
set -uo pipefail
cd "$(dirname "$0")/../.."
device=cuda tiny=()
while (($#)); do
    case "$1" in
        --device) device="${2:?--device needs a name, such as cuda or cpu}" && shift 2 ;;
        --tiny) tiny=(--tiny) && shift ;;
        *) echo "run.sh: unknown option $1: allowed are --device NAME and --tiny" >&2 && exit 2 ;;
    esac
done
out="${OUT:-results}"
mkdir -p "$out"
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
sizes=(128 1024) training=() costs=() ranks=() channel=() loader=(--batches 20 --repeats 3)
if ((${#tiny[@]})); then
    sizes=(8)
    training=(--modes eager --steps 2 --repeats 2) costs=(--repeats 2)
    ranks=(--batch-size 8 --steps 6) channel=(--sizes 4096)
    loader=(--samples 100 --batches 2 --repeats 2)
fi
tests=(-q -m gpu tests/gpu -p no:cacheprovider -p no:benchmark)
"$PYTHON" -c "import xdist" 2>/dev/null && tests+=(-n 4)
failed=()

part() { # NAME SECONDS COMMAND...
    local name="$1" limit="$2" start=$SECONDS left=$((590 - SECONDS))
    shift 2
    if ((left <= 0)); then
        failed+=("$name (no time was left)")
        return
    fi
    ((limit < left)) || limit=$left
    echo "== $name"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.txt" || failed+=("$name")
    echo "== $name: $((SECONDS - start)) s"
}

part tests 220 "$PYTHON" -m pytest "${tests[@]}"
part costs 150 "$PYTHON" -m benchmarks.gpu.costs --device "$device" "${tiny[@]}" "${costs[@]}" \
    --batch-sizes "${sizes[@]}" --seconds 90 --out "$out" --json "$out/costs.json"
part training 200 "$PYTHON" -m benchmarks.gpu.training --device "$device" "${tiny[@]}" \
    "${training[@]}" --batch-sizes "${sizes[@]}" --seconds 120 --json "$out/training.json"
if [[ "$device" == cuda* ]]; then
    part kernels 60 "$PYTHON" -m benchmarks.gpu.kernels --json "$out/kernels.json"
fi
part ranks 100 "$PYTHON" -m benchmarks.gpu.ranks --device "$device" "${tiny[@]}" "${ranks[@]}" \
    --json "$out/ranks.json"
part channel 60 "$PYTHON" -m benchmarks.gpu.channel --device "$device" "${tiny[@]}" \
    "${channel[@]}" --json "$out/channel.json"
part loader 80 "$PYTHON" -m benchmarks.gpu.loader --device "$device" "${loader[@]}" \
    --batch-sizes "${sizes[@]}" --json "$out/loader.json"
# They need no GPU, so they come last.
for recipe in "$out"/*.toml; do
    name="$(basename "$recipe" .toml)"
    part "$name.plan" 30 "$PYTHON" -m ppll plan "$recipe" --stages 4 \
        --costs "$out/$name.costs.json" --json "$out/$name.plan.json"
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}; see $out/NAME.txt of those that began" >&2
    exit 1
fi
