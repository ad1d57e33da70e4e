# Execution providers: which files of which wheels each needs, and their installation. Sourced by scripts/setup.sh.
#
# A provider is a folder target/providers/NAME. Its wheels come by pip and are checked against the hashes below. What is
# taken from them is listed with SHA-256 in the file `installed` of the folder, whose first line names the wheels: a
# folder is complete if that line is the expected one and every file has its hash. Files are read for that only if the
# size or the time of one has changed since (file `read`): those of CUDA have 2 GB.

# Lines of PACKAGE VERSION SHA256 FILES..., with FILES inside the wheel; a name after = is that of the installed file.
wheels_of() {
    case $1 in
    openvino)
        echo onnxruntime-ep-openvino 1.8.1 3832643158c8c187fcab6db661cde2a8c06a2b3559d95d0f2411ac0e51c5e924 \
            onnxruntime_ep_openvino/{libonnxruntime_providers_openvino_plugin.so,libopenvino.so.2641} \
            onnxruntime_ep_openvino/{libopenvino_intel_cpu_plugin.so,libopenvino_onnx_frontend.so.2641} \
            onnxruntime_ep_openvino/libopenvino_ir_frontend.so.2641 \
            onnxruntime_ep_openvino/{libtbb.so.12,libtbbbind_2_5.so.3,libhwloc.so.15,third-party-programs.txt} \
            onnxruntime_ep_openvino-1.8.1.dist-info/METADATA
        ;;
    webgpu)
        echo onnxruntime-ep-webgpu 0.4.0 5d8c961eda91a88961cad1fb7621f389f006b18497d6ea9ecf96f729f066cbfb \
            onnxruntime_ep_webgpu/libonnxruntime_providers_webgpu.so \
            onnxruntime_ep_webgpu-0.4.0.dist-info/licenses/{LICENSE,ThirdPartyNotices.txt}
        ;;
    cuda)
        echo onnxruntime-gpu 1.31.1 e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6 \
            onnxruntime/capi/{libonnxruntime.so.1.31.1,libonnxruntime_providers_shared.so} \
            onnxruntime/capi/{libonnxruntime_providers_cuda.so,libonnxruntime_providers_tensorrt.so} \
            onnxruntime/{LICENSE,ThirdPartyNotices.txt}
        echo nvidia-cuda-runtime 13.5.37 df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d \
            nvidia/cu13/lib/libcudart.so.13 \
            nvidia_cuda_runtime-13.5.37.dist-info/licenses/License.txt=LICENSE-CUDA.txt
        echo nvidia-cublas 13.10.0.20 dcc6d63884c53d07e267ce7e6feac17b2538cebaafec5db865736c3e28e4dc84 \
            nvidia/cu13/lib/{libcublas.so.13,libcublasLt.so.13}
        echo nvidia-cudnn-cu13 9.28.1.4 a54f205b1db1f2895d99f398754db1369816f0569dd459731f925635cf7b65ec \
            nvidia/cudnn/lib/libcudnn{,_graph,_ops,_cnn,_adv,_ext,_heuristic}.so.9 \
            nvidia/cudnn/lib/libcudnn_engines_{precompiled,runtime_compiled,tensor_ir}.so.9 \
            nvidia_cudnn_cu13-9.28.1.4.dist-info/licenses/License.txt=LICENSE-cuDNN.txt
        echo nvidia-curand 10.4.5.25 22bb226a857e5888fe6b54ae465fc4371296bcff13a35f79e19691bcf454f529 \
            nvidia/cu13/lib/libcurand.so.10
        echo nvidia-cuda-nvrtc 13.5.37 86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc \
            nvidia/cu13/lib/{libnvrtc.so.13,libnvrtc-builtins.so.13.5}
        echo nvidia-cufft 12.5.0.14 b8be26837a5abad2b5b74f3e92dd29f622a42934b355be0961a48712cbba23ad \
            nvidia/cu13/lib/libcufft.so.12
        ;;
    tensorrt-rtx)
        echo onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0 \
            32f575c633d171b4edf4b53d3bb22b72a6c9c0a850d2982ce9a788a5d40d3298 \
            onnxruntime_ep_nv_tensorrt_rtx/libonnxruntime_providers_nv_tensorrt_rtx.so \
            onnxruntime_ep_nv_tensorrt_rtx/libcudart.so.13.4.36=libcudart.so.13 \
            onnxruntime_ep_nv_tensorrt_rtx/libtensorrt_rtx.so.1.7.1=libtensorrt_rtx.so.1 \
            onnxruntime_ep_nv_tensorrt_rtx/libtensorrt_onnxparser_rtx.so.1.7.1=libtensorrt_onnxparser_rtx.so.1 \
            onnxruntime_ep_nv_tensorrt_rtx/Acknowledgements.txt
        ;;
    # The parser and builder of TensorRT for RTX with their Python bindings, which tests call.
    tensorrt-rtx/python)
        echo tensorrt-rtx-cu13-libs 1.7.1.116 e3fd45fed001240d63304e77a2d4006319b839994237cb294b6e7ad72acaabcd ALL
        echo tensorrt-rtx-cu13-bindings 1.7.1.116 6a4d2bf39a98b71238046b9a9dd22d0e6b146be90cd56ac09f1e068933e4e18d ALL
        ;;
    esac
}

# The wheels of a provider on one line: the first line of its file `installed`.
stamp_of() { printf '# %s\n' "$(wheels_of "$1" | cut -d' ' -f1-3 | xargs)"; }

# folder_is_whole FOLDER STAMP
folder_is_whole() {
    [[ -e $1/installed && $(head -1 "$1/installed") == "$2" ]] || return 1
    local seen
    seen=$(cd "$1" && tail -n +2 installed | cut -c67- | tr '\n' '\0' | xargs -0 stat -L -c '%n %s %y %z' installed \
        2>/dev/null) || return 1
    [[ -e $1/read && $(<"$1/read") == "$seen" ]] && return
    (cd "$1" && sha256sum --check --status --strict installed 2>/dev/null) || return 1
    printf '%s\n' "$seen" >"$1/read"
}
provider_is_there() { folder_is_whole "$target/providers/$1" "$(stamp_of "$1")"; }

# publish FOLDER STAMP: moves what is in FOLDER.part to FOLDER, in place of what was installed before. The list is last,
# so that an interrupted installation is not complete.
publish() {
    local folder=$1 stamp=$2 old
    (cd "$folder.part" && { echo "$stamp" && find . -type f -print0 | sort -z | xargs -0 sha256sum; }) >"$folder.list"
    mkdir -p "$folder"
    if [[ -e $folder/installed ]]; then
        while read -r _ old; do rm -f "$folder/$old"; done < <(tail -n +2 "$folder/installed")
        rm -f "$folder/installed" "$folder/read"
    fi
    cp -al "$folder.part/." "$folder/"
    rm -rf "$folder.part"
    mv "$folder.list" "$folder/installed"
}

# install_wheels NAME: gets the wheels of a provider and puts their files into its folder.
install_wheels() {
    local folder=$target/providers/$1 fetched=$target/providers/wheel.part package version sha256 files file
    rm -rf "$folder.part"
    mkdir -p "$folder.part"
    while read -r package version sha256 files; do
        download_wheel "$package" "$version" "$sha256" "$fetched"
        if [[ $files == ALL ]]; then
            rm "$fetched"/*.whl
            cp -al "$fetched/." "$folder.part/"
        else
            for file in $files; do
                [[ -e $fetched/${file%%=*} ]] || fail "$package $version lacks ${file%%=*}" \
                    "the wheel is not the expected one" "report this"
                mv "$fetched/${file%%=*}" "$folder.part/$(basename "${file##*=}")"
            done
        fi
        rm -rf "$fetched"
    done < <(wheels_of "$1")
    publish "$folder" "$(stamp_of "$1")"
    provider_is_there "$1" || fail "$folder is not complete" "its files changed while they were installed" "run this again"
}

# is_declined NAME LICENCE: says that software is proprietary. Succeeds if it is not wanted.
is_declined() {
    if [[ ${RUSHES_SKIP_PROPRIETARY:-} == 1 ]]; then
        say "skipping $1: it is proprietary ($2), and RUSHES_SKIP_PROPRIETARY is 1"
        return 0
    fi
    say "$1 is proprietary software of NVIDIA: its use is subject to $2 (RUSHES_SKIP_PROPRIETARY=1 skips it)"
    return 1
}

is_intel() { grep -q GenuineIntel /proc/cpuinfo 2>/dev/null; }

install_openvino() {
    is_intel || fail "OpenVINO cannot be used" "its plug-in supports processors of Intel only" "use another provider"
    provider_is_there openvino || install_wheels openvino
}

# Also has the libraries of classic TensorRT's provider. TensorRT itself is not on pip's index.
install_cuda() {
    provider_is_there cuda && return
    is_declined "CUDA 13 with cuDNN" "licences that are kept beside it" && return
    install_wheels cuda
}

install_tensorrt_rtx() {
    provider_is_there tensorrt-rtx && return
    is_declined "TensorRT for RTX" "the NVIDIA software licence agreement" && return
    install_wheels tensorrt-rtx
}

# Its extension is for Python 3.11.
install_tensorrt_rtx_bindings() {
    if [[ $(python3 -c 'import sys; print(*sys.version_info[:2], sep=".")') != 3.11 ]]; then
        say "skipping the Python bindings of TensorRT for RTX, which tests of graphs use: they need Python 3.11"
        return
    fi
    provider_is_there tensorrt-rtx/python && return
    is_declined "TensorRT for RTX, which tests of graphs use," "the NVIDIA software licence agreement" && return
    install_wheels tensorrt-rtx/python
}

has_gpu() { compgen -G '/dev/dri/renderD*' >/dev/null; }

# The Debian packages of libraries that are not installed: of WebGPU, and of its software driver where it is needed.
missing_for_webgpu() {
    local libraries='libvulkan.so.1 libvulkan1' library package known
    has_gpu || libraries+='
libLLVM-15.so.1 libllvm15
libdrm.so.2 libdrm2
libexpat.so.1 libexpat1
libX11-xcb.so.1 libx11-xcb1
libxcb-randr.so.0 libxcb-randr0
libxcb-dri3.so.0 libxcb-dri3-0
libxcb-present.so.0 libxcb-present0
libxcb-xfixes.so.0 libxcb-xfixes0
libxcb-sync.so.1 libxcb-sync1
libxcb-shm.so.0 libxcb-shm0
libxshmfence.so.1 libxshmfence1
libwayland-client.so.0 libwayland-client0'
    known=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p)
    while read -r library package; do
        [[ $known == *"$library "* ]] || echo "$package"
    done <<<"$libraries"
}

# WebGPU runs on the GPU of this machine. Without one it runs on the software driver of Mesa.
install_webgpu() {
    provider_is_there webgpu || install_wheels webgpu
    has_gpu || install_lavapipe
}

# The oldest Mesa that the plug-in accepts is in backports. Its package is unpacked, not installed, and apt's sources
# are not changed: apt is called with sources and folders of its own.
lavapipe_stamp='# mesa-vulkan-drivers of bookworm-backports'
install_lavapipe() {
    local folder=$PWD/$target/providers/webgpu/driver work uri apt
    [[ $target != /* ]] || folder=$target/providers/webgpu/driver
    if ! folder_is_whole "$folder" "$lavapipe_stamp"; then
        { have apt-get && have dpkg; } || fail "no software driver for WebGPU" "this machine has no apt-get" \
            "install Mesa 24 or newer with lavapipe, and set VK_DRIVER_FILES and ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1"
        say "downloading mesa-vulkan-drivers of bookworm-backports"
        work=$(mktemp -d)
        mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
        uri=$(debian_archive)
        [[ -n $uri ]] || fail "no software driver for WebGPU" "apt has no source with the suite bookworm" \
            "install Mesa 24 or newer with lavapipe, and set VK_DRIVER_FILES and ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1"
        printf 'deb [signed-by=%s] %s bookworm-backports main\n' /usr/share/keyrings/debian-archive-keyring.gpg "$uri" \
            >"$work/sources.list"
        apt=(apt-get -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
            -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
        [[ $(id -u) != 0 ]] || apt+=(-o APT::Sandbox::User=root)
        { "${apt[@]}" update && (cd "$work" && "${apt[@]}" download mesa-vulkan-drivers/bookworm-backports); } \
            >"$work/log" 2>&1 || fail "apt-get could not download mesa-vulkan-drivers" "$(tail -1 "$work/log")" \
            "check the network and apt's sources and run this again"
        dpkg -x "$work"/mesa-vulkan-drivers_*.deb "$work/unpacked"
        rm -rf "$folder.part"
        mkdir -p "$folder.part"
        cp "$work"/unpacked/usr/lib/*/libvulkan_lvp.so "$work"/unpacked/usr/share/doc/mesa-vulkan-drivers/copyright \
            "$folder.part/"
        # A path with a slash is relative to the file that it is in.
        sed -E 's#"library_path": "[^"]*"#"library_path": "./libvulkan_lvp.so"#' \
            "$work"/unpacked/usr/share/vulkan/icd.d/lvp_icd*.json >"$folder.part/lvp_icd.json"
        rm -rf "$work"
        publish "$folder" "$lavapipe_stamp"
    fi
    local missing
    missing=$(ldd "$folder/libvulkan_lvp.so" | sed -n 's/^\t*\([^ ]*\) => not found$/\1/p' | xargs)
    [[ -z $missing ]] || fail "the software driver of WebGPU lacks $missing" "they are libraries of Debian 12" \
        "install the packages that have them and run this again"
    local env="export VK_DRIVER_FILES='$folder/lvp_icd.json'
export ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1
export MESA_SHADER_CACHE_DIR='${folder%/driver}/shaders'"
    [[ -e ${folder%/driver}/env.sh && $(<"${folder%/driver}/env.sh") == "$env" ]] ||
        printf '%s\n' "$env" >"${folder%/driver}/env.sh"
}

# The address of the archive that apt gets the suite bookworm from, in either format of its sources.
debian_archive() {
    local file
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        [[ -r $file ]] || continue
        awk '
            /^[[:space:]]*$/ { uri = "" }
            $1 == "URIs:" { uri = $2 }
            $1 == "Suites:" { for (i = 2; i <= NF; i++) if ($i == "bookworm" && uri != "") print uri }
            $1 == "deb" { sub(/\[[^]]*\]/, ""); if ($3 == "bookworm") print $2 }' "$file"
    done | sed -n 1p
}
