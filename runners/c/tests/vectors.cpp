// Program of the tests: runs parts of the library on cases from files or the standard input.
//
//     berxit-vectors tokenize TOKENIZER MAX_LENGTH    cases -> a line of ids, types and truncation each
//     berxit-vectors words TOKENIZER MAX_LENGTH       cases -> a line each: tokens, starts and ends of the words, in characters
//     berxit-vectors policies FILE OUTPUTS...         compares certainties and exits with the shared vectors
//     berxit-vectors deadlines FILE                   the same for deadlines
//     berxit-vectors answers FOLDER LIBRARY           compares predictions and streams with the answers.json of a bundle
//     berxit-vectors call BUNDLE LIBRARY THRESHOLD DEADLINE_MS
//                                                     cases -> the error of one call with all of them
//     berxit-vectors predict BUNDLE LIBRARY THREADS ROWS [DEADLINE_MS]
//                                                     cases -> a line per prediction, in batches of ROWS
//     berxit-vectors latency BUNDLE LIBRARY THREADS POOL
//                                                     a case -> microseconds of the call, and the exit layer
//     berxit-vectors speed BUNDLE LIBRARY THREADS TOKENS SECONDS [GRAPH OUTPUT]
//                                                     medians in microseconds, interleaved: all segments, the time outside
//                                                     of ONNX Runtime per segment, and the same model as one graph
//
// A case on the standard input: the number of texts (1 or 2), then per text its size and its bytes; numbers are uint32.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "berxit.h"
#include "bundle.hpp"
#include "deadline.hpp"
#include "error.hpp"
#include "json.hpp"
#include "policy.hpp"
#include "runner.hpp"
#include "tokenizer.hpp"

namespace {

using namespace berxit;

std::string content(const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw Failure("cannot read " + file);
    return {std::istreambuf_iterator<char>(stream), {}};
}

bool read_number(uint32_t& number) { return std::fread(&number, sizeof number, 1, stdin) == 1; }

bool read_case(std::vector<std::string>& texts) {
    uint32_t count = 0, size = 0;
    if (!read_number(count)) return false;
    texts.resize(count);
    for (std::string& text : texts) {
        if (!read_number(size)) throw Failure("a case is cut off");
        text.resize(size);
        if (size && std::fread(&text[0], 1, size, stdin) != size) throw Failure("a case is cut off");
    }
    return true;
}

void print(const std::vector<int32_t>& numbers) {
    for (int32_t number : numbers) std::printf("%d ", number);
}

int tokenize(const std::string& file, size_t max_length) {
    const Tokenizer tokenizer(Json::parse(content(file)), max_length);
    std::vector<std::string> texts;
    while (read_case(texts)) {
        Text first, second;
        if (!decode(texts[0], first) || (texts.size() > 1 && !decode(texts[1], second))) throw Failure("not UTF-8");
        const TextView other = second;
        const Tokens tokens = tokenizer.encode(first, texts.size() > 1 ? &other : nullptr, kNever, [] { return 0.0; });
        std::printf("%d ", tokens.truncated);
        print(tokens.ids);
        std::printf("| ");
        print(tokens.types);
        std::printf("\n");
    }
    return 0;
}

int words(const std::string& file, size_t max_length) {
    const Tokenizer tokenizer(Json::parse(content(file)), max_length, true);
    std::vector<std::string> texts;
    while (read_case(texts)) {
        Text text;
        if (!decode(texts[0], text)) throw Failure("not UTF-8");
        const Words found = tokenizer.encode(text, nullptr, kNever, [] { return 0.0; }).words;
        for (const auto* column : {&found.tokens, &found.starts, &found.ends}) {
            for (size_t number : *column) std::printf("%zu ", number);
            std::printf("| ");
        }
        std::printf("\n");
    }
    return 0;
}

std::vector<float> floats(const Json& json) {
    std::vector<float> found;
    for (const Json& each : json.array()) {
        if (!each.is_array()) found.push_back(static_cast<float>(each.number()));
        for (const Json& inner : each.array()) found.push_back(static_cast<float>(inner.number()));
    }
    return found;
}

// The policy of a vector: its other keys are removed, because a policy rejects unknown keys.
ExitPolicy policy_of(const Json& vector, int32_t outputs, bool lte, bool several, const std::string& place) {
    std::string object = "{";
    for (const char* key : {"criterion", "thresholds", "temperatures", "tolerance", "patience", "off", "weights"}) {
        if (vector[key].is_null()) continue;
        const auto write = [&](const auto& self, const Json& json) -> std::string {
            if (json.is_string()) return "\"" + json.string() + "\"";
            if (json.is_number()) {
                char number[40];
                std::snprintf(number, sizeof number, "%.17g", json.number());
                return number;
            }
            std::string list = "[";
            for (const Json& each : json.array()) list += (list.size() > 1 ? "," : "") + self(self, each);
            return list + "]";
        };
        object += (object.size() > 1 ? ",\"" : "\"") + std::string(key) + "\":" + write(write, vector[key]);
    }
    return ExitPolicy(Json::parse(object + "}"), place, outputs, lte, several);
}

int policies(const std::string& file) {
    int wrong = 0;
    const Json vectors = Json::parse(content(file));
    for (size_t number = 0; number < vectors.array().size(); ++number) {
        const Json& vector = vectors.array()[number];
        const std::string place = file + "[" + std::to_string(number) + "]";
        const auto& logits = vector["logits"].array();
        const auto& first = logits[0].array();
        const bool several = first[0].is_array();
        const auto outputs = static_cast<int32_t>(several ? first[0].array().size() : first.size());
        const std::vector<float> lte = floats(vector["lte"]);
        const ExitPolicy policy = policy_of(vector, outputs, !lte.empty(), several, place);
        Memory memory;
        int32_t exit_layer = 0;
        for (int32_t layer = 1; layer <= policy.layers(); ++layer) {
            const auto at = static_cast<size_t>(layer - 1);
            const std::vector<float> row = floats(logits[at]);
            const Decisions decisions{row.data(), several ? first.size() : 1};
            const float certainty = policy.certainty(layer, decisions, lte.empty() ? nullptr : &lte[at], memory);
            const double expected = vector["certainty"].array()[at].number();
            if (!(std::fabs(certainty - expected) <= 1e-5 * std::fmax(1, std::fabs(expected)))) {
                std::printf("%s: certainty %g at layer %d, expected %g\n", place.c_str(), static_cast<double>(certainty), layer,
                            expected);
                ++wrong;
            }
            if (!exit_layer && policy.exits(layer, certainty, decisions)) exit_layer = layer;
        }
        if (exit_layer != static_cast<int32_t>(vector["exit_layer"].number())) {
            std::printf("%s: exits at %d\n", place.c_str(), exit_layer);
            ++wrong;
        }
    }
    std::printf("%zu vectors\n", vectors.array().size());
    return wrong != 0;
}

int deadlines(const std::string& file) {
    int wrong = 0;
    const Json vectors = Json::parse(content(file));
    for (const Json& vector : vectors.array()) {
        std::vector<int32_t> exits;
        for (const Json& each : vector["exits"].array()) exits.push_back(each.id());
        const double threshold = vector["thresholds"].array().empty() ? 1 : vector["thresholds"].array()[0].number();
        StepEstimator estimator(vector["miss_probability"].number());
        for (const Json& call : vector["calls"].array()) {
            const auto &times = call["times"].array(), &opening = call["opening"].array(), &stops = call["stops"].array();
            const double end = times[0].number() + call["milliseconds"].number() / 1e3;
            Deadline deadline(exits, end, estimator, times[0].number(), opening[0].number());
            for (size_t place = 0; place < stops.size(); ++place) {
                const bool last = place + 1 == exits.size();
                const bool certain =
                    last || static_cast<float>(call["certainty"].array()[place].number()) > static_cast<float>(threshold);
                const double next = last ? 0 : opening[place + 1].number();
                const bool stop = deadline.stops(place, certain, certain, times[place + 1].number(), next);
                wrong += stop != stops[place].boolean();
            }
        }
        wrong += !(std::fabs(estimator.margin() - vector["margin"].number()) < 1e-9);
    }
    std::printf("%zu vectors, %d differ\n", vectors.array().size(), wrong);
    return wrong != 0;
}

void need(berxit_status status) {
    if (status != BERXIT_OK) throw Failure(berxit_error());
}

berxit_runner* load(const char* bundle, const char* library, int threads, int pool = 1) {
    berxit_options options;
    berxit_options_init(&options);
    options.onnxruntime = library;
    options.threads = threads;
    options.pool = pool;
    berxit_runner* runner = nullptr;
    need(berxit_load(bundle, &options, &runner));
    return runner;
}

berxit_text text_of(const std::vector<std::string>& texts) {
    return {texts[0].c_str(), texts.size() > 1 ? texts[1].c_str() : nullptr, texts[0].size(),
            texts.size() > 1 ? texts[1].size() : 0};
}

bool close(double found, double expected) { return std::fabs(found - expected) <= 1e-5 * std::fmax(1, std::fabs(expected)); }

// Number of characters in the first `bytes` bytes.
double characters(const std::string& text, size_t bytes) {
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(bytes);
    return static_cast<double>(std::count_if(text.begin(), end, [](char byte) { return (byte & 0xC0) != 0x80; }));
}

// Differences between a prediction and an answer of the vectors.
int differences(const berxit_runner* runner, const berxit_prediction& found, const Json& expected, const berxit_text& given,
                const std::string& place) {
    const std::string text(given.text, given.text_size);
    static constexpr const char* kReasons[] = {"", "certainty", "deadline", "last_layer"};
    const bool named = expected["label"].is_string();
    bool equal = named ? found.label && found.label == expected["label"].string()
                       : !found.label && close(found.value, expected["label"].number());
    equal = equal && found.exit_layer == expected["exit_layer"].id() && close(found.certainty, expected["certainty"].number());
    equal = equal && found.truncated == expected["truncated"].boolean() && kReasons[found.stopped_by] == expected["stopped_by"].string();
    equal = equal && berxit_info_of(runner).model == expected["model"].string() && found.late == -1;
    equal = equal && found.score_count == expected["scores"].object().size();
    for (size_t i = 0; equal && i < found.score_count; ++i) {
        const auto& [name, score] = expected["scores"].object()[i];
        equal = (named ? name == berxit_label(runner, i) : name == "value") && close(found.scores[i], score.number());
    }
    const auto &labels = expected["labels"].array(), &spans = expected["spans"].array();
    const auto& heads = expected["heads"].object();
    equal = equal && found.label_count == labels.size() + heads.size() && found.span_count == spans.size();
    for (size_t i = 0; equal && i < labels.size(); ++i) equal = found.labels[i] == labels[i].string();
    for (size_t i = 0; equal && i < heads.size(); ++i)
        equal = found.labels[i] == heads[i].first + "=" + heads[i].second.array()[0].string();
    for (size_t i = 0; equal && i < spans.size(); ++i) {  // in characters
        const auto& span = spans[i].array();
        equal = characters(text, found.spans[i].start) == span[0].number() &&
            characters(text, found.spans[i].end) == span[1].number() && found.spans[i].label == span[2].string() &&
            close(found.spans[i].score, span[3].number());
    }
    if (!equal) std::printf("%s differs\n", place.c_str());
    return !equal;
}

int answers(const std::string& folder, const char* library) {
    berxit_runner* runner = load(folder.c_str(), library, 1);
    need(berxit_check(runner, nullptr));
    const Json cases = Json::parse(content(folder + "/answers.json"));
    std::vector<std::vector<std::string>> owned;
    std::vector<berxit_text> texts;
    for (const Json& each : cases["texts"].array()) {
        owned.emplace_back();
        for (const Json& text : each.array()) owned.back().push_back(text.string());
    }
    for (const auto& each : owned) texts.push_back(text_of(each));
    int wrong = 0, checked = 0;
    for (const Json& batch : cases["batches"].array()) {
        if (!batch["heads"].array().empty()) continue;  // this runner predicts all heads
        berxit_call call;
        berxit_call_init(&call);
        if (batch["threshold"].is_number()) call.threshold = batch["threshold"].number();
        berxit_result* together = nullptr;
        need(berxit_predict(runner, texts.data(), texts.size(), &call, &together));
        for (size_t row = 0; row < texts.size(); ++row) {
            berxit_result* single = nullptr;
            need(berxit_predict(runner, &texts[row], 1, &call, &single));
            const Json& expected = batch["answers"].array()[row];
            wrong += differences(runner, *berxit_result_at(single, 0), expected, texts[row], folder + ": a prediction");
            wrong += differences(runner, *berxit_result_at(together, row), expected, texts[row], folder + ": a row of a batch");
            berxit_result_free(single);
            ++checked;
        }
        berxit_result_free(together);
    }
    for (size_t row = 0; row < texts.size(); ++row) {
        berxit_stream* stream = nullptr;
        const berxit_prediction* found = nullptr;
        need(berxit_stream_open(runner, &texts[row], &stream));
        for (const Json& expected : cases["streams"].array()[row].array()) {
            need(berxit_stream_next(stream, &found));
            wrong += !found || differences(runner, *found, expected, texts[row], folder + ": a stream");
            ++checked;
        }
        need(berxit_stream_next(stream, &found));
        wrong += found != nullptr;
        berxit_stream_free(stream);
    }
    berxit_free(runner);
    std::printf("%d answers, %d differ\n", checked, wrong);
    return wrong != 0;
}

int call(char** arguments) {
    berxit_runner* runner = load(arguments[2], arguments[3], 1);
    std::vector<std::vector<std::string>> cases(1);
    while (read_case(cases.back())) cases.emplace_back();
    cases.pop_back();
    std::vector<berxit_text> texts;
    for (const auto& each : cases) texts.push_back(text_of(each));
    berxit_call settings = {std::atof(arguments[4]), std::atof(arguments[5])};
    berxit_result* result = nullptr;
    const berxit_text none = {"", nullptr, 0, 0};
    need(berxit_predict(runner, texts.empty() ? &none : texts.data(), texts.size(), &settings, &result));
    berxit_result_free(result);
    berxit_free(runner);
    return 0;
}

int predict(int count, char** arguments) {
    berxit_runner* runner = load(arguments[2], arguments[3], std::atoi(arguments[4]));
    std::vector<std::vector<std::string>> cases(1);
    while (read_case(cases.back())) cases.emplace_back();
    cases.pop_back();
    berxit_call call;
    berxit_call_init(&call);
    if (count > 6) call.deadline_ms = std::atof(arguments[6]);
    const auto rows = static_cast<size_t>(std::atoi(arguments[5]));
    for (size_t start = 0; start < cases.size(); start += rows) {
        std::vector<berxit_text> texts;
        for (size_t row = start; row < std::min(cases.size(), start + rows); ++row) texts.push_back(text_of(cases[row]));
        berxit_result* result = nullptr;
        need(berxit_predict(runner, texts.data(), texts.size(), &call, &result));
        for (size_t row = 0; row < texts.size(); ++row) {
            const berxit_prediction* found = berxit_result_at(result, row);
            std::printf("%d %d %.9g %.9g %d %d %d\t%s\n", found->label_index, found->exit_layer,
                        static_cast<double>(found->certainty), static_cast<double>(found->value), found->truncated,
                        static_cast<int>(found->stopped_by), found->late, found->label ? found->label : "");
        }
        berxit_result_free(result);
    }
    berxit_free(runner);
    return 0;
}

int latency(char** arguments) {
    berxit_runner* runner = load(arguments[2], arguments[3], std::atoi(arguments[4]), std::atoi(arguments[5]));
    std::vector<std::string> texts;
    while (read_case(texts)) {
        const berxit_text text = text_of(texts);
        berxit_result* result = nullptr;
        need(berxit_predict(runner, &text, 1, nullptr, &result));
        std::printf("%.3f %d\n", 1e3 * berxit_result_at(result, 0)->latency_ms, berxit_result_at(result, 0)->exit_layer);
        std::fflush(stdout);
        berxit_result_free(result);
    }
    berxit_free(runner);
    return 0;
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

int speed(int count, char** arguments) {
    SessionOptions options;
    options.library = arguments[3];
    options.threads = std::atoi(arguments[4]);
    const auto length = static_cast<size_t>(std::atoi(arguments[5]));
    const double seconds = std::atof(arguments[6]);
    const BundleFolder folder(arguments[2], true);
    const Manifest manifest(std::string(folder.read_manifest()->view()), arguments[2]);
    Backend backend(folder, manifest, options);
    Tokens tokens;
    tokens.ids.assign(length, manifest.pad_token_id);
    tokens.types.assign(length, 0);
    OnnxRuntime& runtime = OnnxRuntime::open(options);
    const std::string file = count > 8 ? content(arguments[7]) : "";
    const auto graph = file.empty() ? nullptr : std::make_unique<Session>(runtime, file.data(), file.size(), arguments[7], options);
    std::vector<int32_t> mask(length, 1);
    std::vector<float> logits(static_cast<size_t>(manifest.outputs()));
    const std::vector<int64_t> shape = {1, static_cast<int64_t>(length)};
    std::vector<Value> values;
    std::vector<const char*> names;
    std::vector<const OrtValue*> inputs;
    for (const TensorInfo& tensor : manifest.segments[0].inputs) {
        if (tensor.role == "constant") continue;
        std::vector<int32_t>& data = tensor.role == "input_ids" ? tokens.ids : tensor.role == "attention_mask" ? mask : tokens.types;
        values.push_back(tensor_at(runtime, data.data(), shape, Dtype::int32));
        names.push_back(tensor.name.c_str());
        inputs.push_back(values.back().get());
    }
    const Value output = tensor_at(runtime, logits.data(), {1, manifest.outputs()}, Dtype::float32);
    std::vector<double> segments, outside, whole;
    for (const double start = now(); now() - start < seconds;) {
        double inside = 0;
        backend.seconds_inside = &inside;
        const double begin = now();
        State state = backend.embed({&tokens});
        Memory memory;
        bool exits = false;
        for (size_t place = 0; place < manifest.exits.size(); ++place) {
            const Outputs found = backend.layer(place, state);
            const int32_t layer = manifest.exits[place];
            const float certainty = manifest.policy->certainty(layer, {found.logits}, found.lte, memory);
            exits = manifest.policy->exits(layer, certainty, {found.logits});
        }
        backend.release(state);
        const double end = now();
        if (!exits) throw Failure("the last layer did not exit");
        segments.push_back(1e6 * (end - begin));
        outside.push_back(1e6 * (end - begin - inside) / static_cast<double>(manifest.segments.size()));
        if (!graph) continue;
        const char* name = arguments[8];
        OrtValue* result = output.get();
        const double graph_begin = now();
        graph->run(nullptr, names.data(), inputs.data(), inputs.size(), &name, 1, &result);
        whole.push_back(1e6 * (now() - graph_begin));
    }
    std::printf("{\"segments\": %.2f, \"outside_per_segment\": %.3f, \"calls\": %zu", median(segments), median(outside), segments.size());
    if (graph) std::printf(", \"one_graph\": %.2f", median(whole));
    std::printf("}\n");
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        const std::string name = count > 2 ? arguments[1] : "";
        if (name == "words" && count == 4) return words(arguments[2], static_cast<size_t>(std::atoi(arguments[3])));
        if (name == "tokenize" && count == 4) return tokenize(arguments[2], static_cast<size_t>(std::atoi(arguments[3])));
        if (name == "policies") return policies(arguments[2]);
        if (name == "deadlines") return deadlines(arguments[2]);
        if (name == "answers" && count == 4) return answers(arguments[2], arguments[3]);
        if (name == "call" && count == 6) return call(arguments);
        if (name == "predict" && count >= 6) return predict(count, arguments);
        if (name == "speed" && count >= 7) return speed(count, arguments);
        if (name == "latency" && count == 6) return latency(arguments);
        std::fprintf(stderr, "unknown arguments\n");
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
