// Operators of training on CPUs, each in one pass over memory: bf16 in memory, f32 in registers. `kernels.py` compiles this file,
// says what every function computes, and `test_kernels.py` compares with plain PyTorch.
//
// Rows are contiguous. `B` samples of `L` rows of `C` channels; per-sample vectors are f32 `[B,C]`.

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

using bf16 = uint16_t;

constexpr float EPSILON = 1e-6f;  // of both norms, as in diffusers
constexpr long LONGEST_ROW = 1024;

inline float wide(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

// Rounds to the nearest, ties to even.
inline bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// exp(x) as 2^k times a polynomial; the compiler turns it into vector code, which it cannot with std::exp. Relative error 3e-6.
inline float exponential(float x) {
  x *= 1.44269504f;
  x = x < -126.f ? -126.f : (x > 126.f ? 126.f : x);
  float k = __builtin_rintf(x), t = x - k;
  float p = 1.f + t * (0.69314718f + t * (0.24022651f + t * (0.05550411f + t * (0.00961813f + t * 0.00133336f))));
  int32_t bits = (int32_t(k) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

inline float hyperbolic_tangent(float x) { return 1.f - 2.f / (1.f + exponential(2.f * x)); }

// Sixteen channels at once. Rows of the VAE are so short that loops over single channels cost several times as much.
constexpr int LANES = 16;
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

inline vector load(const float* p) {
  vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline vector load(const bf16* p) {
  halves x;
  std::memcpy(&x, p, sizeof x);
  return vector(__builtin_convertvector(x, words) << 16);
}

inline void store(bf16* p, vector x) {
#ifdef __AVX512BF16__
  auto y = _mm512_cvtneps_pbh(__m512(x));
#else
  words bits = words(x);
  auto y = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, halves);
#endif
  std::memcpy(p, &y, sizeof y);
}

inline float sum(vector x) {
  x += __builtin_shuffle(x, integers{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  x += __builtin_shuffle(x, integers{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  x += __builtin_shuffle(x, integers{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  return x[0] + x[1];
}

inline vector sigmoid(vector x) {
  // As `exponential` of -x; adding 127.5 before the conversion, which cuts off, rounds to the nearest.
  x *= -1.44269504f;
  x = x < -126.f ? vector{} - 126.f : x;
  x = x > 126.f ? vector{} + 126.f : x;
  integers bits = __builtin_convertvector(x + 127.5f, integers);
  vector t = x - __builtin_convertvector(bits - 127, vector);
  vector p = 1.f + t * (0.69314718f + t * (0.24022651f + t * (0.05550411f + t * (0.00961813f + t * 0.00133336f))));
  return 1.f / (1.f + p * vector(bits << 23));
}

template <int C>
void norm_silu(const bf16* __restrict x, const float* __restrict gamma, bf16* __restrict y, long rows) {
  constexpr int K = C / LANES;
  for (long row = 0; row < rows; row++, x += C, y += C) {
    vector v[K], squares = {};
    for (int k = 0; k < K; k++) {
      v[k] = load(x + k * LANES);
      squares += v[k] * v[k];
    }
    float scale = 1.f / std::sqrt(sum(squares) / C + 1e-12f);
    for (int k = 0; k < K; k++) {
      vector u = v[k] * scale * load(gamma + k * LANES);
      store(y + k * LANES, u * sigmoid(u));
    }
  }
}

template <int C>
void norm_silu_backward(const bf16* __restrict x, const float* __restrict gamma, const bf16* __restrict dy, bf16* __restrict dx,
                        float* __restrict dgamma, long rows) {
  constexpr int K = C / LANES;
  vector total[K] = {};
  for (long row = 0; row < rows; row++, x += C, dy += C, dx += C) {
    vector v[K], w[K], squares = {}, products = {};
    for (int k = 0; k < K; k++) {
      v[k] = load(x + k * LANES);
      squares += v[k] * v[k];
    }
    float scale = 1.f / std::sqrt(sum(squares) / C + 1e-12f);
    for (int k = 0; k < K; k++) {
      vector g = load(gamma + k * LANES), u = v[k] * scale * g, s = sigmoid(u);
      vector du = load(dy + k * LANES) * s * (1.f + u * (1.f - s));
      total[k] += du * v[k] * scale;
      w[k] = du * g;
      products += w[k] * v[k];
    }
    float along = sum(products) * scale * scale / C;
    for (int k = 0; k < K; k++) store(dx + k * LANES, scale * (w[k] - v[k] * along));
  }
  std::memcpy(dgamma, total, sizeof total);
}

}  // namespace

#define WITH_CHANNELS(C, CALL)      \
  switch (C) {                      \
    case 16: CALL(16); return 0;    \
    case 32: CALL(32); return 0;    \
    case 48: CALL(48); return 0;    \
    case 64: CALL(64); return 0;    \
    case 96: CALL(96); return 0;    \
    case 128: CALL(128); return 0;  \
    default: return 1;              \
  }

extern "C" {

// y = silu(x / rms(x) * gamma). 1 for a number of channels that it does not know.
int norm_silu_forward(const bf16* x, const float* gamma, bf16* y, long rows, int C) {
#define CALL(N) norm_silu<N>(x, gamma, y, rows)
  WITH_CHANNELS(C, CALL)
#undef CALL
}

int norm_silu_gradient(const bf16* x, const float* gamma, const bf16* dy, bf16* dx, float* dgamma, long rows, int C) {
#define CALL(N) norm_silu_backward<N>(x, gamma, dy, dx, dgamma, rows)
  WITH_CHANNELS(C, CALL)
#undef CALL
}

// y = (x - mean) / deviation * scale + shift. `stride` is C where scale and shift are per sample, 0 where all samples share them.
// `moments` receives mean and 1/deviation of every row.
void layer_norm_forward(const bf16* __restrict x, const float* __restrict scale, const float* __restrict shift, long stride,
                        bf16* __restrict y, long B, long L, int C, float* __restrict moments) {
  for (long b = 0; b < B; b++) {
    const float *a = scale + b * stride, *s = shift + b * stride;
    for (long l = 0; l < L; l++, x += C, y += C, moments += 2) {
      float mean = 0, square = 0;
      for (int c = 0; c < C; c++) mean += wide(x[c]);
      mean /= C;
      for (int c = 0; c < C; c++) square += (wide(x[c]) - mean) * (wide(x[c]) - mean);
      float inverse = 1.f / std::sqrt(square / C + EPSILON);
      moments[0] = mean;
      moments[1] = inverse;
      for (int c = 0; c < C; c++) y[c] = narrow((wide(x[c]) - mean) * inverse * a[c] + s[c]);
    }
  }
}

// Adds to dscale and dshift `[B,C]`.
void layer_norm_gradient(const bf16* __restrict x, const float* __restrict scale, long stride, const bf16* __restrict dy,
                         bf16* __restrict dx, float* __restrict dscale, float* __restrict dshift, long B, long L, int C,
                         const float* __restrict moments) {
  for (long b = 0; b < B; b++, dscale += C, dshift += C) {
    const float* a = scale + b * stride;
    for (long l = 0; l < L; l++, x += C, dy += C, dx += C, moments += 2) {
      float mean = moments[0], inverse = moments[1], sum = 0, along = 0;
      for (int c = 0; c < C; c++) {
        float n = (wide(x[c]) - mean) * inverse, d = wide(dy[c]), w = d * a[c];
        dscale[c] += d * n;
        dshift[c] += d;
        sum += w;
        along += w * n;
      }
      sum /= C;
      along /= C;
      for (int c = 0; c < C; c++) {
        float n = (wide(x[c]) - mean) * inverse;
        dx[c] = narrow(inverse * (wide(dy[c]) * a[c] - sum - n * along));
      }
    }
  }
}

// y = factor * rotated(x / rms(x) * gamma); neighbouring channels are rotated as pairs by `cosine` and `sine` `[L,C/2]`, or not at all
// where these are null.
void rms_rotate_forward(const bf16* __restrict x, const float* __restrict gamma, const float* __restrict cosine,
                        const float* __restrict sine, float factor, bf16* __restrict y, long B, long L, int C) {
  float v[LONGEST_ROW];
  for (long row = 0; row < B * L; row++, x += C, y += C) {
    float sum = 0;
    for (int c = 0; c < C; c++) {
      v[c] = wide(x[c]);
      sum += v[c] * v[c];
    }
    float scale = factor / std::sqrt(sum / C + EPSILON);
    for (int c = 0; c < C; c++) v[c] *= scale * gamma[c];
    if (cosine) {
      const float *p = cosine + row % L * (C / 2), *q = sine + row % L * (C / 2);
      for (int c = 0; c < C / 2; c++) {
        float even = v[2 * c], odd = v[2 * c + 1];
        y[2 * c] = narrow(even * p[c] - odd * q[c]);
        y[2 * c + 1] = narrow(even * q[c] + odd * p[c]);
      }
    } else {
      for (int c = 0; c < C; c++) y[c] = narrow(v[c]);
    }
  }
}

// Adds to dgamma `[C]`.
void rms_rotate_gradient(const bf16* __restrict x, const float* __restrict gamma, const float* __restrict cosine,
                         const float* __restrict sine, float factor, const bf16* __restrict dy, bf16* __restrict dx,
                         float* __restrict dgamma, long B, long L, int C) {
  float v[LONGEST_ROW], w[LONGEST_ROW];
  for (long row = 0; row < B * L; row++, x += C, dy += C, dx += C) {
    float sum = 0, along = 0;
    for (int c = 0; c < C; c++) {
      v[c] = wide(x[c]);
      sum += v[c] * v[c];
    }
    float scale = 1.f / std::sqrt(sum / C + EPSILON);
    if (cosine) {
      const float *p = cosine + row % L * (C / 2), *q = sine + row % L * (C / 2);
      for (int c = 0; c < C / 2; c++) {
        float even = wide(dy[2 * c]), odd = wide(dy[2 * c + 1]);
        w[2 * c] = even * p[c] + odd * q[c];
        w[2 * c + 1] = odd * p[c] - even * q[c];
      }
    } else {
      for (int c = 0; c < C; c++) w[c] = wide(dy[c]);
    }
    for (int c = 0; c < C; c++) {
      float d = w[c] * factor;
      dgamma[c] += d * v[c] * scale;
      w[c] = d * gamma[c];
      along += w[c] * v[c];
    }
    along *= scale * scale / C;
    for (int c = 0; c < C; c++) dx[c] = narrow(scale * (w[c] - v[c] * along));
  }
}

// GELU by its tanh approximation.
void gelu_forward(const bf16* __restrict x, bf16* __restrict y, long count) {
  for (long i = 0; i < count; i++) {
    float v = wide(x[i]);
    y[i] = narrow(0.5f * v * (1.f + hyperbolic_tangent(0.79788456f * (v + 0.044715f * v * v * v))));
  }
}

void gelu_gradient(const bf16* __restrict x, const bf16* __restrict dy, bf16* __restrict dx, long count) {
  for (long i = 0; i < count; i++) {
    float v = wide(x[i]), t = hyperbolic_tangent(0.79788456f * (v + 0.044715f * v * v * v));
    float slope = 0.5f * (1.f + t) + 0.5f * v * (1.f - t * t) * 0.79788456f * (1.f + 0.134145f * v * v);
    dx[i] = narrow(wide(dy[i]) * slope);
  }
}

// y = residual + x * gate, the gate per sample.
void gated_forward(const bf16* __restrict residual, const bf16* __restrict x, const float* __restrict gate, bf16* __restrict y, long B,
                   long L, int C) {
  for (long b = 0; b < B; b++, gate += C)
    for (long l = 0; l < L; l++, residual += C, x += C, y += C)
      for (int c = 0; c < C; c++) y[c] = narrow(wide(residual[c]) + wide(x[c]) * gate[c]);
}

// The gradients of x and, added to dgate `[B,C]`, of the gate; the residual's is dy.
void gated_gradient(const bf16* __restrict x, const float* __restrict gate, const bf16* __restrict dy, bf16* __restrict dx,
                    float* __restrict dgate, long B, long L, int C) {
  for (long b = 0; b < B; b++, gate += C, dgate += C)
    for (long l = 0; l < L; l++, x += C, dy += C, dx += C)
      for (int c = 0; c < C; c++) {
        float d = wide(dy[c]);
        dx[c] = narrow(d * gate[c]);
        dgate[c] += d * wide(x[c]);
      }
}

// Softmax of rows of at most LONGEST_ROW scores, in place; `bias` `[B,columns]`, if not null, is added to all `rows` of its sample.
void softmax_forward(bf16* __restrict x, const float* __restrict bias, long B, long rows, long columns) {
  float v[LONGEST_ROW];
  for (long row = 0; row < B * rows; row++, x += columns) {
    for (long c = 0; c < columns; c++) v[c] = wide(x[c]);
    if (bias) {
      const float* added = bias + row / rows * columns;
      for (long c = 0; c < columns; c++) v[c] += added[c];
    }
    float largest = v[0], sum = 0;
    for (long c = 0; c < columns; c++) largest = v[c] > largest ? v[c] : largest;
    for (long c = 0; c < columns; c++) {
      v[c] = exponential(v[c] - largest);
      sum += v[c];
    }
    for (long c = 0; c < columns; c++) x[c] = narrow(v[c] / sum);
  }
}

// Turns dy into the gradient of the scores, in place; `y` is what softmax gave.
void softmax_gradient(const bf16* __restrict y, bf16* __restrict dy, long rows, long columns) {
  for (long row = 0; row < rows; row++, y += columns, dy += columns) {
    float along = 0;
    for (long c = 0; c < columns; c++) along += wide(y[c]) * wide(dy[c]);
    for (long c = 0; c < columns; c++) dy[c] = narrow(wide(y[c]) * (wide(dy[c]) - along));
  }
}

}  // extern "C"
