#include "onnxruntime.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>

#include "error.hpp"

namespace berxit {
namespace {

#if defined(__APPLE__)
constexpr const char* kLibraryNames[] = {"libonnxruntime.dylib", "libonnxruntime.1.dylib"};
#else
constexpr const char* kLibraryNames[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif

ONNXTensorElementDataType type_of(Dtype dtype) {
    switch (dtype) {
    case Dtype::float32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case Dtype::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case Dtype::int8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case Dtype::uint8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case Dtype::int32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case Dtype::int64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// The handle stays open until the process ends: ONNX Runtime's threads run in it.
void* library(const std::string& path) {
    std::string tried;
    const char* variable = std::getenv("BERXIT_ONNXRUNTIME");
    const std::string stated = !path.empty() ? path : variable ? variable : "";
    if (!stated.empty()) {
        if (void* found = dlopen(stated.c_str(), RTLD_NOW | RTLD_LOCAL)) return found;
        const char* reason = dlerror();
        throw Failure("cannot load ONNX Runtime from " + stated + ": " + first_line(reason ? reason : "unknown reason") +
                      ". Give the path of libonnxruntime");
    }
    for (const char* name : kLibraryNames)
        if (void* found = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return found;
    throw Failure(std::string("cannot find ONNX Runtime (") + kLibraryNames[0] +
                  "): install it, or give its path in the options or in BERXIT_ONNXRUNTIME");
}

struct OptionsDeleter {
    const OrtApi* api;
    void operator()(OrtSessionOptions* options) const { api->ReleaseSessionOptions(options); }
    void operator()(OrtThreadingOptions* options) const { api->ReleaseThreadingOptions(options); }
    void operator()(OrtArenaCfg* configuration) const { api->ReleaseArenaCfg(configuration); }
    void operator()(OrtTypeInfo* info) const { api->ReleaseTypeInfo(info); }
};
template <typename T>
using Owned = std::unique_ptr<T, OptionsDeleter>;

}  // namespace

OnnxRuntime& OnnxRuntime::open(const SessionOptions& options) {
    static std::mutex opening;
    static OnnxRuntime* only = nullptr;  // never deleted: its threads may still run when the process ends
    const std::lock_guard<std::mutex> lock(opening);
    if (!only) only = new OnnxRuntime(options);
    if (options.pool && only->pool_threads_ != options.threads)
        throw Failure(only->pool_threads_
                          ? "threads is " + std::to_string(options.threads) + ", but this process has a thread pool of " +
                              std::to_string(only->pool_threads_) + ": use that number, or the option pool = 0"
                          : std::string("the first runner of this process was loaded with the option pool = 0: use it for all"));
    if (options.pool && only->pool_threads_ > 1 && only->pool_spins_ != options.spinning)
        throw Failure("this process has a thread pool with another value of the option spinning: use the same for all runners");
    return *only;
}

OnnxRuntime::OnnxRuntime(const SessionOptions& options) {
    using Base = const OrtApiBase* (*)();
    void* handle = library(options.library);
    const Base base = reinterpret_cast<Base>(dlsym(handle, "OrtGetApiBase"));
    if (!base) throw Failure("the library of ONNX Runtime has no OrtGetApiBase: give the path of libonnxruntime");
    version = base()->GetVersionString();
    api = base()->GetApi(kApiVersion);
    if (!api) throw Failure("ONNX Runtime " + version + " is too old: install 1.17 or newer");
    const char* start = "ONNX Runtime cannot start";
    if (options.pool) {
        OrtThreadingOptions* created = nullptr;
        check(api->CreateThreadingOptions(&created), start);
        const Owned<OrtThreadingOptions> threading(created, {api});
        check(api->SetGlobalIntraOpNumThreads(created, options.threads), start);
        check(api->SetGlobalInterOpNumThreads(created, 1), start);
        check(api->SetGlobalSpinControl(created, options.spinning), start);
        check(api->CreateEnvWithGlobalThreadPools(ORT_LOGGING_LEVEL_ERROR, "berxit", created, &env_), start);
        pool_threads_ = options.threads;
        pool_spins_ = options.spinning;
    } else {
        check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "berxit", &env_), start);
    }
    check(api->DisableTelemetryEvents(env_), start);
    // One arena for all sessions, which grows in powers of two: its memory is in the CPU's caches when the next session
    // runs. An app that has registered its own arena in this environment shares it.
    check(api->CreateMemoryInfo("Cpu", OrtArenaAllocator, 0, OrtMemTypeDefault, &memory), start);
    OrtArenaCfg* configuration = nullptr;
    check(api->CreateArenaCfg(0, 0, -1, -1, &configuration), start);
    const Owned<OrtArenaCfg> arena(configuration, {api});
    if (OrtStatus* status = api->CreateAndRegisterAllocator(env_, memory, configuration)) api->ReleaseStatus(status);
}

void OnnxRuntime::check(OrtStatus* status, const std::string& what) const {
    if (!status) return;
    const std::string reason = first_line(api->GetErrorMessage(status));
    api->ReleaseStatus(status);
    throw Failure(what + ": " + (reason.empty() ? "unknown reason" : reason));
}

OrtSession* OnnxRuntime::session(
    const void* bytes, size_t size, const std::string& where, const SessionOptions& options) const {
    const std::string what = "ONNX Runtime " + version + " cannot load " + where;
    OrtSessionOptions* created = nullptr;
    check(api->CreateSessionOptions(&created), what);
    const Owned<OrtSessionOptions> own(created, {api});
    const auto set = [&](const char* key, const char* value) { check(api->AddSessionConfigEntry(created, key, value), what); };
    check(api->SetSessionLogSeverityLevel(created, 3), what);
    if (options.pool) {
        check(api->DisablePerSessionThreads(created), what);
    } else {
        check(api->SetIntraOpNumThreads(created, options.threads), what);
        check(api->SetInterOpNumThreads(created, 1), what);
        set("session.force_spinning_stop", "1");
    }
    check(api->DisableMemPattern(created), what);
    set("session.use_env_allocators", "1");
    set("session.use_device_allocator_for_initializers", "1");
    // The fused kernel of residual and norm has no vector instructions.
    set("optimization.disable_specified_optimizers", "SkipLayerNormFusion");
    OrtSession* session = nullptr;
    check(api->CreateSessionFromArray(env_, bytes, size, created, &session), what);
    return session;
}

Value tensor_at(const OnnxRuntime& runtime, void* data, const std::vector<int64_t>& shape, Dtype dtype) {
    size_t size = size_of(dtype);
    for (int64_t each : shape) size *= static_cast<size_t>(each);
    OrtValue* value = nullptr;
    runtime.check(runtime.api->CreateTensorWithDataAsOrtValue(
                      runtime.memory, data, size, shape.data(), shape.size(), type_of(dtype), &value),
                  "ONNX Runtime cannot create a tensor");
    return Value(value, {runtime.api});
}

Session::Session(const OnnxRuntime& runtime, const void* bytes, size_t size, const std::string& where,
                 const SessionOptions& options)
    : runtime_(runtime), session_(runtime.session(bytes, size, where, options)) {}

Session::~Session() { runtime_.api->ReleaseSession(session_); }

void Session::check(const Segment& segment, const std::string& where) const {
    const OrtApi* api = runtime_.api;
    OrtAllocator* allocator = nullptr;
    const std::string what = "cannot read the inputs of " + where;
    runtime_.check(api->GetAllocatorWithDefaultOptions(&allocator), what);
    for (const bool input : {true, false}) {
        const auto& stated = input ? segment.inputs : segment.outputs;
        const std::string kind = input ? "input " : "output ";
        std::vector<bool> found(stated.size());
        size_t count = 0;
        runtime_.check(input ? api->SessionGetInputCount(session_, &count) : api->SessionGetOutputCount(session_, &count), what);
        for (size_t place = 0; place < count; ++place) {
            char* text = nullptr;
            runtime_.check(input ? api->SessionGetInputName(session_, place, allocator, &text)
                                 : api->SessionGetOutputName(session_, place, allocator, &text), what);
            const std::string name = text;
            runtime_.check(api->AllocatorFree(allocator, text), what);
            OrtTypeInfo* created = nullptr;
            runtime_.check(input ? api->SessionGetInputTypeInfo(session_, place, &created)
                                 : api->SessionGetOutputTypeInfo(session_, place, &created), what);
            const Owned<OrtTypeInfo> info(created, {api});
            const OrtTensorTypeAndShapeInfo* shape = nullptr;
            runtime_.check(api->CastTypeInfoToTensorInfo(created, &shape), what);
            size_t tensor = 0;
            while (tensor < stated.size() && stated[tensor].name != name) ++tensor;
            if (tensor == stated.size()) {
                if (!input) continue;  // a file may have further outputs
                throw Failure(where + ": the file needs an input " + quoted(name) +
                              ", which the manifest does not list. Export again");
            }
            found[tensor] = true;
            ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
            size_t rank = 0;
            bool fits = shape != nullptr;
            std::vector<int64_t> sizes;
            if (fits) {
                runtime_.check(api->GetTensorElementType(shape, &type), what);
                runtime_.check(api->GetDimensionsCount(shape, &rank), what);
                sizes.resize(rank);
                runtime_.check(api->GetDimensions(shape, sizes.data(), rank), what);
                fits = type == type_of(stated[tensor].dtype) && rank == stated[tensor].shape.size();
            }
            for (size_t axis = 0; fits && axis < rank; ++axis)  // a dynamic size of the file matches any size
                fits = sizes[axis] < 0 || std::to_string(sizes[axis]) == stated[tensor].shape[axis];
            if (!fits)
                throw Failure(where + ": " + kind + quoted(name) +
                              " has another dtype or shape in the file than in the manifest. Export again");
        }
        for (size_t tensor = 0; tensor < stated.size(); ++tensor)
            if (!found[tensor]) throw Failure(where + ": the file has no " + kind + quoted(stated[tensor].name) + ". Export again");
    }
}

void Session::run(const OrtRunOptions* options, const char* const* input_names, const OrtValue* const* inputs,
                  size_t input_count, const char* const* output_names, size_t output_count, OrtValue** outputs) const {
    if (OrtStatus* status = runtime_.api->Run(
            session_, options, input_names, inputs, input_count, output_names, output_count, outputs))
        runtime_.check(status, "ONNX Runtime " + runtime_.version + " failed");
}

}  // namespace berxit
