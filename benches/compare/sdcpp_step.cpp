// One denoising step of the 1.3B shape in stable-diffusion.cpp, with its own classes and random weights: the work of
// its program for each step, without loading a text encoder and a VAE.
//
//     sdcpp_step FRAMES ROWS COLUMNS THREADS RUNS TYPE FLASH
//
// FRAMES, ROWS and COLUMNS of patches; TYPE of the weights: f16 or q8_0; FLASH attention: 0 or 1. Prints one JSON line.
// A step on a few tokens warms up the weights and is not timed. sdcpp.py builds this file with the library.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "wan.hpp"

static const char* PREFIX = "model.diffusion_model";
static const int64_t TEXT_ROWS = 512, TEXT_WIDTH = 4096, LATENT_CHANNELS = 16;

using Tensors = std::map<std::string, ggml_tensor*>;

static uint64_t state = 88172645463325252ull;

// Returns values of mean 0 and variance 1.
static float number() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (static_cast<float>(state >> 40) / 16777216.0f - 0.5f) * 3.4641016f;
}

static sd::Tensor<float> values(std::vector<int64_t> shape) {
    auto tensor = sd::Tensor<float>::zeros(shape);
    for (int64_t i = 0; i < tensor.numel(); i++) {
        tensor.data()[i] = number();
    }
    return tensor;
}

// Gains are near 1, all other weights near 0.
static void fill(const std::string& name, ggml_tensor* tensor) {
    const float centre = name.find("norm") != std::string::npos && ggml_n_dims(tensor) == 1 &&
                                 name.find("weight") != std::string::npos
                             ? 1.0f
                             : 0.0f;
    const int64_t columns = tensor->ne[0], rows = ggml_nelements(tensor) / columns;
    std::vector<float> floats(ggml_nelements(tensor));
    for (float& value : floats) {
        value = centre + 0.02f * number();
    }
    std::vector<char> stored(ggml_nbytes(tensor));
    ggml_quantize_chunk(tensor->type, floats.data(), stored.data(), 0, rows, columns, nullptr);
    ggml_backend_tensor_set(tensor, stored.data(), 0, stored.size());
}

static double step(WAN::WanRunner& runner, int frames, int rows, int columns, int threads) {
    auto latent  = values({2 * columns, 2 * rows, frames, LATENT_CHANNELS});
    auto text    = values({TEXT_WIDTH, TEXT_ROWS});
    auto time    = sd::Tensor<float>::full({1}, 500.0f);
    auto began   = std::chrono::steady_clock::now();
    auto result  = runner.compute(threads, latent, time, text);
    auto ended   = std::chrono::steady_clock::now();
    if (result.empty() || !(result.data()[0] == result.data()[0])) {
        std::fprintf(stderr, "the step returned no values, or NaN\n");
        std::exit(1);
    }
    return std::chrono::duration<double>(ended - began).count();
}

int main(int count, char** words) {
    if (count != 8) {
        std::fprintf(stderr, "usage: sdcpp_step FRAMES ROWS COLUMNS THREADS RUNS TYPE FLASH\n");
        return 2;
    }
    const int frames = std::atoi(words[1]), rows = std::atoi(words[2]), columns = std::atoi(words[3]);
    const int threads = std::atoi(words[4]), runs = std::atoi(words[5]);
    const ggml_type type = std::string(words[6]) == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    ggml_backend_t backend = ggml_backend_cpu_init();

    // The model's sizes follow from the number of blocks in the file, the types of weights from its entries.
    String2TensorStorage storage;
    storage[std::string(PREFIX) + ".blocks.29.ffn.0.weight"] = TensorStorage();
    Tensors names;
    {
        WAN::WanRunner shapes(backend, false, storage, PREFIX, VERSION_WAN2);
        shapes.get_param_tensors(names, PREFIX);
    }
    for (const auto& [name, _] : names) {
        TensorStorage stored;
        stored.name   = name;
        stored.type   = ends_with(name, "weight") ? type : GGML_TYPE_F32;
        storage[name] = stored;
    }
    WAN::WanRunner runner(backend, false, storage, PREFIX, VERSION_WAN2);
    runner.set_flash_attention_enabled(std::atoi(words[7]) != 0);
    runner.alloc_params_buffer();
    Tensors tensors;
    runner.get_param_tensors(tensors, PREFIX);
    int64_t weights = 0;
    for (const auto& [name, tensor] : tensors) {
        fill(name, tensor);
        weights += ggml_nelements(tensor);
    }

    step(runner, 1, 2, 2, threads);
    std::string seconds;
    for (int run = 0; run < runs; run++) {
        seconds += (run > 0 ? ", " : "") + std::to_string(step(runner, frames, rows, columns, threads));
    }
    std::printf("{\"kind\": \"stable-diffusion.cpp %s%s\", \"tokens\": %d, \"weights\": %lld, \"bytes\": %zu, \"seconds\": [%s]}\n",
                words[6], std::atoi(words[7]) != 0 ? ", flash attention" : "", frames * rows * columns,
                static_cast<long long>(weights), runner.get_params_buffer_size(), seconds.c_str());
    return 0;
}
