#include "backend.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>

#include "error.hpp"

namespace berxit {
namespace {

constexpr size_t kShapes = 64;  // largest number of shapes that keep their tensors
constexpr size_t kIdle = 4;     // largest number of workspaces that wait for the next call
constexpr size_t kLarge = 512;  // a larger batch, in tokens with padding, has its memory released after it
constexpr size_t kMostTensors = 16;

constexpr const char* kRoles[] = {"input_ids", "token_type_ids", "attention_mask", "hidden",  "attention_bias",
                                  "token_weights", "logits", "lte", "constant"};

Role role_of(const std::string& name) {
    return static_cast<Role>(std::find(std::begin(kRoles), std::end(kRoles), name) - std::begin(kRoles));
}

// Sizes of a tensor for B rows of S tokens.
std::vector<int64_t> sizes_of(const TensorInfo& tensor, size_t rows, size_t length) {
    std::vector<int64_t> sizes;
    for (const std::string& size : tensor.shape)
        sizes.push_back(size == "batch" ? static_cast<int64_t>(rows)
                            : size == "length" ? static_cast<int64_t>(length) : std::stoll(size));
    return sizes;
}

}  // namespace

Shape& Workspace::shape(size_t rows, size_t length) {
    for (auto found = shapes_.begin(); found != shapes_.end(); ++found)
        if (found->rows == rows && found->length == length) {
            shapes_.splice(shapes_.begin(), shapes_, found);
            return shapes_.front();
        }
    shapes_.push_front({rows, length, {}});
    if (shapes_.size() > kShapes) shapes_.pop_back();
    return shapes_.front();
}

OrtValue* Workspace::value(const OnnxRuntime& runtime, Shape& shape, const TensorInfo& tensor, Role role, int side) {
    const size_t place = place_of(role, side);
    if (shape.values[place]) return shape.values[place].get();
    const std::vector<int64_t> sizes = sizes_of(tensor, shape.rows, shape.length);
    size_t size = size_of(tensor.dtype);
    for (int64_t each : sizes) size *= static_cast<size_t>(each);
    std::vector<char>& block = blocks_[place];
    if (block.size() < size) {
        size_t grown = 256;
        while (grown < size) grown *= 2;
        block = std::vector<char>(grown);
        for (Shape& other : shapes_) other.values[place].reset();  // they are in the smaller block
    }
    shape.values[place] = tensor_at(runtime, block.data(), sizes, tensor.dtype);
    return shape.values[place].get();
}

Backend::Backend(const BundleFolder& folder, const Manifest& manifest, const SessionOptions& options)
    : manifest_(manifest), runtime_(OnnxRuntime::open(options)) {
    std::map<std::string, std::shared_ptr<Session>> opened;  // a file that layers share is loaded once
    for (const Segment& segment : manifest.segments) {
        const std::string where = folder.path_of(segment.file);
        std::shared_ptr<Session>& session = opened[segment.file];
        if (!session) {
            const auto bytes = folder.read(segment);
            check_onnx(bytes->view(), where);
            session = std::make_shared<Session>(runtime_, bytes->data(), bytes->size(), where, options);
            session->check(segment, where);
        }
        Loaded loaded{session, {}, {}, {}, {}, {}, segment.repeat};
        if (segment.inputs.size() > kMostTensors || segment.outputs.size() > kMostTensors)
            throw Failure(where + ": a segment has more than 16 inputs or outputs. Export the bundle again");
        for (const TensorInfo& tensor : segment.inputs) {
            OrtValue* constant = nullptr;
            if (tensor.role == "constant") {
                const TensorFile& file = segment.constants.at(tensor.name);
                tensors_.push_back(folder.read_tensor(file));
                loaded.constants.push_back(
                    tensor_at(runtime_, const_cast<char*>(tensors_.back()->data()), file.shape, file.dtype));
                constant = loaded.constants.back().get();
            }
            loaded.input_names.push_back(tensor.name.c_str());
            loaded.inputs.push_back({role_of(tensor.role), &tensor, constant});
        }
        for (const TensorInfo& tensor : segment.outputs) {
            loaded.output_names.push_back(tensor.name.c_str());
            loaded.outputs.push_back({role_of(tensor.role), &tensor, nullptr});
        }
        segments_.push_back(std::move(loaded));
    }
    OrtRunOptions* created = nullptr;
    runtime_.check(runtime_.api->CreateRunOptions(&created), "ONNX Runtime cannot start");
    const OrtApi* api = runtime_.api;
    shrink_ = std::shared_ptr<OrtRunOptions>(created, [api](OrtRunOptions* each) { api->ReleaseRunOptions(each); });
    runtime_.check(api->AddRunConfigEntry(created, "memory.enable_memory_arena_shrinkage", "cpu:0"), "ONNX Runtime cannot start");
}

State Backend::embed(const std::vector<const Tokens*>& rows) {
    State state;
    size_t length = 0;
    for (const Tokens* row : rows) {
        state.lengths.push_back(row->size());
        length = std::max(length, row->size());
    }
    const bool large = rows.size() * length > kLarge, small_again = large_.exchange(large) && !large;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (small_again) idle_.clear();  // workspaces of that batch's size
        if (!idle_.empty()) {
            state.workspace = std::move(idle_.back());
            idle_.pop_back();
        }
    }
    if (!state.workspace) state.workspace = std::make_unique<Workspace>();
    state.shape = &state.workspace->shape(rows.size(), length);
    Loaded& embeddings = segments_[0];
    for (const Input& input : embeddings.inputs) {
        if (input.constant) continue;
        state.workspace->value(runtime_, *state.shape, *input.tensor, input.role, 0);
        int32_t* data = state.workspace->data<int32_t>(input.role);
        for (const Tokens* row : rows) {
            const size_t size = row->size();
            const bool ids = input.role == Role::input_ids;
            if (input.role == Role::attention_mask)
                std::fill(data, data + size, 1);
            else
                std::copy_n(ids ? row->ids.data() : row->types.data(), size, data);
            std::fill(data + size, data + length, ids ? manifest_.pad_token_id : 0);
            data += length;
        }
    }
    run(embeddings, state, 0, small_again ? shrink_.get() : nullptr);
    return state;
}

Outputs Backend::layer(size_t place, State& state) {
    Loaded& segment = segments_[place + 1];
    for (int32_t turn = 0; turn < segment.repeat; ++turn) {
        run(segment, state, 1 - state.side, nullptr);
        state.side = 1 - state.side;
    }
    const size_t outputs = static_cast<size_t>(manifest_.outputs());
    return {state.workspace->data<float>(Role::logits), manifest_.lte ? state.workspace->data<float>(Role::lte) : nullptr,
            manifest_.kind->words ? state.shape->length * outputs : outputs};
}

void Backend::run(Loaded& segment, State& state, int output_side, const OrtRunOptions* options) {
    const OrtValue* inputs[kMostTensors];
    OrtValue* outputs[kMostTensors];
    for (size_t i = 0; i < segment.inputs.size(); ++i) {
        const Input& each = segment.inputs[i];
        inputs[i] = each.constant ? each.constant
                                  : state.workspace->value(runtime_, *state.shape, *each.tensor, each.role, state.side);
    }
    for (size_t i = 0; i < segment.outputs.size(); ++i) {
        const Input& each = segment.outputs[i];
        outputs[i] = state.workspace->value(runtime_, *state.shape, *each.tensor, each.role, output_side);
    }
    const auto start = std::chrono::steady_clock::now();
    segment.session->run(options, segment.input_names.data(), inputs, segment.inputs.size(), segment.output_names.data(),
                         segment.outputs.size(), outputs);
    if (seconds_inside) *seconds_inside += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Backend::keep(State& state, const std::vector<bool>& kept) {
    std::vector<size_t> rows;
    size_t longest = 0;
    for (size_t row = 0; row < kept.size(); ++row)
        if (kept[row]) {
            longest = std::max(longest, state.lengths[row]);
            state.lengths[rows.size()] = state.lengths[row];
            rows.push_back(row);
        }
    state.lengths.resize(rows.size());
    const size_t before = state.shape->length;
    Workspace& workspace = *state.workspace;
    Shape& shape = workspace.shape(rows.size(), longest);
    for (const Input& output : segments_[0].outputs) {
        const bool hidden = output.role == Role::hidden;
        const char* source = workspace.data<char>(output.role, state.side);
        workspace.value(runtime_, shape, *output.tensor, output.role, 1 - state.side);
        char* target = workspace.data<char>(output.role, 1 - state.side);
        // Runs of equal length in both: the last axis, or for hidden states the tokens of a row.
        const auto sizes = sizes_of(*output.tensor, 1, longest);
        const size_t unit = size_of(output.tensor->dtype) * (hidden ? static_cast<size_t>(sizes[2]) : 1);
        const bool square = !hidden && sizes.size() == 4 && output.tensor->shape[2] == "length";
        const size_t heads = !hidden && sizes.size() == 4 ? static_cast<size_t>(sizes[1]) : 1;
        const size_t runs_before = heads * (square ? before : 1), runs = square ? longest : 1;
        // In the same memory every target is at or before its source, so that rows can be moved in ascending order.
        for (size_t row : rows)
            for (size_t head = 0; head < heads; ++head)
                for (size_t query = 0; query < runs; ++query) {
                    const size_t from = row * runs_before + head * (square ? before : 1) + query;
                    std::memmove(target, source + from * before * unit, longest * unit);
                    target += longest * unit;
                }
    }
    state.shape = &shape;
    state.side = 1 - state.side;
}

void Backend::release(State& state) {
    if (!state.workspace) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.size() < kIdle) idle_.push_back(std::move(state.workspace));
    state.workspace.reset();
}

}  // namespace berxit
