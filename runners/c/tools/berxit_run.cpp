// berxit-run BUNDLE "text" ["second text of a pair"]: prints the prediction. Options in usage().
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "berxit.h"

namespace {

constexpr const char* kReasons[] = {"not yet", "certainty", "deadline", "last layer"};

int usage() {
    std::fputs("usage: berxit-run [--threads N] [--threshold T] [--deadline-ms MS] [--stream] [--check]"
               " [--onnxruntime LIBRARY] BUNDLE TEXT [PAIR]\n", stderr);
    return 2;
}

int failed() {
    std::fprintf(stderr, "error: %s\n", berxit_error());
    return 1;
}

// The prediction in words: a label, a number, labels or spans.
std::string description(const berxit_runner* runner, const berxit_prediction* found, const std::string& text) {
    const std::string kind = berxit_kind(runner);
    if (kind == "regression") {
        char value[32];
        std::snprintf(value, sizeof value, "%g", static_cast<double>(found->value));
        return value;
    }
    if (kind == "classification") return found->label;
    std::string words;
    for (size_t i = 0; i < found->label_count; ++i) words += (i ? ", " : "") + std::string(found->labels[i]);
    for (size_t i = 0; i < found->span_count; ++i) {
        const berxit_span& span = found->spans[i];
        words += (i ? ", " : "") + std::string(span.label) + ": " + text.substr(span.start, span.end - span.start);
    }
    return words.empty() ? "none" : words;
}

void print(const berxit_runner* runner, const berxit_prediction* found, const char* text) {
    std::printf("%s  layer %d of %d, certainty %.4f, %.2f ms, %s%s\n", description(runner, found, text).c_str(),
                found->exit_layer, berxit_info_of(runner).layers,
                static_cast<double>(found->certainty), found->latency_ms, kReasons[found->stopped_by],
                found->truncated ? ", truncated" : "");
}

}  // namespace

int main(int count, char** arguments) {
    berxit_options options;
    berxit_call call;
    berxit_options_init(&options);
    berxit_call_init(&call);
    bool stream = false, check = false;
    std::vector<const char*> names;
    for (int i = 1; i < count; ++i) {
        const std::string name = arguments[i];
        const char* value = i + 1 < count ? arguments[i + 1] : nullptr;
        if (name == "--stream" || name == "--check") {
            (name == "--stream" ? stream : check) = true;
        } else if (name.rfind("--", 0) == 0) {
            if (!value) return usage();
            ++i;
            if (name == "--threads")
                options.threads = std::atoi(value);
            else if (name == "--threshold")
                call.threshold = std::atof(value);
            else if (name == "--deadline-ms")
                call.deadline_ms = std::atof(value);
            else if (name == "--onnxruntime")
                options.onnxruntime = value;
            else
                return usage();
        } else {
            names.push_back(arguments[i]);
        }
    }
    if (names.size() < (check ? 1u : 2u) || names.size() > 3) return usage();
    berxit_runner* runner = nullptr;
    if (berxit_load(names[0], &options, &runner) != BERXIT_OK) return failed();
    if (check) {
        double largest = 0;
        if (berxit_check(runner, &largest) != BERXIT_OK) return failed();
        std::printf("golden inputs: largest difference %.3g\n", largest);
    }
    if (names.size() > 1) {
        const berxit_text text = {names[1], names.size() > 2 ? names[2] : nullptr, 0, 0};
        if (stream) {
            berxit_stream* opened = nullptr;
            const berxit_prediction* found = nullptr;
            if (berxit_stream_open(runner, &text, &opened) != BERXIT_OK) return failed();
            do {
                if (berxit_stream_next(opened, &found) != BERXIT_OK) return failed();
                if (found) print(runner, found, names[1]);
            } while (found);
            berxit_stream_free(opened);
        } else {
            berxit_result* result = nullptr;
            if (berxit_predict(runner, &text, 1, &call, &result) != BERXIT_OK) return failed();
            print(runner, berxit_result_at(result, 0), names[1]);
            berxit_result_free(result);
        }
    }
    berxit_free(runner);
    return 0;
}
