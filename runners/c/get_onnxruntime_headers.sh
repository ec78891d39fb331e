#!/bin/sh
# Copies the headers of ONNX Runtime's C API into a folder: get_onnxruntime_headers.sh FOLDER
#
# Takes those of the package libonnxruntime-dev if it is installed. Otherwise downloads this package of Debian 13 (85 kB)
# with apt and extracts it; nothing is installed, and no root is needed.
set -eu
folder=${1:?usage: get_onnxruntime_headers.sh FOLDER}
header=onnxruntime_c_api.h
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
[ ! -f "$folder/$header" ] || exit 0
if [ -f "/usr/include/onnxruntime/$header" ]; then
    cp /usr/include/onnxruntime/*.h "$folder"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "no apt-get: copy $header of ONNX Runtime 1.17 or newer to $folder" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/sources"
cat >"$work/sources/trixie.sources" <<EOF
Types: deb
URIs: ${DEBIAN_MIRROR:-http://deb.debian.org/debian}
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
cd "$work"
set -- -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$work/sources" -o "Dir::State::lists=$work/lists" \
    -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User="
apt-get "$@" -qq update
apt-get "$@" -qq download libonnxruntime-dev
dpkg-deb -x ./*.deb extracted
cp extracted/usr/include/onnxruntime/*.h "$folder"
echo "headers of ONNX Runtime: $folder"
