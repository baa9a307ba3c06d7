#!/usr/bin/env bash
# Real computation on two cores: two stages with one thread each, ResNet-32 and ViT-tiny on
# CIFAR-10-sized data. Run from the repository's root: bash benchmarks/compare/run.sh
set -euo pipefail
ppll="${PPLL:-.venv/bin/ppll}"
data=(--set data.name=synthetic --set 'data.shape=[3,32,32]' --set data.num_train=640 --set data.num_test=64)
cuts=(--set split.blocks=2 --set split.cuts=balanced)
"$ppll" bench compare cifar10-resnet32-dgl --stages 2 "${data[@]}" "${cuts[@]}" \
    --set data.batch_size=32 --batches 16 --microbatches 2,4 --repeats 3 \
    --json benchmarks/compare/resnet32.json
"$ppll" bench compare cifar10-vit-dgl --stages 2 "${data[@]}" "${cuts[@]}" \
    --set data.batch_size=32 --set runtime.capacity=2 --batches 6 --warm-up 2 \
    --microbatches 2,4 --repeats 3 --json benchmarks/compare/vit-tiny.json
