#include "runner.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>

#include "error.hpp"

namespace berxit {
namespace {

constexpr double kMissing = 0.5;  // longest time, in seconds, to wait for a bundle that is missing between two renames
constexpr int kMostOpenings = 5;
constexpr int32_t kMostDefaultThreads = 4;

// Identity of a bundle's folder and manifest, which changes if the bundle is replaced.
std::vector<int64_t> state_of(const std::string& path) {
    std::vector<int64_t> found;
    for (const std::string& each : {path, path + "/manifest.json"}) {
        struct stat state {};
        if (stat(each.c_str(), &state)) return {};
        found.insert(found.end(), {static_cast<int64_t>(state.st_dev), static_cast<int64_t>(state.st_ino),
                                   static_cast<int64_t>(state.st_mtime)});
    }
    return found;
}

// Returns the memory of a state when the call ends, also by an exception.
struct Releasing {
    Backend& backend;
    State& state;
    ~Releasing() { backend.release(state); }
};

Tokens tokens_of(const Json& ids, const Json& types, const std::string& place) {
    Tokens tokens;
    for (const Json& id : ids.array()) tokens.ids.push_back(id.id());
    for (const Json& type : types.array()) tokens.types.push_back(type.id());
    if (tokens.ids.empty() || tokens.ids.size() != tokens.types.size())
        throw Failure(place + ": the entries do not match. Export the bundle again");
    return tokens;
}

}  // namespace

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::shared_ptr<Runner> Runner::load(const std::string& bundle, const LoadOptions& options) {
    const double start = now();
    for (int opening = 1;; ++opening) {
        const std::vector<int64_t> before = state_of(bundle);
        try {
            const BundleFolder folder(bundle, options.verify);
            auto runner = std::make_shared<Runner>();
            runner->path_ = bundle;
            const auto content = folder.read_manifest();
            runner->manifest_ = std::make_unique<Manifest>(std::string(content->view()), folder.path_of("manifest.json"));
            const Manifest& manifest = *runner->manifest_;
            const auto file = folder.read(manifest.tokenizer);
            const std::string where = folder.path_of(manifest.tokenizer.file);
            try {
                runner->tokenizer_ =
                    std::make_unique<Tokenizer>(
                        Json::parse(file->view()), static_cast<size_t>(manifest.max_length), manifest.kind->words);
            } catch (const Failure& error) {
                throw Failure("cannot use tokenizer " + where + ": " + error.what() +
                              ". Upgrade the runner, or use the Python runner");
            }
            runner->golden_ = folder.read(manifest.golden);
            runner->estimator_ = std::make_unique<StepEstimator>(options.miss_probability);
            SessionOptions session = options.session;
            const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
            session.threads = options.threads ? options.threads
                : manifest.threads            ? manifest.threads
                                              : std::max(1, std::min(cores, kMostDefaultThreads));
            runner->backend_ = std::make_unique<Backend>(folder, manifest, session);
            return runner;
        } catch (const Failure&) {
            const bool missing = before.empty() && now() - start < kMissing;
            const bool replaced = !before.empty() && opening < kMostOpenings && state_of(bundle) != before;
            if (!missing && !replaced) throw;
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
    }
}

Tokens Runner::encode(const Input& input, const std::string& name, double end) const {
    if ((input.pair != nullptr) != manifest_->pairs)
        throw InputError(std::string("this model takes ") + (manifest_->pairs ? "pairs of texts" : "single texts") + " (" +
                         manifest_->task + "), and was given " + (manifest_->pairs ? "one text" : "a pair"));
    Text first, second;
    if (!decode(input.text, first) || (input.pair && !decode(*input.pair, second)))
        throw InputError(name + " is not valid UTF-8");
    if (Tokenizer::stripped(first).empty() || (input.pair && Tokenizer::stripped(second).empty()))
        throw InputError(name + " is empty: give at least one character that is not whitespace");
    const TextView other = second;
    Tokens tokens = tokenizer_->encode(first, input.pair ? &other : nullptr, end, now);
    if (tokens.ids.empty()) throw Failure("tokenizer of " + path_ + ": a text has no tokens. Export the bundle again");
    for (int32_t id : tokens.ids)
        if (id >= manifest_->table_rows())
            throw Failure("tokenizer of " + path_ + ": token id " + std::to_string(id) +
                          " is not in the word embedding table, which has " + std::to_string(manifest_->table_rows()) +
                          " rows. Export the bundle again");
    if (tokens.words.size()) {  // characters to bytes
        std::vector<size_t> bytes;
        for (size_t at = 0; at < input.text.size(); ++at)
            if ((input.text[at] & 0xC0) != 0x80) bytes.push_back(at);
        bytes.push_back(input.text.size());
        for (auto* places : {&tokens.words.starts, &tokens.words.ends})
            for (size_t& place : *places) place = bytes[place];
    }
    return tokens;
}

std::vector<Prediction> Runner::predict(
    const std::vector<Input>& inputs, const double* threshold, const double* deadline_ms) {
    const double start = now();
    if (inputs.empty()) throw InputError("the batch is empty: give at least one text");
    std::unique_ptr<ExitPolicy> other;
    if (threshold) other = std::make_unique<ExitPolicy>(manifest_->policy->with_threshold(*threshold));
    const ExitPolicy& policy = other ? *other : *manifest_->policy;
    if (deadline_ms && !(*deadline_ms > 0))
        throw InputError("deadline_ms is " + text_of(*deadline_ms) + ": it must be above 0");
    const double end = deadline_ms ? start + *deadline_ms / 1e3 : kNever;
    std::vector<Tokens> tokens;
    std::vector<size_t> lengths;
    for (size_t row = 0; row < inputs.size(); ++row) {
        tokens.push_back(encode(inputs[row], inputs.size() > 1 ? "text " + std::to_string(row) : "the text", end));
        lengths.push_back(tokens.back().size());
    }
    std::vector<Prediction> predictions(inputs.size());
    size_t left = std::accumulate(lengths.begin(), lengths.end(), size_t{0});
    const size_t most_rows = manifest_->max_batch ? static_cast<size_t>(manifest_->max_batch) : inputs.size();
    for (const auto& rows : parts_of(lengths, kTokensAtOnce, most_rows)) {
        size_t own = 0;
        for (size_t row : rows) own += lengths[row];
        // Each part gets a share of the remaining time in proportion to its share of the remaining tokens.
        const double time = deadline_ms ? now() : 0;
        const double until = deadline_ms ? time + static_cast<double>(own) / static_cast<double>(left) * (end - time) : kNever;
        left -= own;
        run(tokens, rows, policy, start, deadline_ms, until - kReserve, predictions);
    }
    return predictions;
}

void Runner::run(const std::vector<Tokens>& tokens, const std::vector<size_t>& part, const ExitPolicy& policy, double start,
                 const double* deadline_ms, double end, std::vector<Prediction>& predictions) {
    std::vector<size_t> rows = part;
    std::vector<const Tokens*> inputs;
    for (size_t row : rows) inputs.push_back(&tokens[row]);
    std::vector<Memory> memories(rows.size());
    std::vector<float> buffer;
    std::vector<float> certainties(rows.size());
    std::vector<bool> exits(rows.size());
    std::unique_ptr<Deadline> deadline;
    if (deadline_ms) deadline = std::make_unique<Deadline>(manifest_->exits, end, *estimator_, now());
    State state;
    const Releasing releasing{*backend_, state};
    state = backend_->embed(inputs);
    for (size_t place = 0;; ++place) {
        const int32_t layer = manifest_->exits[place];
        const Outputs found = backend_->layer(place, state);
        check(place, found, rows.size());
        size_t exited = 0;
        for (size_t row = 0; row < rows.size(); ++row) {
            const Decisions own = decisions(found, row, tokens[rows[row]], buffer);
            certainties[row] = policy.certainty(layer, own, found.lte ? found.lte + row : nullptr, memories[row]);
            exits[row] = policy.exits(layer, certainties[row], own);
            exited += exits[row];
        }
        const bool all = exited == rows.size();
        const bool stop = deadline ? deadline->stops(place, exited > 0, all, now()) : all;
        if (!exited && !stop) continue;
        const double elapsed = 1e3 * (now() - start);
        std::vector<bool> kept(rows.size());
        for (size_t row = 0; row < rows.size(); ++row) {
            kept[row] = !stop && !exits[row];
            if (kept[row]) continue;
            Prediction& prediction = predictions[rows[row]];
            const Tokens& own = tokens[rows[row]];
            fill(prediction, policy, place, decisions(found, row, own, buffer), own.words, certainties[row]);
            prediction.truncated = own.truncated;
            prediction.latency_ms = elapsed;
            prediction.late = deadline_ms && elapsed > *deadline_ms;
            prediction.stopped_by = place + 1 == manifest_->exits.size() ? StoppedBy::last_layer
                : exits[row]                                            ? StoppedBy::certainty
                                                                        : StoppedBy::deadline;
        }
        if (stop) return;
        size_t count = 0;
        for (size_t row = 0; row < rows.size(); ++row)
            if (kept[row]) {
                rows[count] = rows[row];
                if (count != row) memories[count] = std::move(memories[row]);
                ++count;
            }
        rows.resize(count);
        memories.resize(count);
        backend_->keep(state, kept);
    }
}

// Throws Failure for outputs that are no prediction.
void Runner::check(size_t place, const Outputs& outputs, size_t rows) const {
    const size_t count = rows * outputs.row_size;
    bool finite = true, certain = true;
    for (size_t i = 0; i < count; ++i) finite = finite && std::isfinite(outputs.logits[i]);
    for (size_t i = 0; outputs.lte && i < rows; ++i) certain = certain && outputs.lte[i] >= 0 && outputs.lte[i] <= 1;
    if (!finite || !certain)
        throw Failure("layer " + std::to_string(manifest_->exits[place]) + " of " + path_ + ": " +
                      (finite ? "LTE certainties are not in [0, 1]" : "logits are not finite") +
                      ". Check the bundle with berxit-bench, then export again");
}

Decisions Runner::decisions(
    const Outputs& outputs, size_t row, const Tokens& tokens, std::vector<float>& buffer) const {
    const float* logits = outputs.logits + row * outputs.row_size;
    const auto count = static_cast<size_t>(manifest_->outputs());
    return decisions_of(*manifest_->kind, logits, count, manifest_->heads, tokens.words, buffer);
}

void Runner::fill(Prediction& prediction, const ExitPolicy& policy, size_t place, const Decisions& decisions,
                  const Words& words, float certainty) const {
    const int32_t layer = manifest_->exits[place];
    const auto size = static_cast<size_t>(manifest_->classes());
    std::vector<float> scores(decisions.count * size);
    for (size_t i = 0; i < decisions.count; ++i) policy.scores(layer, decisions.logits + i * size, &scores[i * size]);
    static_cast<Described&>(prediction) =
        manifest_->kind->describe(manifest_->labels, manifest_->heads, decisions, size, std::move(scores), words);
    prediction.exit_layer = layer;
    prediction.certainty = certainty;
}

std::vector<double> Runner::golden_differences() {
    const std::string where = path_ + "/" + manifest_->golden.file;
    const Json golden = Json::parse(golden_->view());
    const auto &texts = golden["texts"].array(), &ids = golden["input_ids"].array(), &types = golden["token_type_ids"].array();
    const auto &logits = golden["logits"].array(), &lte = golden["lte"].array();
    const auto check_text = [&](const Json& pair, const Tokens& expected) {
        if (pair.array().empty() || pair.array().size() > 2) throw Failure(where + ": a sample without texts");
        const std::string_view second = pair.array().size() > 1 ? pair.array()[1].string() : std::string_view();
        const Tokens found = encode({pair.array()[0].string(), pair.array().size() > 1 ? &second : nullptr}, "a golden text", kNever);
        if (found.ids != expected.ids || found.types != expected.types)
            throw Failure("the token ids of " + quoted(pair.array()[0].string()) + " differ from those at export");
    };
    const bool fits = !texts.empty() && ids.size() == texts.size() && types.size() == texts.size() && logits.size() == texts.size() &&
        (golden["lte"].is_null() || lte.size() == texts.size());
    if (!fits) throw Failure(where + ": the entries do not match. Export the bundle again");
    std::vector<Tokens> rows;
    for (size_t row = 0; row < texts.size(); ++row) {
        rows.push_back(tokens_of(ids[row], types[row], where));
        check_text(texts[row], rows.back());
    }
    for (const Json& more : golden["tokenization"].array())
        check_text(more["texts"], tokens_of(more["input_ids"], more["token_type_ids"], where));
    std::vector<const Tokens*> inputs;
    for (const Tokens& row : rows) inputs.push_back(&row);
    State state;
    const Releasing releasing{*backend_, state};
    state = backend_->embed(inputs);
    std::vector<double> differences;
    for (size_t place = 0; place < manifest_->exits.size(); ++place) {
        const Outputs found = backend_->layer(place, state);
        check(place, found, rows.size());
        const auto layer = static_cast<size_t>(manifest_->exits[place] - 1);
        double worst = 0;
        for (size_t row = 0; row < rows.size(); ++row) {
            const auto& exits = logits[row].array();
            std::vector<double> expected;
            if (layer < exits.size())
                for (const Json& each : exits[layer].array()) {
                    if (!each.is_array()) expected.push_back(each.number());
                    for (const Json& inner : each.array()) expected.push_back(inner.number());  // of a token
                }
            const size_t of_row = manifest_->kind->words ? rows[row].size() : 1;
            if (expected.size() != of_row * static_cast<size_t>(manifest_->outputs()))
                throw Failure(where + ": the entries do not match. Export the bundle again");
            const float* own = found.logits + row * found.row_size;
            for (size_t i = 0; i < expected.size(); ++i)
                worst = std::max(worst, std::fabs(own[i] - expected[i]) / manifest_->scale);
            if (found.lte && !golden["lte"].is_null() && layer < lte[row].array().size())
                worst = std::max(worst, std::fabs(found.lte[row] - lte[row].array()[layer].number()));
        }
        differences.push_back(worst);
    }
    return differences;
}

Stream::Stream(std::shared_ptr<Runner> runner, const Input& input) : runner_(std::move(runner)) {
    const double start = now();
    tokens_ = runner_->encode(input, "the text", kNever);
    used_ = now() - start;
}

Stream::~Stream() { runner_->backend_->release(state_); }

const Prediction* Stream::next() {
    const double start = now();
    const Manifest& manifest = runner_->manifest();
    if (place_ == manifest.exits.size()) return nullptr;
    if (!state_.workspace) state_ = runner_->backend_->embed({&tokens_});
    const Outputs found = runner_->backend_->layer(place_, state_);
    runner_->check(place_, found, 1);
    std::vector<float> buffer;
    const Decisions own = runner_->decisions(found, 0, tokens_, buffer);
    const float certainty = manifest.policy->certainty(manifest.exits[place_], own, found.lte, memory_);
    runner_->fill(prediction_, *manifest.policy, place_, own, tokens_.words, certainty);
    prediction_.truncated = tokens_.truncated;
    ++place_;
    prediction_.stopped_by = place_ == manifest.exits.size() ? StoppedBy::last_layer : StoppedBy::none;
    used_ += now() - start;
    prediction_.latency_ms = 1e3 * used_;
    return &prediction_;
}

std::vector<std::vector<size_t>> parts_of(const std::vector<size_t>& lengths, size_t tokens, size_t most_rows) {
    std::vector<size_t> order(lengths.size());
    std::iota(order.begin(), order.end(), size_t{0});
    if (lengths.size() <= most_rows && lengths.size() * *std::max_element(lengths.begin(), lengths.end()) <= tokens)
        return {order};
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lengths[a] < lengths[b]; });
    std::vector<std::vector<size_t>> parts(1);
    for (size_t row : order) {
        const size_t count = parts.back().size();
        if (count && ((count + 1) * lengths[row] > tokens || count == most_rows)) parts.emplace_back();
        parts.back().push_back(row);
    }
    return parts;
}

}  // namespace berxit
