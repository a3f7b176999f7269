#!/bin/sh
# Makes everything in calibration/av_digits but the recipe, from nothing: data, model, ONNX, test set, clip, metrics.
# Needs espeak-ng 1.51 and the packages of requirements.txt; PYTHON names the interpreter. About an hour.
set -eu
here=$(dirname "$0")
root=$here/../..
python=${PYTHON:-python3}
work=${WORK:-$root/out/av_digits}
out=$root/calibration/av_digits
mkdir -p "$work" "$out"
# One thread: the order of sums, and so the result, stays the same.
export OMP_NUM_THREADS=1
[ -f "$work/audio_train.npz" ] || "$python" "$here/make_data.py" "$work" --seed 7
[ -f "$work/model.pt" ] || "$python" "$here/train.py" "$work" -o "$work/model.pt" --seed 7 --steps 6000
"$python" "$here/export.py" "$work/model.pt" -o "$out/av_digits.onnx"
"$python" "$here/make_clip.py" "$work" -o "$out" --seed 7
"$python" "$here/evaluate.py" "$work" "$work/model.pt" "$out/av_digits.onnx" -o "$out"
"$python" "$here/score.py" "$out/av_digits.onnx" "$out/test.npz" --json "$work/score.json"
"$python" "$here/stream_check.py" "$out/av_digits.onnx" "$out/clip.mkv" --json "$work/stream.json"
"$python" "$here/provenance.py" "$work" -o "$out"
