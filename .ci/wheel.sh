#!/usr/bin/env bash
# Does the wheel work? Built from the tree and from the sdist, compared, installed outside the checkout and run there.
#   .ci/wheel.sh ENVIRONMENT
# ENVIRONMENT has the packages of the extra [full]. It lends them to the environments that need torch, so that torch is
# not fetched again; fedstill itself always comes from the wheel. The device's environment is a real install.
set -euo pipefail
lender="$(realpath "${1:?usage: .ci/wheel.sh ENVIRONMENT}")"
cd "$(dirname "$0")/.."
checkout="$PWD"

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
unset PYTHONPATH
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 COLUMNS=200

step() { echo "wheel: $* (at ${SECONDS} s)"; }
fail() { echo "wheel: $*" >&2; exit 1; }

# quietly COMMAND...: its output is shown only if it fails.
quietly() { "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; fail "failed: $*"; }; }

# says CODE SENTENCE COMMAND...: it has to end with this exit code and say this.
says() {
    local wanted="$1" sentence="$2" code=0
    shift 2
    "$@" >"$scratch/log" 2>&1 || code=$?
    if [ "$code" != "$wanted" ] || ! grep --quiet --fixed-strings -- "$sentence" "$scratch/log"; then
        cat "$scratch/log" >&2
        fail "exit code $code; wanted $wanted and '$sentence': $*"
    fi
}

# borrow NAME: an environment with the lender's packages behind its own. Links of an editable install are not followed.
borrow() {
    "$lender/bin/python" -m venv "$scratch/$1"
    "$lender/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$(site "$1")/lent.pth"
    quietly "$scratch/$1/bin/python" -m pip install --no-deps "$wheel"
}
site() { "$scratch/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# The code that runs is the wheel's.
own_code() {
    "$scratch/$1/bin/python" -c "import fedstill; assert fedstill.__file__.startswith('$scratch/$1/'), fedstill.__file__"
}

step "build"
mkdir "$scratch/tree" "$scratch/away"
for path in *; do
    case "$path" in build | dist | runs | results | *.egg-info) ;; *) cp --archive "$path" "$scratch/tree/" ;; esac
done
"$lender/bin/python" -m venv "$scratch/tools"
quietly "$scratch/tools/bin/python" -m pip install build
quietly "$scratch/tools/bin/python" -m pip wheel --no-deps --wheel-dir "$scratch/from_tree" "$scratch/tree"
rm -rf "$scratch/tree/build" "$scratch"/tree/importroot/*.egg-info
quietly "$scratch/tools/bin/python" -m build --outdir "$scratch/from_sdist" "$scratch/tree"
wheel="$(echo "$scratch"/from_tree/fedstill-*.whl)"
"$scratch/tools/bin/python" .ci/compare_wheels.py "$wheel" "$scratch"/from_sdist/fedstill-*.whl "$scratch/tree"

step "a checkout without symbolic links does not build"
rm "$scratch/tree/importroot/fedstill/models"
echo -n ../../models >"$scratch/tree/importroot/fedstill/models"
says 1 "importroot/fedstill/models is no link to a folder" \
    "$scratch/tools/bin/python" -m pip wheel --no-deps --wheel-dir "$scratch/broken" "$scratch/tree"

cd "$scratch/away"

step "all of it"
borrow full
own_code full
fedstill="$scratch/full/bin/fedstill"
says 0 "simulate" "$fedstill" --help
says 0 "quickstart " "$fedstill" experiments
quietly "$fedstill" certs init "$scratch/away/certs" --host localhost
[ -s certs/ca.crt ] || fail "certs init wrote no authority"
quietly "$fedstill" simulate --engine inprocess --out "$scratch/away/run" \
    --set audio.seconds=0.6 --set audio.mel_bins=32 --set frames.size=24 \
    --set dataset.public_per_class=4 --set dataset.private_per_class=4 \
    --set teacher.encoder.architecture=resnet10 --set teacher.encoder.width=4 --set teacher.feature_width=16 \
    --set student.encoder.architecture=resnet10 --set student.encoder.width=2 \
    --set teacher.epochs=2 --set student.epochs=2 \
    --set distillation.outer_epochs=1 --set distillation.inner_epochs=2 \
    --set 'run.arms=["all_distill","fedstill"]' --set 'run.scenarios=["latency_insensitive"]' \
    --set fedstill.outer_epochs=1 --set fedstill.inner_epochs=2 --set prototypes.min_size=3
grep --quiet '"rows"' run/results.json && [ -s run/report.html ] || fail "simulate left no results"

step "the serving tier, without flwr and av"
borrow serve
echo 'import sys; sys.modules.update(dict.fromkeys(("av", "flwr", "k_means_constrained", "onnx", "onnxruntime", "sklearn", "soundfile", "tensorboard", "torchaudio")))' >"$(site serve)/withheld.pth"
own_code serve
fedstill="$scratch/serve/bin/fedstill"
quietly "$scratch/serve/bin/python" - <<'CHECK'
import fedstill.cloud_server.serving.app.serve_process
import fedstill.cloud_server.serving.endpoints.serving_server
import fedstill.cloud_server.serving.tasks.learn_task
import fedstill.cloud_server.warmup.warm_up
CHECK
quietly "$fedstill" serve --help
quietly "$fedstill" tasks --help
says 2 "no task registry here" "$fedstill" tasks list --registry "$scratch/away/tasks"
quietly "$fedstill" loadtest virtual --policies fedstill --seeds 1 --seconds 20 --out "$scratch/away/load"
says 2 "pip install '.[edge]'" "$fedstill" agent --coordinator localhost:1 --inference localhost:2 \
    --credentials certs --data none.csv --state state

step "a device, installed from nothing"
"$lender/bin/python" -m venv "$scratch/edge"
quietly "$scratch/edge/bin/python" -m pip install --constraint "$checkout/constraints.txt" "$wheel[edge]"
own_code edge
fedstill="$scratch/edge/bin/fedstill"
"$scratch/edge/bin/python" - <<'CHECK'
from importlib.metadata import distributions
from importlib.util import find_spec

import fedstill.edge_client.inference.clip_files
import fedstill.edge_client.inference.watch
import fedstill.edge_client.node.client_app
import fedstill.edge_client.node.device
import fedstill.edge_client.students.runtime
import fedstill.datasets.audiovisual.manifest

names = {one.metadata["Name"].lower() for one in distributions()}
assert "fedstill" in names and "onnxruntime" in names, names
assert not names & {"av", "matplotlib", "ortools", "pandas", "scikit-learn", "scipy", "timm", "torch", "torchvision"}, names
assert find_spec("torch") is None
CHECK
head --bytes 4096 /dev/zero >film.mp4
says 1 "install fedstill with the extra [video]" "$scratch/edge/bin/python" -c \
    'from pathlib import Path; from fedstill.edge_client.inference.clip_files import read_clip; read_clip(Path("film.mp4"), 1)'
quietly "$fedstill" --help
quietly "$fedstill" agent --help
says 2 "pip install '.[serve]'" "$fedstill" serve --insecure
says 2 "pip install '.[full]'" "$fedstill" simulate

step "images, without an engine: their context, their COPY lines, their RUN line that installs"
cd "$scratch"
"$lender/bin/python" "$checkout/.ci/image_context.py" context
for image in agent coordinator; do
    case "$image" in agent) into=edge ;; coordinator) into=full ;; esac
    line="$("$lender/bin/python" "$checkout/.ci/image_context.py" context "$checkout/deploy/$image.Dockerfile" "$scratch/$image.build")"
    PATH="$scratch/$into/bin:$PATH" quietly sh -euc "$line"
    own_code "$into"
    quietly "$scratch/$into/bin/fedstill" "$image" --help
done
says 1 "film.mp4" "$scratch/edge/bin/python" -c \
    'from pathlib import Path; from fedstill.edge_client.inference.clip_files import read_clip; read_clip(Path("away/film.mp4"), 1)'

step "done"
