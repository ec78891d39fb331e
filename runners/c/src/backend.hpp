// Runs the segments of a bundle with ONNX Runtime, in memory that is reused from call to call.
#pragma once

#include <array>
#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "onnxruntime.hpp"
#include "tokenizer.hpp"

namespace berxit {

// Largest part of a batch that passes through the layers at once, in tokens: the activations of larger parts no longer fit
// a CPU's caches.
constexpr size_t kTokensAtOnce = 1024;

enum class Role { input_ids, token_type_ids, attention_mask, hidden, attention_bias, token_weights, logits, lte, constant };
constexpr size_t kBlocks = 9;  // one block of memory per role except constants, and two for hidden states

// The tensors of B rows of S tokens, created at first use.
struct Shape {
    size_t rows, length;
    std::array<Value, kBlocks> values;
};

// The memory of one call at a time. All shapes share it: each tensor starts at the beginning of its block.
class Workspace {
public:
    Shape& shape(size_t rows, size_t length);
    // The tensor of a role. Hidden states have one per side, 0 or 1; every other tensor has one.
    OrtValue* value(const OnnxRuntime& runtime, Shape& shape, const TensorInfo& tensor, Role role, int side);
    template <typename T>
    T* data(Role role, int side = 0) {
        return reinterpret_cast<T*>(blocks_[place_of(role, side)].data());
    }

private:
    std::list<Shape> shapes_;  // the most recently used first
    std::array<std::vector<char>, kBlocks> blocks_;
    static size_t place_of(Role role, int side) { return static_cast<size_t>(role) + (role == Role::hidden && side ? 8 - 3 : 0); }
};

// The rows that pass through the layers together.
struct State {
    std::unique_ptr<Workspace> workspace;
    Shape* shape = nullptr;
    int side = 0;
    std::vector<size_t> lengths;  // tokens per row
};

struct Outputs {
    const float* logits;  // (B, C), or (B, S, C) for tokens
    const float* lte;     // (B,), or null
    size_t row_size;      // logits per row
};

class Backend {
public:
    // Loads all segments. `folder` is read during the call only.
    Backend(const BundleFolder& folder, const Manifest& manifest, const SessionOptions& options);

    // Runs the embeddings segment on rows, padded to the longest.
    State embed(const std::vector<const Tokens*>& rows);
    // Runs the segment of the exit number `place`. The outputs are valid until the next segment runs.
    Outputs layer(size_t place, State& state);
    // Keeps the rows for which `kept` is true, and removes padding that none of them needs.
    void keep(State& state, const std::vector<bool>& kept);
    // Returns the memory for the next call.
    void release(State& state);

    const OnnxRuntime& runtime() const { return runtime_; }

    // For benchmarks: adds the seconds within ONNX Runtime to this number, unless it is null. One call at a time.
    double* seconds_inside = nullptr;

private:
    struct Input {
        Role role;
        const TensorInfo* tensor;
        OrtValue* constant;
    };
    struct Loaded {
        std::shared_ptr<Session> session;
        std::vector<const char*> input_names, output_names;
        std::vector<Input> inputs, outputs;
        std::vector<Value> constants;
        int32_t repeat;
    };

    const Manifest& manifest_;
    OnnxRuntime& runtime_;
    std::vector<std::unique_ptr<FileBytes>> tensors_;
    std::vector<Loaded> segments_;
    std::shared_ptr<OrtRunOptions> shrink_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Workspace>> idle_;
    std::atomic<bool> large_{false};  // the last batch was large: the next smaller one releases its memory

    void run(Loaded& segment, State& state, int output_side, const OrtRunOptions* options);
};

}  // namespace berxit
