// Check of an ONNX file before ONNX Runtime reads it: external data can name any file, and a node can be an operator of a
// plug-in. The segments of a bundle need neither. Only the structure is read: protobuf fields with their lengths.
#include <cstdint>
#include <functional>

#include "bundle.hpp"
#include "error.hpp"

namespace berxit {
namespace {

// Operators of ONNX's own domain that a segment may contain: functions of tensors. None reads a file, runs a subgraph or
// has a state.
constexpr std::string_view kOperators[] = {
    "Abs",     "Add",     "Cast",           "Clip",       "Concat",           "Constant", "ConstantOfShape",
    "Cos",     "Div",     "Equal",          "Erf",        "DequantizeLinear", "Exp",      "DynamicQuantizeLinear",
    "Expand",  "Gather",  "GatherElements", "Gelu",       "Gemm",             "Greater",  "Identity",
    "Less",    "Log",     "MatMul",         "Max",        "Min",              "Mul",      "LayerNormalization",
    "Neg",     "Not",     "Pow",            "Range",      "MatMulInteger",    "Relu",     "QuantizeLinear",
    "Reshape", "Shape",   "Sigmoid",        "ReduceMax",  "ReduceMean",       "Sign",     "ReduceSum",
    "Sin",     "Slice",   "Softmax",        "Split",      "Sqrt",             "Squeeze",  "Sub",
    "Tanh",    "Where",   "Transpose",      "Unsqueeze"};

struct Malformed {};

uint64_t varint(std::string_view& message) {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (message.empty()) throw Malformed();
        const auto byte = static_cast<unsigned char>(message[0]);
        message.remove_prefix(1);
        if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
    throw Malformed();
}

// Calls `found` with the number of each field, its bytes or its value.
template <typename Found>
void each_field(std::string_view message, const Found& found) {
    while (!message.empty()) {
        const uint64_t key = varint(message);
        const unsigned kind = key & 7;
        if (kind == 2) {
            const uint64_t size = varint(message);
            if (size > message.size()) throw Malformed();
            found(key >> 3, message.substr(0, size), uint64_t{0}, true);
            message.remove_prefix(size);
        } else if (kind == 0) {
            found(key >> 3, std::string_view(), varint(message), false);
        } else if (kind == 1 || kind == 5) {
            const size_t size = kind == 1 ? 8 : 4;
            if (size > message.size()) throw Malformed();
            message.remove_prefix(size);
        } else {
            throw Malformed();  // groups, which ONNX does not use
        }
    }
}

void check_tensor(std::string_view tensor, const std::string& where) {
    each_field(tensor, [&](uint64_t field, std::string_view, uint64_t value, bool) {
        if (field == 13 || (field == 14 && value != 0))  // external_data, data_location
            throw Failure(where + ": the file reads weights from outside. Do not use this bundle");
    });
}

void check_node(std::string_view node, const std::string& where) {
    std::string_view name, domain;
    each_field(node, [&](uint64_t field, std::string_view bytes, uint64_t, bool message) {
        if (!message) return;
        if (field == 4) name = bytes;
        if (field == 7) domain = bytes;
        if (field != 5) return;
        each_field(bytes, [&](uint64_t part, std::string_view value, uint64_t, bool is_message) {
            if (!is_message) return;
            if (part == 5 || part == 10) check_tensor(value, where);
            if (part == 6 || part == 11 || part == 22 || part == 23)
                throw Failure(where + ": the file contains graphs inside of nodes. Do not use this bundle");
        });
    });
    bool known = domain.empty() || domain == "ai.onnx";
    if (known) {
        known = false;
        for (std::string_view each : kOperators) known = known || each == name;
    }
    if (!known)
        throw Failure(where + ": this runner does not know the operator " +
                      quoted((domain.empty() ? "" : std::string(domain) + ".") + std::string(name)) +
                      ": upgrade it, or do not use this bundle");
}

}  // namespace

void check_onnx(std::string_view model, const std::string& where) {
    try {
        each_field(model, [&](uint64_t field, std::string_view graph, uint64_t, bool message) {
            if (message && field == 25)
                throw Failure(where + ": the file defines operators of its own. Do not use this bundle");
            if (!message || field != 7) return;
            each_field(graph, [&](uint64_t part, std::string_view value, uint64_t, bool is_message) {
                if (!is_message) return;
                if (part == 1) check_node(value, where);
                if (part == 5) check_tensor(value, where);
                if (part == 15) throw Failure(where + ": the file contains sparse tensors. Do not use this bundle");
            });
        });
    } catch (const Malformed&) {
        throw Failure("cannot load " + where + ": it is not an ONNX file. Export again");
    }
}

}  // namespace berxit
