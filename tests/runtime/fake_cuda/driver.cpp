// Fake libcuda.so.1: the part of the CUDA driver API that the CUDA runtime of cuda-python needs, without a GPU.
//
// Device memory is host memory. Work is enqueued on a stream and runs at the next call that waits for it, so that data
// that is read too early is stale. New and freed memory is filled with garbage. An address is never used twice, so that
// a late release cannot hit a new allocation: memory is only returned to the system when the process ends.
// Status codes follow the documentation of the CUDA driver API.
//
// Environment:
//   FAKE_CUDA_DRIVER   version of the driver: 12.2, 12.6 (default), 13.2
//   FAKE_CUDA_GPU      orin (default; integrated, memory shared with the CPU), ada (discrete), none
//   FAKE_CUDA_FAIL     calls that fail, as name=code or name=code@n: from the nth call on; separated by commas
//
// Functions that begin with "fake" are for tests; see __init__.py.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

enum Status {
    kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kNoDevice = 100, kInvalidDevice = 101,
    kInvalidContext = 201, kInvalidHandle = 400, kNotFound = 500, kNotReady = 600, kIllegalAddress = 700,
    kNotSupported = 801,
    kCaptureUnsupported = 900, kCaptureInvalidated = 901, kCaptureUnmatched = 903, kCaptureWrongThread = 908,
};

const unsigned char kGarbage = 0xC7;
const uintptr_t kContext = 0xC0;
const int kMostDevices = 1;

struct Gpu {
    const char* name;
    int major, minor, multiprocessors, integrated;
    size_t memory;
};
const Gpu kOrin = {"Orin", 8, 7, 8, 1, size_t(8) << 30};
const Gpu kAda = {"NVIDIA GeForce RTX 4060", 8, 9, 24, 0, size_t(8) << 30};

struct Block {  // memory of one allocation
    size_t size;
    bool device;
    bool mapped;  // host memory with an address on the GPU
};

struct Event {
    bool recorded = false, disable_timing = false;
    int pending = 0;  // records that did not run yet
};

struct Work {
    std::function<Status()> run;
    std::shared_ptr<Event> event;  // of a record
};
using Works = std::vector<Work>;

struct Stream {
    Works queue;
    bool capturing = false, invalid = false;
    std::thread::id owner;
    int mode = 0;
    Works captured;
};

struct State {
    std::map<uintptr_t, Block> blocks;
    std::map<uintptr_t, std::shared_ptr<Stream>> streams;
    std::map<uintptr_t, std::shared_ptr<Event>> events;
    std::map<uintptr_t, Works> graphs, launchables;
    std::map<std::string, long> calls;
    std::map<std::string, std::pair<int, long>> failures;  // function -> its status, and the first call that fails
    std::string released;  // kinds of released resources, one a line
    size_t used = 0;
    Status broken = kSuccess;  // error of earlier work; every later call returns it, as after a failed kernel
};

std::recursive_mutex lock;
State state;
uintptr_t next_handle = 0x1000;  // handles are never used twice
std::atomic<long> copies_out{0};  // that ran, also as part of a graph
bool initialized = false;
bool configured = false;
thread_local uintptr_t current = 0;

const Gpu* gpu() {
    const char* name = std::getenv("FAKE_CUDA_GPU");
    if (!name || !std::strcmp(name, "orin")) return &kOrin;
    return std::strcmp(name, "ada") ? nullptr : &kAda;
}

int version() {
    const char* text = std::getenv("FAKE_CUDA_DRIVER");
    int major = 12, minor = 6;
    if (text) std::sscanf(text, "%d.%d", &major, &minor);
    return major * 1000 + minor * 10;
}

void set_failures(const char* text) {
    state.failures.clear();
    for (const char* rest = text; rest && *rest;) {
        char name[64];
        int code = 0, read = 0;
        long first = 1;
        if (std::sscanf(rest, "%63[^=]=%d%n", name, &code, &read) < 2) std::abort();
        rest += read;
        if (*rest == '@') first = std::strtol(rest + 1, const_cast<char**>(&rest), 10);
        state.failures[name] = {code, first + state.calls[name]};
        if (*rest == ',') rest++;
    }
}

// Counts the call, and returns the status with which it must end before it does anything.
Status enter(const char* name, bool needs_context = true) {
    if (!configured) {
        configured = true;
        set_failures(std::getenv("FAKE_CUDA_FAIL"));
    }
    long call = ++state.calls[name];
    auto failure = state.failures.find(name);
    if (failure != state.failures.end() && call >= failure->second.second) return Status(failure->second.first);
    if (!initialized) return kNotInitialized;
    if (needs_context && !current) return kInvalidContext;
    return needs_context ? state.broken : kSuccess;
}

#define ENTER(...)                                      \
    std::lock_guard<std::recursive_mutex> guard(lock);  \
    if (Status status = enter(__VA_ARGS__)) return status

// True if the bytes are within one allocation that the GPU (or the CPU) can address.
bool within(uintptr_t address, size_t size, bool on_device) {
    auto after = state.blocks.upper_bound(address);
    if (after == state.blocks.begin()) return false;
    const auto& [start, block] = *--after;
    return address + size <= start + block.size && (on_device ? block.device || block.mapped : !block.device);
}

// Runs the work of a stream in order, up to the record of an event, or all of it. The lock is released while work runs,
// because the work of a test needs Python's lock, which another caller may hold while it waits for this one.
Status drain(const std::shared_ptr<Stream>& stream, const Event* until = nullptr) {
    while (!stream->queue.empty() && !(until && until->pending == 0)) {
        Work work = stream->queue.front();
        stream->queue.erase(stream->queue.begin());
        Status status = kSuccess;
        if (work.run) {
            lock.unlock();
            status = work.run();
            lock.lock();
        }
        if (work.event) {
            work.event->pending--;
            work.event->recorded = true;
        }
        if (status && !state.broken) state.broken = status;
        if (state.broken) stream->queue.clear();
    }
    return state.broken;
}

Status drain_all() {
    for (auto& [handle, stream] : std::map<uintptr_t, std::shared_ptr<Stream>>(state.streams)) drain(stream);
    return state.broken;
}

// A call that waits for the GPU ends every capture whose mode forbids such calls.
Status forbidden_in_capture() {
    Status status = kSuccess;
    for (auto& [handle, stream] : state.streams) {
        bool own = stream->owner == std::this_thread::get_id();
        if (stream->capturing && (stream->mode == 0 || (stream->mode == 1 && own))) {
            stream->invalid = true;
            status = kCaptureUnsupported;
        }
    }
    return status;
}

Status find(uintptr_t handle, std::shared_ptr<Stream>& found) {
    auto entry = state.streams.find(handle);
    if (entry == state.streams.end()) return kInvalidHandle;
    found = entry->second;
    return kSuccess;
}

Status enqueue(uintptr_t handle, Work work) {
    std::shared_ptr<Stream> stream;
    if (Status status = find(handle, stream)) return status;
    if (stream->capturing && stream->invalid) return kCaptureInvalidated;
    (stream->capturing ? stream->captured : stream->queue).push_back(std::move(work));
    return kSuccess;
}

void note(const char* kind) { state.released += std::string(kind) + "\n"; }

template <class Map>
Status release(Map& things, uintptr_t handle, const char* kind) {
    if (!things.erase(handle)) return kInvalidHandle;
    note(kind);
    return kSuccess;
}

Status reserve(uintptr_t* address, size_t size, bool device, bool mapped) {
    if (!address || !size) return kInvalidValue;
    if (device && gpu() && state.used + size > gpu()->memory) return kOutOfMemory;
    void* memory = nullptr;
    if (posix_memalign(&memory, 512, size)) return kOutOfMemory;  // cuMemAlloc: "suitably aligned for any variable"
    std::memset(memory, kGarbage, size);
    *address = uintptr_t(memory);
    state.blocks[*address] = {size, device, mapped};
    if (device) state.used += size;
    return kSuccess;
}

Status give_back(uintptr_t address, bool device) {
    if (!address) return device ? kSuccess : kInvalidValue;  // cudaFree(NULL) does nothing
    if (Status status = forbidden_in_capture()) return status;
    auto entry = state.blocks.find(address);
    if (entry == state.blocks.end() || entry->second.device != device) return kInvalidValue;
    for (auto& [handle, stream] : state.streams) if (!stream->queue.empty()) note("busy");
    Status status = drain_all();  // as the real driver: memory is freed when the GPU does not use it
    std::memset(reinterpret_cast<void*>(address), kGarbage, entry->second.size);
    if (device) state.used -= entry->second.size;
    state.blocks.erase(entry);
    note(device ? "memory" : "pinned");
    return status;
}

// The ranges are checked when the work is enqueued, and again when it runs: memory that was freed in between is an
// illegal address.
Status copy(uintptr_t to, bool to_device, uintptr_t from, bool from_device, size_t size, uintptr_t stream) {
    if (to_device && !within(to, size, true)) return kInvalidValue;
    if (from_device && !within(from, size, true)) return kInvalidValue;
    auto run = [=] {
        if ((to_device && !within(to, size, true)) || (from_device && !within(from, size, true))) return kIllegalAddress;
        if (to_device && from_device && to < from + size && from < to + size)
            std::memset(reinterpret_cast<void*>(to), kGarbage, size);  // undefined: the ranges overlap
        else
            std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size);
        if (!to_device) copies_out++;
        return kSuccess;
    };
    std::shared_ptr<Stream> found;
    if (Status status = find(stream, found)) return status;
    if (!from_device && !within(from, size, false) && !found->capturing) {
        // The driver copies pageable memory to a staging buffer before it returns.
        auto bytes = reinterpret_cast<const unsigned char*>(from);
        auto staged = std::make_shared<std::vector<unsigned char>>(bytes, bytes + size);
        return enqueue(stream, {[=] {
            if (!within(to, size, true)) return kIllegalAddress;
            std::memcpy(reinterpret_cast<void*>(to), staged->data(), size);
            return kSuccess;
        }, nullptr});
    }
    if (Status status = enqueue(stream, {run, nullptr})) return status;
    if (!to_device && !within(to, size, false) && !found->capturing)
        return drain(found);  // A copy to pageable memory returns when it is complete.
    return kSuccess;
}

}  // namespace

extern "C" {

int cuInit(unsigned flags) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    Status status = enter("cuInit", false);
    if (status && status != kNotInitialized) return status;
    if (!gpu()) return kNoDevice;
    initialized = true;
    return flags ? kInvalidValue : kSuccess;
}

int cuDriverGetVersion(int* found) {
    if (!found) return kInvalidValue;
    *found = version();
    return kSuccess;
}

int cuDeviceGetCount(int* count) {
    ENTER("cuDeviceGetCount", false);
    *count = kMostDevices;
    return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
    ENTER("cuDeviceGet", false);
    *device = ordinal;
    return ordinal < 0 || ordinal >= kMostDevices ? kInvalidDevice : kSuccess;
}

int cuDeviceGetName(char* name, int size, int device) {
    ENTER("cuDeviceGetName", false);
    if (device) return kInvalidDevice;
    std::snprintf(name, size, "%s", gpu()->name);
    return kSuccess;
}

int cuDeviceGetUuid_v2(char* uuid, int device) {
    ENTER("cuDeviceGetUuid", false);
    if (device) return kInvalidDevice;
    std::memset(uuid, 0x11, 16);
    return kSuccess;
}

int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    ENTER("cuDeviceTotalMem", false);
    *bytes = gpu()->memory;
    return device ? kInvalidDevice : kSuccess;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    ENTER("cuDeviceGetAttribute", false);
    if (device) return kInvalidDevice;
    const std::map<int, int> known = {  // CU_DEVICE_ATTRIBUTE_...
        {1, 1024},                    // MAX_THREADS_PER_BLOCK
        {10, 32},                     // WARP_SIZE
        {16, gpu()->multiprocessors}, // MULTIPROCESSOR_COUNT
        {18, gpu()->integrated},      // INTEGRATED
        {19, 1},                      // CAN_MAP_HOST_MEMORY
        {41, 1},                      // UNIFIED_ADDRESSING
        {75, gpu()->major},           // COMPUTE_CAPABILITY_MAJOR
        {76, gpu()->minor},           // COMPUTE_CAPABILITY_MINOR
        {83, 1},                      // MANAGED_MEMORY
        {91, 1},                      // CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
    };
    auto entry = known.find(attribute);
    *value = entry == known.end() ? 0 : entry->second;
    return kSuccess;
}

int cuDevicePrimaryCtxRetain(uintptr_t* context, int device) {
    ENTER("cuDevicePrimaryCtxRetain", false);
    *context = kContext;
    return device ? kInvalidDevice : kSuccess;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER("cuDevicePrimaryCtxRelease", false);
    return device ? kInvalidDevice : kSuccess;
}

int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    ENTER("cuDevicePrimaryCtxGetState", false);
    *flags = 0, *active = current != 0;
    return device ? kInvalidDevice : kSuccess;
}

int cuCtxGetCurrent(uintptr_t* context) {
    ENTER("cuCtxGetCurrent", false);
    *context = current;
    return kSuccess;
}

int cuCtxSetCurrent(uintptr_t context) {
    ENTER("cuCtxSetCurrent", false);
    if (context && context != kContext) return kInvalidContext;
    current = context;
    return kSuccess;
}

int cuCtxGetDevice(int* device) {
    ENTER("cuCtxGetDevice");
    *device = 0;
    return kSuccess;
}

int cuCtxGetApiVersion(uintptr_t, unsigned* found) {
    ENTER("cuCtxGetApiVersion", false);
    *found = 3020;
    return kSuccess;
}

int cuCtxSynchronize() {
    ENTER("cuCtxSynchronize");
    if (Status status = forbidden_in_capture()) return status;
    return drain_all();
}

int cuMemAlloc_v2(uintptr_t* address, size_t size) {
    ENTER("cuMemAlloc");
    if (Status status = forbidden_in_capture()) return status;
    return reserve(address, size, true, false);
}

int cuMemFree_v2(uintptr_t address) {
    ENTER("cuMemFree");
    return give_back(address, true);
}

int cuMemHostAlloc(uintptr_t* address, size_t size, unsigned) {
    ENTER("cuMemHostAlloc");
    if (Status status = forbidden_in_capture()) return status;
    return reserve(address, size, false, true);  // With unified addressing, all pinned memory is mapped.
}

int cuMemFreeHost(uintptr_t address) {
    ENTER("cuMemFreeHost");
    return give_back(address, false);
}

int cuMemHostGetDevicePointer_v2(uintptr_t* device, uintptr_t host, unsigned flags) {
    ENTER("cuMemHostGetDevicePointer");
    if (flags || !within(host, 1, false)) return kInvalidValue;
    *device = host;  // the same with unified addressing
    return kSuccess;
}

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER("cuMemGetInfo");
    *total = gpu()->memory, *free = *total - state.used;
    return kSuccess;
}

int cuMemcpyHtoDAsync_v2(uintptr_t to, uintptr_t from, size_t size, uintptr_t stream) {
    ENTER("cuMemcpyHtoDAsync");
    return copy(to, true, from, false, size, stream);
}

int cuMemcpyDtoHAsync_v2(uintptr_t to, uintptr_t from, size_t size, uintptr_t stream) {
    ENTER("cuMemcpyDtoHAsync");
    return copy(to, false, from, true, size, stream);
}

int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t size, uintptr_t stream) {
    ENTER("cuMemcpyDtoDAsync");
    return copy(to, true, from, true, size, stream);
}

int cuStreamCreate(uintptr_t* stream, unsigned flags) {
    ENTER("cuStreamCreate");
    if (flags > 1) return kInvalidValue;
    state.streams[*stream = next_handle++] = std::make_shared<Stream>();
    return kSuccess;
}

int cuStreamDestroy_v2(uintptr_t stream) {
    ENTER("cuStreamDestroy");
    std::shared_ptr<Stream> found;
    if (Status status = find(stream, found)) return status;
    drain(found);  // The real driver returns at once and releases the stream when its work is complete.
    return release(state.streams, stream, "stream");
}

int cuStreamSynchronize(uintptr_t stream) {
    ENTER("cuStreamSynchronize");
    if (Status status = forbidden_in_capture()) return status;
    std::shared_ptr<Stream> found;
    if (Status status = find(stream, found)) return status;
    return drain(found);
}

int cuLaunchHostFunc(uintptr_t stream, void (*function)(void*), void* data) {
    ENTER("cuLaunchHostFunc");
    return enqueue(stream, {[=] {
        function(data);
        return kSuccess;
    }, nullptr});
}

int cuEventCreate(uintptr_t* event, unsigned flags) {
    ENTER("cuEventCreate");
    if (flags > 7) return kInvalidValue;
    state.events[*event = next_handle++] = std::make_shared<Event>();
    return kSuccess;
}

int cuEventDestroy_v2(uintptr_t event) {
    ENTER("cuEventDestroy");
    return release(state.events, event, "event");
}

int cuEventRecord(uintptr_t event, uintptr_t stream) {
    ENTER("cuEventRecord");
    auto entry = state.events.find(event);
    if (entry == state.events.end()) return kInvalidHandle;
    std::shared_ptr<Stream> found;
    if (Status status = find(stream, found)) return status;
    if (!found->capturing) entry->second->pending++;
    return enqueue(stream, {nullptr, found->capturing ? nullptr : entry->second});
}

int cuEventSynchronize(uintptr_t event) {
    ENTER("cuEventSynchronize");
    if (Status status = forbidden_in_capture()) return status;
    auto entry = state.events.find(event);
    if (entry == state.events.end()) return kInvalidHandle;
    std::shared_ptr<Event> found = entry->second;
    for (auto& [handle, stream] : std::map<uintptr_t, std::shared_ptr<Stream>>(state.streams)) {
        auto records = [&](const Work& work) { return work.event == found; };
        if (std::any_of(stream->queue.begin(), stream->queue.end(), records)) drain(stream, found.get());
    }
    return state.broken;
}

int cuEventQuery(uintptr_t event) {
    ENTER("cuEventQuery");
    auto entry = state.events.find(event);
    if (entry == state.events.end()) return kInvalidHandle;
    return entry->second->pending ? kNotReady : kSuccess;
}

int cuStreamBeginCapture_v2(uintptr_t stream, int mode) {
    ENTER("cuStreamBeginCapture");
    std::shared_ptr<Stream> found;
    if (Status status = find(stream, found)) return status;
    if (found->capturing || mode < 0 || mode > 2) return kInvalidValue;
    found->capturing = true, found->invalid = false;
    found->owner = std::this_thread::get_id(), found->mode = mode;
    found->captured.clear();
    return kSuccess;
}

int cuStreamEndCapture(uintptr_t stream, uintptr_t* graph) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    Status injected = enter("cuStreamEndCapture");
    *graph = 0;
    std::shared_ptr<Stream> found;
    if (Status status = find(stream, found)) return status;
    if (!found->capturing) return kCaptureUnmatched;
    if (found->mode != 2 && found->owner != std::this_thread::get_id()) return kCaptureWrongThread;
    found->capturing = false;  // in any case
    if (injected) return injected;
    if (found->invalid) return kCaptureInvalidated;
    state.graphs[*graph = next_handle++] = found->captured;
    return kSuccess;
}

int cuStreamIsCapturing(uintptr_t stream, int* status) {
    ENTER("cuStreamIsCapturing");
    std::shared_ptr<Stream> found;
    if (Status error = find(stream, found)) return error;
    *status = found->capturing ? 1 + found->invalid : 0;
    return kSuccess;
}

int cuGraphInstantiateWithFlags(uintptr_t* launchable, uintptr_t graph, unsigned long long) {
    ENTER("cuGraphInstantiate");
    auto entry = state.graphs.find(graph);
    if (entry == state.graphs.end()) return kInvalidValue;
    state.launchables[*launchable = next_handle++] = entry->second;
    return kSuccess;
}

int cuGraphDestroy(uintptr_t graph) {
    ENTER("cuGraphDestroy");
    return release(state.graphs, graph, "graph") ? kInvalidValue : kSuccess;
}

int cuGraphLaunch(uintptr_t launchable, uintptr_t stream) {
    ENTER("cuGraphLaunch");
    auto entry = state.launchables.find(launchable);
    if (entry == state.launchables.end()) return kInvalidValue;
    for (const Work& work : Works(entry->second))
        if (Status status = enqueue(stream, work)) return status;
    return kSuccess;
}

int cuGraphExecDestroy(uintptr_t launchable) {
    ENTER("cuGraphExecDestroy");
    return release(state.launchables, launchable, "launchable") ? kInvalidValue : kSuccess;
}

int cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return kNotFound;  // Undocumented functions, which the CUDA runtime that cuda-python 12.9 and later links needs.
}

int cuGetProcAddress_v2(const char* symbol, void** function, int wanted, uint64_t flags, int* found);

// --- functions for tests -------------------------------------------------------------------------------------------

void fakeReset() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    state = State();
    copies_out = 0;
    configured = false;
}

long fakeLive(const char* kind) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto blocks = [](bool device) {
        return std::count_if(state.blocks.begin(), state.blocks.end(), [=](auto& b) { return b.second.device == device; });
    };
    const std::map<std::string, long> counts = {
        {"memory", blocks(true)}, {"pinned", blocks(false)}, {"stream", state.streams.size()},
        {"event", state.events.size()}, {"graph", state.graphs.size()}, {"launchable", state.launchables.size()},
    };
    return counts.at(kind);
}

long fakeCalls(const char* function) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    return state.calls[function];
}

// Functions that were called, one a line. The text is valid until the next call.
const char* fakeFunctions() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    static std::string names;
    names.clear();
    for (const auto& [name, count] : state.calls) names += name + "\n";
    return names.c_str();
}

long fakeCopiesOut() { return copies_out; }

void fakeFail(const char* failures) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    configured = true;
    set_failures(failures);
}

const char* fakeReleased() { return state.released.c_str(); }

void fakeForgetReleased() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    state.released.clear();
}

void fakeNote(const char* kind) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    note(kind);
}

int fakeHas(uintptr_t address, size_t size, int on_device) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    return within(address, size, on_device);
}

// For work that a test enqueued with cuLaunchHostFunc: it failed as a kernel does.
void fakeBreak(int status) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!state.broken) state.broken = Status(status);
}

}  // extern "C"

namespace {

struct Symbol {
    const char* name;
    int since;  // CUDA version of this form of the function
    void* function;
};
#define SYMBOL(name, since, function) {name, since, reinterpret_cast<void*>(&function)}
int unsupported() { return kNotSupported; }

const Symbol kSymbols[] = {
    SYMBOL("cuInit", 2000, cuInit),
    SYMBOL("cuDriverGetVersion", 2020, cuDriverGetVersion),
    SYMBOL("cuDeviceGetCount", 2000, cuDeviceGetCount),
    SYMBOL("cuDeviceGet", 2000, cuDeviceGet),
    SYMBOL("cuDeviceGetName", 2000, cuDeviceGetName),
    SYMBOL("cuDeviceGetUuid", 9020, cuDeviceGetUuid_v2),
    SYMBOL("cuDeviceTotalMem", 3020, cuDeviceTotalMem_v2),
    SYMBOL("cuDeviceGetAttribute", 2000, cuDeviceGetAttribute),
    SYMBOL("cuDevicePrimaryCtxRetain", 7000, cuDevicePrimaryCtxRetain),
    SYMBOL("cuDevicePrimaryCtxRelease", 11000, cuDevicePrimaryCtxRelease_v2),
    SYMBOL("cuDevicePrimaryCtxGetState", 7000, cuDevicePrimaryCtxGetState),
    SYMBOL("cuCtxGetCurrent", 4000, cuCtxGetCurrent),
    SYMBOL("cuCtxSetCurrent", 4000, cuCtxSetCurrent),
    SYMBOL("cuCtxGetDevice", 2000, cuCtxGetDevice),
    SYMBOL("cuCtxGetApiVersion", 3020, cuCtxGetApiVersion),
    SYMBOL("cuCtxSynchronize", 2000, cuCtxSynchronize),
    SYMBOL("cuMemAlloc", 3020, cuMemAlloc_v2),
    SYMBOL("cuMemFree", 3020, cuMemFree_v2),
    SYMBOL("cuMemHostAlloc", 2020, cuMemHostAlloc),
    SYMBOL("cuMemFreeHost", 2000, cuMemFreeHost),
    SYMBOL("cuMemHostGetDevicePointer", 3020, cuMemHostGetDevicePointer_v2),
    SYMBOL("cuMemGetInfo", 3020, cuMemGetInfo_v2),
    SYMBOL("cuMemcpyHtoDAsync", 3020, cuMemcpyHtoDAsync_v2),
    SYMBOL("cuMemcpyDtoHAsync", 3020, cuMemcpyDtoHAsync_v2),
    SYMBOL("cuMemcpyDtoDAsync", 3020, cuMemcpyDtoDAsync_v2),
    SYMBOL("cuStreamCreate", 2000, cuStreamCreate),
    SYMBOL("cuStreamDestroy", 4000, cuStreamDestroy_v2),
    SYMBOL("cuStreamSynchronize", 2000, cuStreamSynchronize),
    SYMBOL("cuLaunchHostFunc", 10000, cuLaunchHostFunc),
    SYMBOL("cuEventCreate", 2000, cuEventCreate),
    SYMBOL("cuEventDestroy", 4000, cuEventDestroy_v2),
    SYMBOL("cuEventRecord", 2000, cuEventRecord),
    SYMBOL("cuEventSynchronize", 2000, cuEventSynchronize),
    SYMBOL("cuEventQuery", 2000, cuEventQuery),
    SYMBOL("cuStreamBeginCapture", 10010, cuStreamBeginCapture_v2),
    SYMBOL("cuStreamEndCapture", 10000, cuStreamEndCapture),
    SYMBOL("cuStreamIsCapturing", 10000, cuStreamIsCapturing),
    SYMBOL("cuGraphInstantiateWithFlags", 11040, cuGraphInstantiateWithFlags),
    SYMBOL("cuGraphInstantiate", 12000, cuGraphInstantiateWithFlags),
    SYMBOL("cuGraphDestroy", 10000, cuGraphDestroy),
    SYMBOL("cuGraphLaunch", 10000, cuGraphLaunch),
    SYMBOL("cuGraphExecDestroy", 10000, cuGraphExecDestroy),
    SYMBOL("cuGetExportTable", 3000, cuGetExportTable),
    SYMBOL("cuGetProcAddress", 12000, cuGetProcAddress_v2),
};

}  // namespace

extern "C" int cuGetProcAddress_v2(const char* symbol, void** function, int wanted, uint64_t, int* found) {
    if (!symbol || !function) return kInvalidValue;
    *function = nullptr;
    int result = 1;  // CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND
    for (const Symbol& known : kSymbols) {
        if (std::strcmp(known.name, symbol) || known.since > version()) continue;
        result = 2;  // CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
        if (wanted < known.since) continue;
        *function = known.function;
        result = 0;
    }
    // The real driver of this version has the function.
    if (result == 1 && wanted <= version()) *function = reinterpret_cast<void*>(unsupported), result = 0;
    if (found) *found = result;
    return result && !found ? kNotFound : kSuccess;
}
