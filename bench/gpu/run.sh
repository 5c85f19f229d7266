#!/usr/bin/env bash
# What is measured where a GPU is at hand: bench/gpu/run.sh PART OUT [WORDS...]
#
#   tests     tests that run on the device                          OUT/tests.json, .md
#   kernels   every kernel checked, then timed beside other ways    OUT/kernels.json, .md
#   steps     steps of the methods against the textbook             OUT/steps.json, .md
#   memory    peak memory of unrolled gradients against the steps   OUT/unrolled.json, .md, OUT/unrolled-cifar100.json, .md
#   real      seconds to the published accuracy on MNIST            OUT/real.json, .md
#
# Every part ends within nine minutes: what there was no time for is named in its results. WORDS of steps are parts of
# benchmarks' names, of which the first goes into the name of the files (bench/gpu/run.sh steps OUT matching writes
# OUT/steps-matching.json), and so does a word of kernels; the word of memory may be quick or cifar100; WORDS of real are
# the folder of MNIST and further options of bench.real.
# PYTHON and DEVICE may name another interpreter and another device, SANITIZER_S the seconds of compute-sanitizer.
# Nothing is needed but the repository, torch, triton, numpy, pytest and pytest-benchmark.
set -euo pipefail

usage() {
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
}

[ $# -ge 2 ] || usage
part=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
python=${PYTHON:-python}
device=${DEVICE:-cuda}
export PYTHONPATH="$PWD:$PWD/kernels"
within() { timeout --signal=INT --kill-after=20 "$1" "$python" -m "${@:2}"; }
tests() { within 520 pytest -c "$here/pytest.ini" --rootdir . --confcutdir . -p no:cacheprovider -q "$@"; }

benchmarks() { # NAME WORDS...
  local name=$1 code=0
  rm -f "$out/$name.json" "$out/$name.md"
  tests bench --device "$device" --set full --memory --budget 0.5 --deadline 420 --only "${@:2}" \
    --benchmark-json="$out/$name.json" || code=$?
  # what was measured is kept whatever happened to the rest
  [ ! -s "$out/$name.json" ] || "$python" -m bench.table "$out/$name.json" > "$out/$name.md"
  return $code
}

case $part in
  tests)
    code=0
    rm -f "$out"/tests.*
    tests -k "$device" --continue-on-collection-errors --junitxml="$out/tests.xml" \
      tests/kernels tests/derivatives tests/methods tests/augmentation tests/students || code=$?
    "$python" -m bench.gpu.tests "$out" "$code"
    ;;
  kernels)
    code=0 only="--only=${1:-}" file="$out/kernels${1:+-${1//\//-}}" addresses="not checked, no compute-sanitizer here"
    # bad addresses show in the checks alone: what is timed is the same kernels on larger operands; every tensor is an
    # allocation of its own, or what lies beside it in torch's cache would be a good address too
    if command -v compute-sanitizer > /dev/null; then
      log="$file-sanitizer.log"
      rm -f "$log"
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --signal=INT --kill-after=20 "${SANITIZER_S:-180}" \
        compute-sanitizer --error-exitcode 99 --log-file "$log" \
        "$python" -m bench.gpu.kernels --device "$device" "$only" || code=$?
      if [ $code -eq 99 ] || grep -qs "Invalid" "$log"; then
        code=1 addresses="bad ones found by compute-sanitizer"
      elif [ $code -eq 124 ] || [ $code -eq 137 ]; then
        code=0 addresses="compute-sanitizer was cut off, no bad one found until then"
      elif [ $code -eq 0 ]; then
        addresses="no bad one found by compute-sanitizer"
      else
        addresses="not checked to the end, a kernel was wrong or compute-sanitizer failed with $code"
      fi
    fi
    within 310 bench.gpu.kernels --device "$device" --out "$file" --deadline 250 --addresses "$addresses" "$only" ||
      code=$?
    exit $code
    ;;
  steps)
    if [ $# -gt 0 ]; then
      benchmarks "steps-${1//\//-}" "$@"
    else
      benchmarks steps matching unrolled trajectory implicit distribution evaluation experts products
    fi
    ;;
  memory)
    if [ $# -eq 0 ]; then
      within 320 bench.unrolled --device "$device" --out "$out/unrolled" --repeats 3 --primitives
      within 200 bench.unrolled --device "$device" --out "$out/unrolled-cifar100" --workload cifar100 --methods mtt \
        --parts memory
    else
      within 520 bench.unrolled --device "$device" --out "$out/unrolled-$1" --workload "$1" --repeats 3 --primitives
    fi
    ;;
  real)
    [ $# -ge 1 ] || usage
    within 520 bench.real --root "$1" --device "$device" --out "$out/real" "${@:2}"
    ;;
  *) usage ;;
esac
