#!/usr/bin/env bash
# Convert a checkpoint in Hugging Face layout for every engine of benchmarks/rows.py.
# usage: models.sh CHECKPOINT OUT PEERS
#   PEERS is the environment with optimum-intel, nncf and openvino-genai. GGML names a source tree of
#   whisper.cpp, such as the one in pywhispercpp's sdist; without it whisper.cpp is left out.
set -euo pipefail
checkpoint=$(realpath "$1") out=$2 peers=$3
name=$(basename "$checkpoint")
mkdir -p "$out"
ln -sfn "$checkpoint" "$out/hf-$name"
ct2-transformers-converter --model "$checkpoint" --output_dir "$out/ct2-int8-$name" --force \
    --quantization int8 --copy_files tokenizer.json preprocessor_config.json
corpus-asr convert "$checkpoint" "$out/openai-$name.pt"
HF_HUB_OFFLINE=1 "$peers/bin/optimum-cli" export openvino --model "$checkpoint" --weight-format int8 \
    --task automatic-speech-recognition-with-past "$out/openvino-int8-$name"
if [ -n "${GGML:-}" ]; then
    cmake -S "$GGML" -B "$out/ggml-build" -DBUILD_SHARED_LIBS=OFF -DWHISPER_BUILD_TESTS=OFF
    cmake --build "$out/ggml-build" --target whisper-quantize
    whisper=$(python -c 'import pathlib, whisper; print(pathlib.Path(whisper.__file__).parents[1])')
    scratch=$(mktemp -d)
    python "$GGML/models/convert-h5-to-ggml.py" "$checkpoint/" "$whisper" "$scratch"
    "$out/ggml-build/bin/whisper-quantize" "$scratch/ggml-model.bin" "$out/ggml-q8_0-$name" q8_0
    rm -r "$scratch"
fi
