#!/usr/bin/env bash
# Make .venv on one host of a TPU slice and install the package with libtpu. Run it on every host.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if [[ ! -x .venv/bin/python ]]; then
  for python in python3 python3.13 python3.12 python3.11; do
    if is_new_enough "$python" && "$python" -m venv .venv; then break; fi
    rm -rf .venv
  done
fi
if [[ ! -x .venv/bin/python ]]; then # images on Ubuntu 22.04 have Python 3.10, too old for jax
  python3 -m pip install --user uv
  python3 -m uv venv --seed --python 3.12 .venv
fi
.venv/bin/python -m pip install -e .[tpu]
.venv/bin/python - <<'EOF'
import importlib.metadata

for name in ("jax", "jaxlib", "libtpu"):
    print(name, importlib.metadata.version(name))
EOF
