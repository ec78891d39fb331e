#include "manifest.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "error.hpp"
#include "sha256.hpp"

namespace berxit {
namespace {

constexpr struct {
    const char* name;
    Dtype dtype;
    size_t size;
} kDtypes[] = {{"float32", Dtype::float32, 4}, {"float16", Dtype::float16, 2}, {"int8", Dtype::int8, 1},
               {"uint8", Dtype::uint8, 1},     {"int32", Dtype::int32, 4},     {"int64", Dtype::int64, 8}};

using Shape = std::vector<std::string>;

std::string text_of_shape(const Shape& shape) {
    std::string text = "(";
    for (const std::string& size : shape) text += (text.size() > 1 ? ", " : "") + size;
    return text + ")";
}

// A relative path without "..": `file` cannot name a file outside the bundle.
const std::string& file_name(const Fields& fields) {
    const std::string& file = fields.string("file");
    bool outside = file.empty() || file[0] == '/' || file.find('\0') != std::string::npos || file.find('\\') != std::string::npos;
    for (size_t start = 0; start <= file.size();) {
        const size_t end = std::min(file.find('/', start), file.size());
        const std::string part = file.substr(start, end - start);
        outside = outside || part == ".." || part.empty();
        start = end + 1;
    }
    if (outside) throw Failure(fields.at("file") + " is " + quoted(file) + ": it must be a path inside the bundle");
    return file;
}

DataFile data_file(const Json& json, const std::string& place) {
    const Fields fields(json, place, {"file", "sha256"});
    return {file_name(fields), fields.string("sha256")};
}

Dtype dtype_of(const Fields& fields) {
    for (const auto& known : kDtypes)
        if (fields.string("dtype") == known.name) return known.dtype;
    throw Failure(fields.at("dtype") + " is " + quoted(fields.string("dtype")) +
                  ": it must be float32, float16, int8, uint8, int32 or int64. Export the bundle again");
}

std::vector<TensorInfo> tensors(const Fields& segment, const char* key) {
    std::vector<TensorInfo> found;
    std::set<std::string> names, roles;
    for (const Json& json : segment.array(key)) {
        const Fields fields(json, segment.at(key), {"name", "role", "dtype", "shape"});
        TensorInfo tensor{fields.string("name"), fields.string("role"), dtype_of(fields), {}};
        for (const Json& size : fields.array("shape")) {
            int64_t number = 0;
            if (size.is_string())
                tensor.shape.push_back(size.string());
            else if (size.whole(INT32_MIN, INT64_C(1) << 40, number))
                tensor.shape.push_back(std::to_string(number));
            else
                Fields::misfit(fields.at("shape"));
        }
        if (!names.insert(tensor.name).second)
            throw Failure(fields.place() + ": " + quoted(tensor.name) + " is listed twice. Export the bundle again");
        if (tensor.role != "constant" && !roles.insert(tensor.role).second)
            throw Failure(fields.place() + ": role " + quoted(tensor.role) + " is listed twice. Export the bundle again");
        found.push_back(std::move(tensor));
    }
    return found;
}

Segment segment(const Json& json, const std::string& place) {
    const Fields fields(json, place, {"layer", "file", "sha256", "inputs", "outputs"},
                        {"constants", "function", "functions", "compiled", "repeat"});
    for (const char* key : {"function", "functions", "compiled"})
        if (fields.has(key) && !json[key].array().empty())
            throw Failure(fields.at(key) + " is allowed for target coreml only. Export the bundle again");
    Segment found;
    found.file = file_name(fields);
    found.sha256 = fields.string("sha256");
    found.layer = fields.whole("layer", 0);
    found.repeat = fields.has("repeat") ? fields.whole("repeat", 1) : 1;
    found.inputs = tensors(fields, "inputs");
    found.outputs = tensors(fields, "outputs");
    if (fields.has("constants"))
        for (const auto& [name, value] : fields.object("constants").object()) {
            const Fields tensor(value, fields.at("constants") + ": " + name, {"file", "sha256", "dtype", "shape"});
            TensorFile file;
            file.file = file_name(tensor);
            file.sha256 = tensor.string("sha256");
            file.dtype = dtype_of(tensor);
            for (int32_t size : tensor.wholes("shape")) file.shape.push_back(size);
            found.constants[name] = std::move(file);
        }
    return found;
}

// Checks of a segment's tensors against docs/bundle.md, "segments".
class SegmentCheck {
public:
    SegmentCheck(const Manifest& manifest, const std::string& place) : manifest_(manifest), place_(place) {}

    void run() const {
        const Segment& first = manifest_.segments[0];
        for (const Segment& each : manifest_.segments) {
            const std::string where = place_ + ": segment of layer " + std::to_string(each.layer);
            constants(each, where);
            for (const auto* list : {&each.inputs, &each.outputs})
                for (const TensorInfo& tensor : *list)
                    if (tensor.role != "constant") shape(tensor, where);
            if (&each == &first)
                embeddings(each, where);
            else
                layer(each, where, &each == &manifest_.segments.back());
        }
        shared_files();
    }

private:
    const Manifest& manifest_;
    const std::string& place_;

    [[noreturn]] static void fail(const std::string& where, const std::string& problem) {
        throw Failure(where + ": " + problem + ". Export the bundle again");
    }

    static const TensorInfo* find(const std::vector<TensorInfo>& tensors, const std::string& role) {
        for (const TensorInfo& tensor : tensors)
            if (tensor.role == role) return &tensor;
        return nullptr;
    }

    static bool one_of(const std::string& role, std::initializer_list<const char*> roles) {
        return std::find(roles.begin(), roles.end(), role) != roles.end();
    }

    static void constants(const Segment& segment, const std::string& where) {
        for (const TensorInfo& input : segment.inputs) {
            const auto found = segment.constants.find(input.name);
            if ((input.role == "constant") != (found != segment.constants.end()))
                fail(where, "constants must list exactly the inputs of role constant, " + quoted(input.name) + " differs");
            if (found == segment.constants.end()) continue;
            Shape shape;
            for (int64_t size : found->second.shape) {
                if (size < 0) fail(where, "constant " + quoted(input.name) + " has a negative size");
                shape.push_back(std::to_string(size));
            }
            if (found->second.dtype != input.dtype || shape != input.shape)
                fail(where, "input " + quoted(input.name) + " is " + name_of(input.dtype) + " " + text_of_shape(input.shape) +
                         ", but its constant is " + name_of(found->second.dtype) + " " + text_of_shape(shape));
        }
        for (const auto& [name, tensor] : segment.constants)
            if (std::none_of(segment.inputs.begin(), segment.inputs.end(), [&](const auto& input) { return input.name == name; }))
                fail(where, "constants lists " + quoted(name) + ", which is not an input");
        for (const TensorInfo& output : segment.outputs)
            if (output.role == "constant") fail(where, "output " + quoted(output.name) + " has the role constant");
    }

    void shape(const TensorInfo& tensor, const std::string& where) const {
        const std::string d = std::to_string(manifest_.hidden_size);
        const bool token = one_of(tensor.role, {"input_ids", "token_type_ids", "attention_mask"});
        const bool carried = one_of(tensor.role, {"hidden", "attention_bias", "token_weights"});
        Shape expected;
        if (token)
            expected = {"batch", "length"};
        else if (tensor.role == "hidden")
            expected = {"batch", "length", d};
        else if (tensor.role == "attention_bias")
            expected = {"batch", "1", "1", "length"};
        else if (tensor.role == "token_weights")
            expected = {"batch", "1", "length"};
        else if (tensor.role == "logits")
            expected = manifest_.kind->words ? Shape{"batch", "length", std::to_string(manifest_.outputs())}
                                             : Shape{"batch", std::to_string(manifest_.outputs())};
        else if (tensor.role == "lte")
            expected = {"batch"};
        else
            fail(where, quoted(tensor.name) + " has the unknown role " + quoted(tensor.role));
        bool fits = tensor.shape == expected;
        if (!fits && tensor.role == "attention_bias" && tensor.shape.size() == 4) {  // a relative position bias
            const std::string& heads = tensor.shape[1];
            fits = tensor.shape == Shape{"batch", heads, "length", "length"} && !heads.empty() && heads.size() < 6 &&
                heads.find_first_not_of("0123456789") == std::string::npos && heads != "0";
        }
        if (!fits)
            fail(where, quoted(tensor.name) + " of role " + tensor.role + " has shape " + text_of_shape(tensor.shape) +
                     ", expected " + text_of_shape(expected));
        const bool right = token ? tensor.dtype == Dtype::int32
                                 : tensor.dtype == Dtype::float32 || (carried && tensor.dtype == Dtype::float16);
        if (!right) fail(where, quoted(tensor.name) + " of role " + tensor.role + " has dtype " + name_of(tensor.dtype));
    }

    static void embeddings(const Segment& segment, const std::string& where) {
        for (const char* role : {"input_ids", "attention_mask"})
            if (!find(segment.inputs, role)) fail(where, std::string("it reads no ") + role);
        for (const char* role : {"hidden", "attention_bias"})
            if (!find(segment.outputs, role)) fail(where, std::string("it writes no ") + role);
        for (const TensorInfo& input : segment.inputs)
            if (!one_of(input.role, {"input_ids", "token_type_ids", "attention_mask", "constant"}))
                fail(where, "it reads " + input.role + ", which is not allowed at its position");
        for (const TensorInfo& output : segment.outputs)
            if (!one_of(output.role, {"hidden", "attention_bias", "token_weights"}))
                fail(where, "it writes " + output.role + ", which is not allowed at its position");
        if (segment.repeat != 1) fail(where, "repeat must be 1");
    }

    void layer(const Segment& segment, const std::string& where, bool last) const {
        const std::vector<TensorInfo>& carried = manifest_.segments[0].outputs;
        if (!find(segment.inputs, "hidden")) fail(where, "it reads no hidden");
        if (!find(segment.outputs, "logits")) fail(where, "it writes no logits");
        if (manifest_.lte != (find(segment.outputs, "lte") != nullptr)) fail(where, "its output lte does not match model.lte");
        if ((!last || segment.repeat > 1) && !find(segment.outputs, "hidden")) fail(where, "it writes no hidden");
        for (const auto* list : {&segment.inputs, &segment.outputs})
            for (const TensorInfo& tensor : *list) {
                const bool input = list == &segment.inputs;
                const TensorInfo* made = find(carried, tensor.role);
                const bool allowed = input ? tensor.role == "constant" || made : one_of(tensor.role, {"hidden", "logits", "lte"});
                if (!allowed)
                    fail(where, std::string("it ") + (input ? "reads " : "writes ") + tensor.role +
                             ", which is not allowed at its position");
                if (made && (made->dtype != tensor.dtype || made->shape != tensor.shape))
                    fail(where, quoted(tensor.name) + " is " + name_of(tensor.dtype) + " " + text_of_shape(tensor.shape) +
                             ", but the embeddings segment writes " + tensor.role + " as " + name_of(made->dtype) + " " +
                             text_of_shape(made->shape));
            }
    }

    // A file that several segments name is opened once: their tensors must be equal.
    void shared_files() const {
        std::map<std::string, const Segment*> known;
        for (const Segment& each : manifest_.segments) {
            const Segment* other = known.emplace(each.file, &each).first->second;
            if (!(other->inputs == each.inputs && other->outputs == each.outputs))
                fail(place_ + ": segment of layer " + std::to_string(each.layer),
                     "its tensors differ from those of the segment of layer " + std::to_string(other->layer) +
                         ", which has the same file");
        }
    }
};

}  // namespace

size_t size_of(Dtype dtype) { return kDtypes[static_cast<int>(dtype)].size; }
const char* name_of(Dtype dtype) { return kDtypes[static_cast<int>(dtype)].name; }

bool TensorInfo::operator==(const TensorInfo& other) const {
    return name == other.name && role == other.role && dtype == other.dtype && shape == other.shape;
}

Manifest::Manifest(const std::string& content, const std::string& place) {
    Json json;
    try {
        json = Json::parse(content);
    } catch (const Failure& error) {
        throw Failure(place + " " + error.what() + ". Copy the bundle again, or export it again");
    }
    int64_t version = 0;
    if (!json["schema_version"].whole(INT32_MIN, INT32_MAX, version))
        throw Failure(place + ": no schema_version. This is not a bundle of berxit-export");
    if (version > kSchemaVersion)
        throw Failure(place + ": schema version " + std::to_string(version) + " is newer than " +
                      std::to_string(kSchemaVersion) +
                      ", the newest that this runner reads: upgrade it, or export again with an older berxit");
    schema_version = static_cast<int32_t>(version);
    const Fields fields(
        json, place,
        {"schema_version", "target", "precision", "model", "tokenizer", "segments", "policy", "calibration", "parity", "golden",
         "made_with"},
        {"lengths", "max_batch", "threads", "scores", "target_version", "opset", "full"});
    if (fields.string("target") != "onnxruntime")
        throw Failure(place + ": the bundle is for target " + quoted(fields.string("target")) +
                      ": this runner runs bundles for onnxruntime. Export with --target onnxruntime");
    precision = fields.string("precision");

    const Fields model(fields.object("model"), fields.at("model"),
                       {"family", "task", "kind", "labels", "metric", "text_columns", "label_column", "layers", "hidden_size",
                        "max_length", "pad_token_id", "lte"},
                       {"positive"});
    kind = kind_named(model.string("kind"));
    if (!kind)
        throw Failure(model.at("kind") + " is " + quoted(model.string("kind")) +
                      ": this runner runs models of the kinds " + kind_names() + ". Upgrade it, or use the Python runner");
    task = model.string("task");
    metric = model.string("metric");
    model.string("family");
    if (model.has("positive")) model.string("positive");
    labels = model.strings("labels");
    if (labels.size() < kind->least_labels || labels.size() > kind->most_labels)
        throw Failure(model.at("labels") + " has " + std::to_string(labels.size()) + " entries, which does not fit " +
                      kind->name);
    std::set<std::string> known;
    for (const std::string& label : labels) {
        if (!known.insert(label).second)
            throw Failure(model.at("labels") + " contains " + quoted(label) + " twice. Export the bundle again");
        if (label.find('\0') != std::string::npos) throw Failure(model.at("labels") + ": a label contains U+0000");
    }
    const std::string column = model.string("label_column");
    if (kind->heads) heads = heads_of(labels, column, fields.at("model"));
    const size_t columns = model.strings("text_columns").size();
    if (columns < 1 || columns > 2)
        throw Failure(model.at("text_columns") + " has " + std::to_string(columns) +
                      " entries: a model reads 1 text or a pair of 2. Export the bundle again");
    pairs = columns == 2;
    layers = model.whole("layers", 1);
    hidden_size = model.whole("hidden_size", 1);
    max_length = model.whole("max_length", 1);
    pad_token_id = model.whole("pad_token_id", 0);
    lte = model.boolean("lte");

    tokenizer = data_file(json["tokenizer"], fields.at("tokenizer"));
    golden = data_file(json["golden"], fields.at("golden"));
    for (const Json& each : fields.array("segments"))
        segments.push_back(segment(each, fields.at("segments") + "[" + std::to_string(segments.size()) + "]"));
    if (fields.has("lengths") && !fields.array("lengths").empty())
        throw Failure(fields.at("lengths") + " is not empty, which is supported for coreml and tensorrt only");
    if (fields.has("full")) throw Failure(fields.at("full") + " is supported for coreml only");
    if (fields.has("threads")) threads = fields.whole("threads", 1);
    if (fields.has("max_batch")) max_batch = fields.whole("max_batch", 1);
    fields.object("made_with");
    if (fields.has("calibration")) fields.object("calibration");
    if (fields.has("scores")) fields.object("scores");

    policy = std::make_unique<ExitPolicy>(
        json["policy"], fields.at("policy"), classes(), lte, kind->several);
    const int32_t needed = kind->several ? 3 : policy->schema_version();
    if (needed > schema_version)
        throw Failure(place + ": schema_version is " + std::to_string(schema_version) + ", but the kind or the policy needs " +
                      std::to_string(needed) + ". Export the bundle again");
    const Fields parity(json["parity"], fields.at("parity"), {"reference", "atol", "max_diff"}, {"scale"});
    parity.string("reference");
    atol = parity.number("atol");
    scale = parity.has("scale") ? parity.number("scale") : 1;
    const std::vector<double> max_diff = parity.numbers("max_diff");
    const size_t differences = max_diff.size();
    for (double each : max_diff)
        if (!(each >= 0)) throw Failure(parity.at("max_diff") + ": a number is below 0. Export the bundle again");
    if (!(atol >= 0) || !(scale > 0)) throw Failure(parity.place() + ": atol must be at least 0, and scale above 0");

    int32_t before = 0;
    bool ordered = true;
    for (size_t number = 0; number < segments.size(); ++number) {
        const Segment& each = segments[number];
        ordered = ordered && (number ? each.layer > before : each.layer == 0);
        if (ordered && number && (each.layer - before) % each.repeat)
            throw Failure(place + ": segment of layer " + std::to_string(each.layer) + ": repeat is " + std::to_string(each.repeat) +
                          ": it must divide its " + std::to_string(each.layer - before) + " layers. Export the bundle again");
        if (number) exits.push_back(each.layer);
        before = each.layer;
    }
    if (!ordered || exits.empty() || before != layers || policy->layers() != layers || differences != exits.size())
        throw Failure(place + ": " + std::to_string(segments.size()) + " segments, a policy for " +
                      std::to_string(policy->layers()) + " layers and " + std::to_string(differences) +
                      " entries of parity.max_diff do not match a model of " + std::to_string(layers) +
                      " layers. Export the bundle again");
    SegmentCheck(*this, place).run();
    if (pad_token_id >= table_rows())
        throw Failure(model.at("pad_token_id") + " is " + std::to_string(pad_token_id) + ": the word embedding table has " +
                      std::to_string(table_rows()) + " rows");
    digest = berxit::sha256(content.data(), content.size()).substr(0, 12);
}

int64_t Manifest::table_rows() const {
    int64_t rows = INT64_MAX;
    for (const auto& [name, tensor] : segments[0].constants)
        if (!tensor.shape.empty()) rows = std::min(rows, tensor.shape[0]);
    return rows;
}

std::map<std::string, std::string> Manifest::files() const {
    std::map<std::string, std::string> found{{tokenizer.file, tokenizer.sha256}, {golden.file, golden.sha256}};
    for (const Segment& each : segments) {
        found[each.file] = each.sha256;
        for (const auto& [name, tensor] : each.constants) found[tensor.file] = tensor.sha256;
    }
    return found;
}

}  // namespace berxit
