#!/usr/bin/env bash
# What is measured where a GPU is at hand: bench/gpu/run.sh PART OUT [WORDS...]
#
#   tests     tests that run on the device                          OUT/tests.json, .md
#   kernels   kernels against their references, by shape            OUT/kernels.json, .md
#   steps     steps of the methods against the textbook             OUT/steps.json, .md
#   memory    peak memory of unrolled gradients against the steps   OUT/unrolled.json, .md, OUT/unrolled-cifar100.json, .md
#   real      seconds to the published accuracy on MNIST            OUT/real.json, .md
#
# Every part ends within nine minutes: what there was no time for is named and left out. WORDS of steps are parts of
# benchmarks' names, of which the first goes into the name of the files (bench/gpu/run.sh steps OUT matching writes
# OUT/steps-matching.json); WORDS of real are the folder of MNIST and further options of bench.real.
# PYTHON and DEVICE may name another interpreter and another device.
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
limit="timeout --signal=INT --kill-after=20 520"

benchmarks() { # NAME WORDS...
  name=$1
  shift
  $limit "$python" -m pytest -c "$here/pytest.ini" --rootdir . --confcutdir . -p no:cacheprovider -q bench \
    --device "$device" --set full --memory --deadline 460 --only "$@" --benchmark-json="$out/$name.json"
  "$python" -m bench.table "$out/$name.json" > "$out/$name.md"
}

case $part in
  tests)
    rm -f "$out/tests.xml"
    $limit "$python" -m pytest -c "$here/pytest.ini" --rootdir . --confcutdir . -p no:cacheprovider -q -k "$device" \
      --continue-on-collection-errors --junitxml="$out/tests.xml" \
      tests/kernels tests/derivatives tests/methods tests/augmentation tests/students || true # the next line judges
    "$python" -m bench.gpu.tests "$out"
    ;;
  kernels) benchmarks kernels references data ;;
  steps)
    if [ $# -gt 0 ]; then
      benchmarks "steps-${1//\//-}" "$@"
    else
      benchmarks steps matching unrolled trajectory implicit evaluation
    fi
    ;;
  memory)
    $limit "$python" -m bench.unrolled --device "$device" --out "$out/unrolled" --repeats 3 --pieces ${1+--workload "$1"}
    [ $# -gt 0 ] || $limit "$python" -m bench.unrolled --device "$device" --workload cifar100 --methods mtt \
      --parts memory --out "$out/unrolled-cifar100"
    ;;
  real)
    [ $# -ge 1 ] || usage
    root=$1
    shift
    $limit "$python" -m bench.real --root "$root" --device "$device" --out "$out/real" "$@"
    ;;
  *) usage ;;
esac
