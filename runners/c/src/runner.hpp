// Runs a bundle layer by layer until the exit policy is satisfied.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.hpp"
#include "deadline.hpp"
#include "kinds.hpp"

namespace berxit {

double now();  // seconds on a monotonic clock

struct Input {
    std::string_view text;
    const std::string_view* pair;  // null for a single text
};

enum class StoppedBy { none, certainty, deadline, last_layer };

struct Prediction : Described {
    int32_t exit_layer = 0;
    float certainty = 0;
    double latency_ms = 0;
    bool truncated = false, late = false;
    StoppedBy stopped_by = StoppedBy::none;
};

struct LoadOptions {
    SessionOptions session;
    int32_t threads = 0;  // 0: the bundle's, else the number of cores, at most 4
    bool verify = true;
    double miss_probability = kMissProbability;
};

class Runner;

// The predictions of all exits of one input, the shallowest first.
class Stream {
public:
    Stream(std::shared_ptr<Runner> runner, const Input& input);
    ~Stream();
    // The next prediction; null after the last exit.
    const Prediction* next();

private:
    std::shared_ptr<Runner> runner_;
    Tokens tokens_;
    State state_;
    Memory memory_;
    Prediction prediction_;
    size_t place_ = 0;
    double used_;  // seconds that the calls used so far
};

class Runner : public std::enable_shared_from_this<Runner> {
public:
    // Opens, checks and loads a bundle. A bundle that is replaced meanwhile is opened again.
    static std::shared_ptr<Runner> load(const std::string& bundle, const LoadOptions& options);

    // Predictions in input order. `threshold`: null for the bundle's. `deadline_ms`: null without a deadline.
    std::vector<Prediction> predict(const std::vector<Input>& inputs, const double* threshold, const double* deadline_ms);

    // Largest difference of each exit from the golden inputs. Throws Failure for token ids that differ from those at export.
    std::vector<double> golden_differences();

    const Manifest& manifest() const { return *manifest_; }
    const std::string& onnxruntime_version() const { return backend_->runtime().version; }

private:
    friend class Stream;
    std::unique_ptr<Manifest> manifest_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::unique_ptr<FileBytes> golden_;
    std::string path_;
    std::unique_ptr<Backend> backend_;
    std::unique_ptr<StepEstimator> estimator_;

    Tokens encode(const Input& input, const std::string& name, double end) const;
    void run(const std::vector<Tokens>& tokens, const std::vector<size_t>& rows, const ExitPolicy& policy, double start,
             const double* deadline_ms, double end, std::vector<Prediction>& predictions);
    void check(size_t place, const Outputs& outputs, size_t rows) const;
    Decisions decisions(const Outputs& outputs, size_t row, const Tokens& tokens, std::vector<float>& buffer) const;
    void fill(Prediction& prediction, const ExitPolicy& policy, size_t place, const Decisions& decisions, const Words& words,
              float certainty) const;
};

// Splits a batch into parts of at most `tokens` tokens, padding included, and `most_rows` rows, the shortest rows first.
// A batch that fits into one part keeps its order.
std::vector<std::vector<size_t>> parts_of(const std::vector<size_t>& lengths, size_t tokens, size_t most_rows);

}  // namespace berxit
