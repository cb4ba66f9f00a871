// One pass of a LLaMA with a cache, for few positions at a time, and one draw: what decoding on a CPU waits for.
//
// A general matrix product treats a handful of rows as a thin matrix and reads weights at a fraction of the memory's
// speed, most of all 16-bit ones. Here weights are streamed once a pass, widened to float in registers, and multiplied
// with all rows at hand; activations and sums are float throughout. `kernels.py` compiles and calls this; its numbers
// are those of TorchBackend's forward up to rounding.
//
// A "lane" is one new position of one row of the batch. Everything is row-major and contiguous.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

namespace {

constexpr int MAX_HEAD_DIM = 256;
constexpr int AHEAD = 8;  // rows of weights that are fetched in advance
// Floats of a vector, and how many vectors the processor holds. A vector of two registers works, but its sums spill.
#ifdef __AVX512F__
constexpr int WIDTH = 16, REGISTERS = 32;
#else
constexpr int WIDTH = 8, REGISTERS = 16;
#endif
typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef float Quartet __attribute__((vector_size(16)));
typedef int32_t Integers __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

typedef uint16_t bfloat16;  // the upper half of a float

inline Vector load(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline Vector load(const bfloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return reinterpret_cast<Vector>(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline void put(float* to, float x) { *to = x; }

inline void put(bfloat16* to, float x) {  // to nearest, ties to even
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    *to = bfloat16((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
}

inline float sum(Vector v) {
    Quartet parts[WIDTH / 4];
    std::memcpy(parts, &v, sizeof v);
    for (int count = WIDTH / 8; count; count /= 2)
        for (int i = 0; i < count; i++) parts[i] += parts[i + count];
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

// Cephes' expf on a vector: exp(x) = 2^n exp(r), |r| <= ln 2 / 2. Relative error below 2e-7.
inline Vector exponential(Vector x) {
    x = x < -87.3f ? (Vector{} - 87.3f) : x;
    x = x > 88.3f ? (Vector{} + 88.3f) : x;
    const Vector shifter = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Vector n = (x * 1.44269504f + shifter) - shifter;
    Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
                + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return p * reinterpret_cast<Vector>(power);
}

template <class T>
inline float dot(const float* a, const T* b, int n) {
    Vector total{};
    for (int i = 0; i < n; i += WIDTH) total += load(a + i) * load(b + i);
    return sum(total);
}

// out[lane][o] = x[lane] . weights[o] for OUTS outputs and LANES lanes at once, all sums in registers.
template <int OUTS, int LANES, class T>
inline void tile(const float* x, const T* weights, float* out, int inner, int out_stride) {
    Vector totals[OUTS][LANES] = {};
    for (int k = 0; k < inner; k += WIDTH) {
        Vector w[OUTS];
        for (int o = 0; o < OUTS; o++) {
            w[o] = load(weights + int64_t(o) * inner + k);
            // Rows are short, and so are the streams that a processor would notice by itself: a quarter of the time.
            __builtin_prefetch(weights + (int64_t(o) + AHEAD) * inner + k);
        }
        for (int lane = 0; lane < LANES; lane++) {
            Vector of_lane = load(x + int64_t(lane) * inner + k);
            for (int o = 0; o < OUTS; o++) totals[o][lane] += w[o] * of_lane;
        }
    }
    for (int lane = 0; lane < LANES; lane++)
        for (int o = 0; o < OUTS; o++) out[int64_t(lane) * out_stride + o] = sum(totals[o][lane]);
}

constexpr int BLOCK = 16;  // outputs whose weights stay in the cache while all lanes pass over them
constexpr int LANES_AT_ONCE = 5;

// A block of LANES lanes, by as many outputs at once as leave registers for weights and lanes.
template <int LANES, class T>
inline void tiles(const float* x, const T* weights, float* out, int inner, int out_stride) {
    constexpr int SUMS = REGISTERS - 6 - LANES;
    constexpr int OUTS = 8 * LANES <= SUMS ? 8 : 4 * LANES <= SUMS ? 4 : 2;
    for (int o = 0; o < BLOCK; o += OUTS)
        tile<OUTS, LANES>(x, weights + int64_t(o) * inner, out + o, inner, out_stride);
}

template <class T>
__attribute__((noinline)) void block(const float* x, const T* weights, float* out, int lanes, int inner, int out_stride) {
    for (; lanes >= LANES_AT_ONCE; lanes -= LANES_AT_ONCE) {
        tiles<LANES_AT_ONCE>(x, weights, out, inner, out_stride);
        x += int64_t(LANES_AT_ONCE) * inner;
        out += int64_t(LANES_AT_ONCE) * out_stride;
    }
    switch (lanes) {
        case 1: tiles<1>(x, weights, out, inner, out_stride); break;
        case 2: tiles<2>(x, weights, out, inner, out_stride); break;
        case 3: tiles<3>(x, weights, out, inner, out_stride); break;
        case 4: tiles<4>(x, weights, out, inner, out_stride); break;
    }
}

// Inside a parallel region. out (lanes, outputs) = x (lanes, inner) weights^T, handed to `then` block by block.
template <class T, class Then>
inline void product(const float* x, const T* weights, int lanes, int inner, int outputs, float* out, Then then) {
#pragma omp for schedule(static)
    for (int first = 0; first < outputs; first += BLOCK) {
        int count = outputs - first < BLOCK ? outputs - first : BLOCK;
        if (count == BLOCK) {
            block(x, weights + int64_t(first) * inner, out + first, lanes, inner, outputs);
        } else {
            for (int lane = 0; lane < lanes; lane++)
                for (int o = first; o < outputs; o++)
                    out[int64_t(lane) * outputs + o] = dot(x + int64_t(lane) * inner, weights + int64_t(o) * inner, inner);
        }
        then(first, count);
    }
}

template <class T>
inline void normalise(const float* x, const T* weight, float* out, int width, float epsilon) {
    float scale = 1.0f / std::sqrt(dot(x, x, width) / float(width) + epsilon);
    for (int i = 0; i < width; i += WIDTH) store(out + i, load(x + i) * scale * load(weight + i));
}

}  // namespace

extern "C" {

struct Shape {
    int32_t layers, width, heads, key_value_heads, head_dim, mlp_width, threads, batch, capacity, lanes, shared_length;
    float epsilon;
};

struct Layer {
    const void *input_norm, *qkv, *output, *mlp_norm, *gate_up, *down;
};

// Of every lane: the row that it is written to, the row that holds its first `shared_length` positions, its position.
struct Cache {
    void *keys, *values;     // (layers, batch, key_value_heads, capacity, head_dim)
    const float *cos, *sin;  // (positions, head_dim)
    const int32_t *rows, *owners, *positions;
};

}  // extern "C"

namespace {

// Rotate a head by its position and write it down.
template <class T>
inline void rotate(const float* head, const float* cos, const float* sin, T* out, int dim) {
    int half = dim / 2;
    for (int i = 0; i < half; i++) {
        put(out + i, head[i] * cos[i] - head[i + half] * sin[i]);
        put(out + i + half, head[i + half] * cos[i + half] + head[i] * sin[i + half]);
    }
}

// scores[g][j - begin] = queries[g] . keys[j] / sqrt(dim) for j in [begin, end), each key read once for all queries.
template <int QUERIES, class T>
inline void score(const float* const* queries, const T* keys, int begin, int end, int dim, float* const* scores) {
    float scale = 1.0f / std::sqrt(float(dim));
    for (int j = begin; j < end; j++) {
        Vector totals[QUERIES] = {};
        for (int i = 0; i < dim; i += WIDTH) {
            Vector key = load(keys + int64_t(j) * dim + i);
            for (int g = 0; g < QUERIES; g++) totals[g] += load(queries[g] + i) * key;
        }
        for (int g = 0; g < QUERIES; g++) scores[g][j] = scale * sum(totals[g]);
    }
}

// out[g] += sum over j in [begin, end) of scores[g][j] values[j]
template <int QUERIES, class T>
inline void mix(const float* const* scores, const T* values, int begin, int end, int dim, float* const* out) {
    constexpr int AT_ONCE = QUERIES > 2 ? 2 : 4;  // as many sums as stay in registers
    int first = 0;
    for (; first + AT_ONCE * WIDTH <= dim; first += AT_ONCE * WIDTH) {
        Vector totals[QUERIES][AT_ONCE] = {};
        for (int j = begin; j < end; j++)
            for (int c = 0; c < AT_ONCE; c++) {
                Vector value = load(values + int64_t(j) * dim + first + c * WIDTH);
                for (int g = 0; g < QUERIES; g++) totals[g][c] += scores[g][j] * value;
            }
        for (int g = 0; g < QUERIES; g++)
            for (int c = 0; c < AT_ONCE; c++) {
                float* to = out[g] + first + c * WIDTH;
                store(to, load(to) + totals[g][c]);
            }
    }
    for (; first < dim; first += WIDTH)
        for (int g = 0; g < QUERIES; g++) {
            Vector total{};
            for (int j = begin; j < end; j++) total += scores[g][j] * load(values + int64_t(j) * dim + first);
            store(out[g] + first, load(out[g] + first) + total);
        }
}

// Scores of `length` positions to weights that add up to one. There is room for WIDTH more.
inline void soften(float* scores, int length) {
    float highest = -INFINITY;
    for (int j = 0; j < length; j++) highest = scores[j] > highest ? scores[j] : highest;
    for (int j = length; j % WIDTH; j++) scores[j] = -INFINITY;
    Vector total{};
    for (int j = 0; j < length; j += WIDTH) {
        Vector weight = exponential(load(scores + j) - highest);
        store(scores + j, weight);
        total += weight;
    }
    float scale = 1.0f / sum(total);
    for (int j = 0; j < length; j += WIDTH) store(scores + j, load(scores + j) * scale);
}

constexpr int GROUP = 4;  // lanes that read what they share together

// One head of QUERIES lanes that share an owner.
template <int QUERIES, class T>
inline void attend_group(const Shape& s, const Cache& cache, const T* keys, const T* values, int first_lane, int head,
                         const float* qkv, int qkv_width, float* scores, float* attended) {
    const int dim = s.head_dim, score_room = s.capacity + WIDTH;
    const int64_t of_head = int64_t(s.capacity) * dim, of_row = s.key_value_heads * of_head;
    const int64_t offset = head / (s.heads / s.key_value_heads) * of_head;
    float rotated[GROUP][MAX_HEAD_DIM];
    const float* queries[GROUP];
    float *weights[GROUP], *out[GROUP];
    for (int g = 0; g < QUERIES; g++) {
        int lane = first_lane + g;
        int64_t angle = int64_t(cache.positions[lane]) * dim;
        rotate(qkv + int64_t(lane) * qkv_width + head * dim, cache.cos + angle, cache.sin + angle, rotated[g], dim);
        queries[g] = rotated[g];
        weights[g] = scores + (int64_t(lane) * s.heads + head) * score_room;
        out[g] = attended + (int64_t(lane) * s.heads + head) * dim;
        std::memset(out[g], 0, dim * sizeof(float));
    }
    const int64_t shared = cache.owners[first_lane] * of_row + offset;
    int shared_length = s.shared_length;  // a row that began anew may be shorter, and then reads itself
    for (int g = 0; g < QUERIES; g++)
        if (cache.positions[first_lane + g] < shared_length) shared_length = cache.positions[first_lane + g];
    score<QUERIES>(queries, keys + shared, 0, shared_length, dim, weights);
    for (int g = 0; g < QUERIES; g++) {
        const int64_t own = cache.rows[first_lane + g] * of_row + offset;
        const int length = cache.positions[first_lane + g] + 1;
        score<1>(queries + g, keys + own, shared_length, length, dim, weights + g);
        soften(weights[g], length);
        mix<1>(weights + g, values + own, shared_length, length, dim, out + g);
    }
    mix<QUERIES>(weights, values + shared, 0, shared_length, dim, out);
}

// Inside a parallel region: write new keys and values, then attend. attended (lanes, heads, head_dim).
template <class T>
inline void attend(const Shape& s, const Cache& cache, int layer, const float* qkv, float* scores, float* attended) {
    const int dim = s.head_dim, qkv_width = (s.heads + 2 * s.key_value_heads) * dim;
    const int of_queries = s.heads * dim, of_keys = s.key_value_heads * dim;
    const int64_t of_row = int64_t(s.key_value_heads) * s.capacity * dim;
    T* keys = static_cast<T*>(cache.keys) + layer * s.batch * of_row;
    T* values = static_cast<T*>(cache.values) + layer * s.batch * of_row;
#pragma omp for schedule(static)
    for (int task = 0; task < s.lanes * s.key_value_heads; task++) {
        int lane = task / s.key_value_heads, head = task % s.key_value_heads, position = cache.positions[lane];
        const float* key = qkv + int64_t(lane) * qkv_width + of_queries + head * dim;
        int64_t place = cache.rows[lane] * of_row + (int64_t(head) * s.capacity + position) * dim;
        rotate(key, cache.cos + int64_t(position) * dim, cache.sin + int64_t(position) * dim, keys + place, dim);
        for (int i = 0; i < dim; i++) put(values + place + i, key[of_keys + i]);
    }
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < (s.lanes + GROUP - 1) / GROUP * s.heads; task++) {
        int head = task % s.heads, lane = task / s.heads * GROUP;
        int end = lane + GROUP < s.lanes ? lane + GROUP : s.lanes;
        while (lane < end) {
            int count = 1;
            while (lane + count < end && cache.owners[lane + count] == cache.owners[lane]) count++;
            switch (count) {
                case 1: attend_group<1, T>(s, cache, keys, values, lane, head, qkv, qkv_width, scores, attended); break;
                case 2: attend_group<2, T>(s, cache, keys, values, lane, head, qkv, qkv_width, scores, attended); break;
                case 3: attend_group<3, T>(s, cache, keys, values, lane, head, qkv, qkv_width, scores, attended); break;
                default: attend_group<4, T>(s, cache, keys, values, lane, head, qkv, qkv_width, scores, attended);
            }
            lane += count;
        }
    }
}

template <class T>
void pass(const Shape& s, const Cache& cache, const Layer* layers, const void* final_norm, float* hidden, float* normed,
          float* scratch, float* scores) {
    const int lanes = s.lanes, width = s.width, of_queries = s.heads * s.head_dim;
    const int qkv_width = of_queries + 2 * s.key_value_heads * s.head_dim, gate_up_width = 2 * s.mlp_width;
    float* qkv = scratch;
    float* attended = qkv + int64_t(lanes) * qkv_width;
    float* gate_up = attended + int64_t(lanes) * of_queries;
    float* active = gate_up + int64_t(lanes) * gate_up_width;
    float* change = active + int64_t(lanes) * s.mlp_width;
    auto nothing = [](int, int) {};
    auto add = [&](int first, int count) {  // what a block put into `change` to the hidden states
        for (int lane = 0; lane < lanes; lane++)
            for (int o = first; o < first + count; o++)
                hidden[int64_t(lane) * width + o] += change[int64_t(lane) * width + o];
    };
    auto normalise_all = [&](const void* weight) {
#pragma omp for schedule(static)
        for (int lane = 0; lane < lanes; lane++)
            normalise(hidden + int64_t(lane) * width, static_cast<const T*>(weight), normed + int64_t(lane) * width, width,
                      s.epsilon);
    };

#pragma omp parallel num_threads(s.threads)
    {
        for (int l = 0; l < s.layers; l++) {
            const Layer& layer = layers[l];
            normalise_all(layer.input_norm);
            product(normed, static_cast<const T*>(layer.qkv), lanes, width, qkv_width, qkv, nothing);
            attend<T>(s, cache, l, qkv, scores, attended);
            product(attended, static_cast<const T*>(layer.output), lanes, of_queries, width, change, add);
            normalise_all(layer.mlp_norm);
            product(normed, static_cast<const T*>(layer.gate_up), lanes, width, gate_up_width, gate_up, nothing);
#pragma omp for schedule(static)
            for (int first = 0; first < s.mlp_width; first += WIDTH)
                for (int lane = 0; lane < lanes; lane++) {
                    const float* of_lane = gate_up + int64_t(lane) * gate_up_width + first;
                    Vector gate = load(of_lane);
                    store(active + int64_t(lane) * s.mlp_width + first,
                          gate / (1.0f + exponential(-gate)) * load(of_lane + s.mlp_width));
                }
            product(active, static_cast<const T*>(layer.down), lanes, s.mlp_width, width, change, add);
        }
        normalise_all(final_norm);
    }
}

template <class T>
void attention(const Shape& s, const Cache& cache, int layer, const float* qkv, float* attended, float* scores) {
#pragma omp parallel num_threads(s.threads)
    attend<T>(s, cache, layer, qkv, scores, attended);
}

// `ivideogpt/transformer/sampling.py` in unsigned integers.
inline uint64_t mixed(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

inline float gumbel(uint64_t x) {
    float uniform = (float(mixed(x) >> 41) + 0.5f) * 0x1p-23f;
    return -std::log(-std::log(uniform));
}

template <class T>
void linear(const float* x, const void* weights, float* out, int lanes, int inner, int outputs, int threads) {
#pragma omp parallel num_threads(threads)
    product(x, static_cast<const T*>(weights), lanes, inner, outputs, out, [](int, int) {});
}

}  // namespace

extern "C" {

// Append the lanes to the cache. `hidden` (lanes, width) holds embeddings and is overwritten; `normed` (lanes, width)
// receives the last hidden states after the final norm. `scratch` and `scores` are room to work in.
void llama_pass(const Shape* shape, const Cache* cache, int32_t is_bfloat16, const Layer* layers, const void* final_norm,
                float* hidden, float* normed, float* scratch, float* scores) {
    (is_bfloat16 ? pass<bfloat16> : pass<float>)(*shape, *cache, layers, final_norm, hidden, normed, scratch, scores);
}

// One layer's attention by itself. qkv (lanes, (heads + 2 key_value_heads) head_dim), attended (lanes, heads, head_dim).
void llama_attention(const Shape* shape, const Cache* cache, int32_t is_bfloat16, int32_t layer, const float* qkv,
                     float* attended, float* scores) {
    (is_bfloat16 ? attention<bfloat16> : attention<float>)(*shape, *cache, layer, qkv, attended, scores);
}

// out[row] = the id with the highest logit / temperature + noise among the `top_k` highest, or all if that is 0.
// `room` is for a copy of the logits (rows, vocabulary).
void llama_sample(const float* logits, const int64_t* draws, float temperature, int32_t top_k, int32_t rows,
                  int32_t vocabulary, int32_t threads, float* room, int64_t* out) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 4)
    for (int row = 0; row < rows; row++) {
        const float* of_row = logits + int64_t(row) * vocabulary;
        float least = -INFINITY, highest = -INFINITY;
        if (top_k > 0 && top_k < vocabulary) {
            float* copy = room + int64_t(row) * vocabulary;
            std::memcpy(copy, of_row, vocabulary * sizeof(float));
            std::nth_element(copy, copy + top_k - 1, copy + vocabulary, std::greater<float>());
            least = copy[top_k - 1];
        }
        int64_t chosen = 0;
        for (int id = 0; id < vocabulary; id++) {
            if (of_row[id] < least) continue;
            float noisy = of_row[id] / temperature + gumbel(uint64_t(draws[row]) ^ uint64_t(id));
            if (noisy > highest) highest = noisy, chosen = id;
        }
        out[row] = chosen;
    }
}

// out (lanes, outputs) = x (lanes, inner) weights (outputs, inner)^T
void llama_linear(const float* x, const void* weights, int32_t is_bfloat16, float* out, int32_t lanes, int32_t inner,
                  int32_t outputs, int32_t threads) {
    (is_bfloat16 ? linear<bfloat16> : linear<float>)(x, weights, out, lanes, inner, outputs, threads);
}

}  // extern "C"
