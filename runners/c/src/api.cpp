// The C API. Exceptions end here: they become codes with messages.
#include "berxit.h"

#include <cmath>
#include <cstring>
#include <exception>
#include <new>

#include "error.hpp"
#include "runner.hpp"

struct berxit_runner {
    std::shared_ptr<berxit::Runner> runner;
};

struct berxit_result {
    std::shared_ptr<berxit::Runner> runner;  // owns the labels
    std::vector<berxit::Prediction> found;
    std::vector<berxit_prediction> predictions;
};

struct berxit_stream {
    std::shared_ptr<berxit::Runner> runner;
    berxit::Stream stream;
    berxit_prediction prediction;
};

namespace {

// A fixed buffer, so that the message of an allocation failure needs no memory.
thread_local char message[1024] = "";

void set_message(const char* text) {
    std::strncpy(message, text, sizeof message - 1);
    for (char* c = message; *c; ++c)
        if (*c == '\n' || *c == '\r') *c = ' ';
}

template <typename Work>
berxit_status guarded(const Work& work) noexcept {
    try {
        work();
        return BERXIT_OK;
    } catch (const berxit::InputError& error) {
        set_message(error.what());
        return BERXIT_INPUT;
    } catch (const std::bad_alloc&) {
        set_message("out of memory");
        return BERXIT_MEMORY;
    } catch (const std::exception& error) {
        set_message(error.what());
    } catch (...) {
        set_message("unknown error");
    }
    return BERXIT_FAILURE;
}

void need(bool given, const char* what) {
    if (!given) throw berxit::InputError(std::string(what) + " is NULL");
}

std::string_view view(const char* text, size_t size) { return {text, size ? size : std::strlen(text)}; }

berxit_prediction as_c(const berxit::Runner& runner, const berxit::Prediction& found, bool deadline) {
    const berxit::TaskKind& kind = *runner.manifest().kind;
    return {kind.regression ? nullptr : found.label_text.c_str(),
            kind.several ? 0 : found.scores[static_cast<size_t>(kind.regression ? 0 : found.label)],
            found.scores.data(),
            found.scores.size(),
            found.label,
            found.exit_layer,
            found.certainty,
            found.latency_ms,
            found.truncated,
            static_cast<berxit_stopped_by>(found.stopped_by),
            deadline ? found.late : -1,
            found.labels.data(),
            found.labels.size(),
            found.spans.data(),
            found.spans.size()};
}

}  // namespace

extern "C" {

const char* berxit_error(void) { return message; }

void berxit_options_init(berxit_options* options) {
    if (options) *options = {nullptr, 0, 1, 1, 1, berxit::kMissProbability};
}

void berxit_call_init(berxit_call* call) {
    if (call) *call = {std::nan(""), std::nan("")};
}

berxit_status berxit_load(const char* bundle, const berxit_options* options, berxit_runner** runner) {
    return guarded([&] {
        need(bundle, "bundle");
        need(runner, "runner");
        *runner = nullptr;
        berxit_options stated;
        berxit_options_init(&stated);
        if (options) stated = *options;
        if (stated.threads < 0 || stated.threads > 1024)
            throw berxit::InputError("threads is " + std::to_string(stated.threads) + ": it must be from 0 to 1024");
        berxit::LoadOptions load;
        load.session.library = stated.onnxruntime ? stated.onnxruntime : "";
        load.session.pool = stated.pool != 0;
        load.session.spinning = stated.spinning != 0;
        load.threads = stated.threads;
        load.verify = stated.verify != 0;
        load.miss_probability = stated.miss_probability;
        *runner = new berxit_runner{berxit::Runner::load(bundle, load)};
    });
}

void berxit_free(berxit_runner* runner) { delete runner; }

berxit_info berxit_info_of(const berxit_runner* runner) {
    if (!runner) return {};
    const berxit::Manifest& manifest = runner->runner->manifest();
    return {manifest.precision.c_str(),
            manifest.task.c_str(),
            manifest.metric.c_str(),
            manifest.digest.c_str(),
            runner->runner->onnxruntime_version().c_str(),
            manifest.kind->regression,
            manifest.pairs,
            manifest.layers,
            static_cast<int>(manifest.exits.size()),
            manifest.max_length,
            manifest.labels.size()};
}

const char* berxit_kind(const berxit_runner* runner) { return runner ? runner->runner->manifest().kind->name : nullptr; }

const char* berxit_label(const berxit_runner* runner, size_t index) {
    if (!runner || index >= runner->runner->manifest().labels.size()) return nullptr;
    return runner->runner->manifest().labels[index].c_str();
}

berxit_status berxit_predict(
    berxit_runner* runner, const berxit_text* texts, size_t count, const berxit_call* call, berxit_result** result) {
    return guarded([&] {
        need(runner, "runner");
        need(texts, "texts");
        need(result, "result");
        *result = nullptr;
        std::vector<std::string_view> pairs(count);
        std::vector<berxit::Input> inputs;
        inputs.reserve(count);
        for (size_t i = 0; i < count; ++i) {
            need(texts[i].text, "the text");
            if (texts[i].pair) pairs[i] = view(texts[i].pair, texts[i].pair_size);
            inputs.push_back({view(texts[i].text, texts[i].text_size), texts[i].pair ? &pairs[i] : nullptr});
        }
        const bool threshold = call && !std::isnan(call->threshold), deadline = call && !std::isnan(call->deadline_ms);
        auto made = std::make_unique<berxit_result>();
        made->runner = runner->runner;
        made->found = runner->runner->predict(
            inputs, threshold ? &call->threshold : nullptr, deadline ? &call->deadline_ms : nullptr);
        for (const auto& each : made->found) made->predictions.push_back(as_c(*runner->runner, each, deadline));
        *result = made.release();
    });
}

size_t berxit_result_count(const berxit_result* result) { return result ? result->predictions.size() : 0; }

const berxit_prediction* berxit_result_at(const berxit_result* result, size_t index) {
    return index < berxit_result_count(result) ? &result->predictions[index] : nullptr;
}

void berxit_result_free(berxit_result* result) { delete result; }

berxit_status berxit_stream_open(berxit_runner* runner, const berxit_text* text, berxit_stream** stream) {
    return guarded([&] {
        need(runner, "runner");
        need(text && text->text, "the text");
        need(stream, "stream");
        *stream = nullptr;
        const std::string_view pair = text->pair ? view(text->pair, text->pair_size) : std::string_view();
        const berxit::Input input{view(text->text, text->text_size), text->pair ? &pair : nullptr};
        *stream = new berxit_stream{runner->runner, {runner->runner, input}, {}};
    });
}

berxit_status berxit_stream_next(berxit_stream* stream, const berxit_prediction** prediction) {
    return guarded([&] {
        need(stream, "stream");
        need(prediction, "prediction");
        *prediction = nullptr;
        const berxit::Prediction* found = stream->stream.next();
        if (!found) return;
        stream->prediction = as_c(*stream->runner, *found, false);
        *prediction = &stream->prediction;
    });
}

void berxit_stream_free(berxit_stream* stream) { delete stream; }

berxit_status berxit_check(berxit_runner* runner, double* largest) {
    return guarded([&] {
        need(runner, "runner");
        const std::vector<double> differences = runner->runner->golden_differences();
        const berxit::Manifest& manifest = runner->runner->manifest();
        size_t worst = 0;
        for (size_t place = 0; place < differences.size(); ++place)
            if (differences[place] > differences[worst]) worst = place;
        if (largest) *largest = differences[worst];
        if (differences[worst] > manifest.atol)
            throw berxit::Failure("layer " + std::to_string(manifest.exits[worst]) + " differs from the checkpoint by " +
                                  berxit::text_of(differences[worst]) + ", at most " + berxit::text_of(manifest.atol) +
                                  " is allowed: export the bundle again");
    });
}

}  // extern "C"
