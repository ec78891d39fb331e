// ONNX Runtime, loaded at run time through OrtGetApiBase.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace berxit {

// The first version of the C API that has all functions used here: ONNX Runtime 1.17.
constexpr uint32_t kApiVersion = 17;

struct SessionOptions {
    std::string library;  // path of ONNX Runtime; empty: the environment variable BERXIT_ONNXRUNTIME, then the default names
    int32_t threads = 1;
    bool pool = true;  // one thread pool for all sessions of the process
    bool spinning = true;
};

// ONNX Runtime's environment, one per process.
class OnnxRuntime {
public:
    // Loads the library at the first call. Throws Failure if it is not found or too old, or if the process has a thread
    // pool of another size.
    static OnnxRuntime& open(const SessionOptions& options);

    const OrtApi* api;
    std::string version;
    OrtMemoryInfo* memory = nullptr;

    // Throws Failure with the first line of the message.
    void check(OrtStatus* status, const std::string& what) const;
    OrtSession* session(const void* bytes, size_t size, const std::string& where, const SessionOptions& options) const;

private:
    OnnxRuntime(const SessionOptions& options);
    OrtEnv* env_ = nullptr;
    int32_t pool_threads_ = 0;  // 0: the process has no pool
    bool pool_spins_ = false;
};

// A tensor of ONNX Runtime in memory that somebody else owns.
struct ValueDeleter {
    const OrtApi* api;
    void operator()(OrtValue* value) const { api->ReleaseValue(value); }
};
using Value = std::unique_ptr<OrtValue, ValueDeleter>;

Value tensor_at(const OnnxRuntime& runtime, void* data, const std::vector<int64_t>& shape, Dtype dtype);

// A loaded segment file.
class Session {
public:
    Session(const OnnxRuntime& runtime, const void* bytes, size_t size, const std::string& where, const SessionOptions& options);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    // Compares the inputs and outputs of the file with those of the manifest. Throws Failure for the first difference.
    void check(const Segment& segment, const std::string& where) const;
    void run(const OrtRunOptions* options, const char* const* input_names, const OrtValue* const* inputs, size_t input_count,
             const char* const* output_names, size_t output_count, OrtValue** outputs) const;

private:
    const OnnxRuntime& runtime_;
    OrtSession* session_;
};

}  // namespace berxit
