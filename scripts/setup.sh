#!/usr/bin/env bash
# Installs what is missing to build and run Rushes on Debian 12. Prints nothing if everything is installed.
#
#   scripts/setup.sh            what `make preview` needs
#   scripts/setup.sh tests      also what `make test` needs
#   scripts/setup.sh PROVIDER   also an execution provider: openvino, cuda, tensorrt-rtx or webgpu
#
# System packages come from apt. The ONNX Runtime library comes from its Python wheel, through the configured pip index.
# It is stored with its licence in target/onnxruntime of the checkout, execution providers in target/providers. pip
# stores nothing elsewhere. Tests need the provider OpenVINO on Intel processors, and the parser of TensorRT for RTX,
# which is proprietary: RUSHES_SKIP_PROPRIETARY=1 skips such software.
set -euo pipefail

# The version to download, and the SHA-256 of the wheel and of the library in it, per architecture.
onnxruntime=1.31.1
library=libonnxruntime.so.$onnxruntime
machine=$(uname -m)
case $machine in
x86_64)
    wheel_sha256=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f
    library_sha256=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3
    ;;
aarch64)
    wheel_sha256=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3
    library_sha256=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467
    ;;
*) wheel_sha256='' library_sha256='' ;;
esac
oldest_rust=1.92
oldest_gstreamer=1.22

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
# shellcheck source=scripts/providers.sh
source scripts/providers.sh

say() { printf 'setup: %s\n' "$*" >&2; }
# fail WHAT WHY FIX
fail() {
    printf 'setup: %s: %s (%s)\n' "$1" "$2" "$3" >&2
    exit 4
}
have() { command -v "$1" >/dev/null; }

# Checks. missing_packages prints the Debian package for each check that fails.
has_library() { pkg-config --exists "$1 >= $oldest_gstreamer"; }
has_plugin() { [[ -e $(pkg-config --variable=pluginsdir gstreamer-1.0 2>/dev/null)/libgst$1.so ]]; }
has_pip() { python3 -m pip --version >/dev/null 2>&1 || python3 -c 'import ensurepip, venv' 2>/dev/null; }
has_c_compiler() { have cc && printf '#include <stdio.h>\n' | cc -E - >/dev/null 2>&1; }

missing_packages() {
    has_c_compiler || echo gcc libc6-dev
    if have pkg-config; then
        has_library gstreamer-1.0 || echo libgstreamer1.0-dev
        { has_library gstreamer-app-1.0 && has_library gstreamer-video-1.0; } || echo libgstreamer-plugins-base1.0-dev
        has_plugin app || echo gstreamer1.0-plugins-base
        { has_plugin isomp4 && has_plugin matroska && has_plugin vpx; } || echo gstreamer1.0-plugins-good
        has_plugin x264 || echo gstreamer1.0-plugins-ugly
    else
        echo pkg-config libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
        echo gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly
    fi
    { library_is_there && [[ $1 == run ]]; } || has_pip || echo python3-venv
    [[ $1 != webgpu ]] || missing_for_webgpu
    [[ $1 == tests ]] || return 0
    { have ffmpeg && have ffprobe; } || echo ffmpeg
    # Decodes H.264 and AAC, with the libraries of ffmpeg.
    has_plugin libav || echo gstreamer1.0-libav
    has_plugin pango || echo gstreamer1.0-x
    fc-list 2>/dev/null | grep -q . || echo fonts-dejavu-core
    { have webpinfo && have webpmux; } || echo webp
    have gst-launch-1.0 || echo gstreamer1.0-tools
    have openssl || echo openssl
    # The virtual environments of the clients of the server.
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

install_packages() {
    local packages sudo=()
    packages=$(missing_packages "$1" | xargs)
    [[ -n $packages ]] || return 0
    have apt-get || fail "missing: $packages" "this machine has no apt-get" "install the equivalent packages"
    if [[ $(id -u) != 0 ]]; then
        have sudo || fail "missing: $packages" "this user is not root and there is no sudo" \
            "run as root: apt-get install $packages"
        sudo=(sudo)
    fi
    say "installing $packages"
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    apt+=(-o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    "${apt[@]}" update || say "apt-get update failed; continuing with the existing package lists"
    local log=$target/setup-apt.log
    mkdir -p "$target"
    # shellcheck disable=SC2086 # one word per package
    "${apt[@]}" install -y --no-install-recommends $packages >"$log" || fail "apt-get could not install $packages" \
        "see its message above and $log" "fix the apt sources and run this again"
    packages=$(missing_packages "$1" | xargs)
    [[ -z $packages ]] || fail "still missing: $packages" "Debian 12 provides them in these packages" \
        "check for an older version or another installation of the same software"
}

has_sha256() { printf '%s  %s\n' "$2" "$1" | sha256sum --check --status 2>/dev/null; }

library_is_there() {
    local folder=$target/onnxruntime
    [[ -e $folder/LICENSE && -e $folder/ThirdPartyNotices.txt ]] && has_sha256 "$folder/$library" "$library_sha256"
}

# Prints the Python interpreter of a working pip.
pip_command() {
    if python3 -m pip --version >/dev/null 2>&1; then
        echo python3
    else
        [[ -x $target/setup-venv/bin/pip ]] || python3 -m venv --clear "$target/setup-venv" >&2
        echo "$target/setup-venv/bin/python"
    fi
}

# download_wheel PACKAGE VERSION SHA256 FOLDER: unpacks the wheel of a package into an empty FOLDER.
download_wheel() {
    local package=$1 version=$2 sha256=$3 fetched=$4 python
    say "downloading $package $version"
    rm -rf "$fetched"
    mkdir -p "$fetched"
    python=$(pip_command)
    # Always the wheel for Python 3.11: only libraries in it are used, and its hash is known.
    "$python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --dest "$fetched" \
        --only-binary=:all: --implementation cp --python-version 3.11 \
        --platform "manylinux_2_27_$machine" --platform "manylinux_2_28_$machine" \
        --platform "manylinux2014_$machine" "$package==$version" >&2 ||
        fail "pip could not download $package $version" "see its message above" \
            "check the network and pip's settings (pip config list) and run this again"
    local wheel=("$fetched"/*.whl)
    has_sha256 "${wheel[0]}" "$sha256" || fail "${wheel[0]##*/} does not match the published file" \
        "expected SHA-256 $sha256, found $(sha256sum "${wheel[0]}" | cut -d' ' -f1)" \
        "check the package index of pip"
    python3 -m zipfile -e "${wheel[0]}" "$fetched"
}

install_onnxruntime() {
    library_is_there && return
    [[ -n $wheel_sha256 ]] || fail "no ONNX Runtime for $machine" "its wheels are for x86_64 and aarch64" \
        "build $library yourself and set ORT_DYLIB_PATH to its path"
    local folder=$target/onnxruntime fetched=$target/onnxruntime.part
    download_wheel onnxruntime "$onnxruntime" "$wheel_sha256" "$fetched"
    mkdir -p "$folder"
    mv "$fetched"/onnxruntime/{LICENSE,ThirdPartyNotices.txt} "$folder/"
    mv "$fetched/onnxruntime/capi/$library" "$folder/"
    rm -rf "$fetched"
    library_is_there || fail "$folder/$library does not match the published file" "its SHA-256 differs" "run this again"
}

check_rust() {
    have cargo || fail "cargo is not installed" "Rushes is built from source" \
        "install Rust $oldest_rust or newer, for instance with rustup"
    local version
    version=$(cargo --version | cut -d' ' -f2)
    [[ $(printf '%s\n' "$oldest_rust" "$version" | sort -V | head -1) == "$oldest_rust" ]] ||
        fail "cargo $version is too old" "Rushes needs $oldest_rust" "run: rustup update"
    [[ $1 == tests ]] || return 0
    { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 ||
        fail "cargo lacks fmt or clippy" "the tests check format and lints" "run: rustup component add rustfmt clippy"
}

purpose=${1:-run}
case $purpose in
run | tests) ;;
openvino | cuda | tensorrt-rtx | webgpu)
    [[ $machine == x86_64 ]] || fail "$purpose cannot be installed" "its wheels are for x86_64, and this is $machine" \
        "build it yourself, and put its libraries into $target/providers/$purpose"
    ;;
*)
    printf 'usage: scripts/setup.sh [tests | openvino | cuda | tensorrt-rtx | webgpu]\n' >&2
    exit 2
    ;;
esac
have python3 || fail "python3 is not installed" "it unpacks the ONNX Runtime library" "run: apt-get install python3"
check_rust "$purpose"
install_packages "$purpose"
install_onnxruntime
case $purpose in
tests)
    if [[ $machine == x86_64 ]]; then
        ! is_intel || install_openvino
        install_tensorrt_rtx_bindings
    fi
    ;;
openvino) install_openvino ;;
cuda) install_cuda ;;
tensorrt-rtx) install_tensorrt_rtx ;;
webgpu) install_webgpu ;;
esac
